#include "ops/batch.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace bitnet {
namespace {

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

}  // namespace

void check_batch(const Batch& batch, const KVCache& cache, int64_t tokens) {
  if (batch.starts[0] != 0 || batch.starts[batch.sequences] != tokens)
    fail("starts must begin with 0 and end with the number of tokens, " + std::to_string(tokens) + ".");
  for (int64_t b = 0; b < batch.sequences; ++b)  // all of them, before one is used as a bound
    if (batch.starts[b] > batch.starts[b + 1])
      fail("starts must ascend; starts[" + std::to_string(b + 1) + "] does not.");
  for (int64_t b = 0; b < batch.sequences; ++b) {
    int64_t last = -1;
    for (int64_t t = batch.starts[b]; t < batch.starts[b + 1]; ++t) {
      if (batch.positions[t] < 0) fail("positions[" + std::to_string(t) + "] is negative.");
      last = std::max<int64_t>(last, batch.positions[t]);
    }
    if (last < 0) continue;
    const int64_t used = last / cache.block_size + 1;
    if (used > batch.block_tables.columns)
      fail("sequence " + std::to_string(b) + " reaches position " + std::to_string(last) + "; its block table covers " +
           std::to_string(batch.block_tables.columns * cache.block_size) + ".");
    for (int64_t i = 0; i < used; ++i) {
      const int32_t block = batch.block_tables.row(b)[i];
      if (block < 0 || block >= cache.blocks)
        fail("block_tables[" + std::to_string(b) + ", " + std::to_string(i) + "] is " + std::to_string(block) +
             "; the cache has " + std::to_string(cache.blocks) + " blocks.");
    }
  }
}

}  // namespace bitnet
