// What attention trusts, checked.
#pragma once
#include <cstdint>

#include "ops/attention.h"

namespace bitnet {

// std::invalid_argument unless `starts` covers `tokens` tokens and every block that they touch exists in the cache.
void check_batch(const Batch& batch, const KVCache& cache, int64_t tokens);

}  // namespace bitnet
