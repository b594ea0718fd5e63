// How fast this machine reads memory: the bound of every decode.
#pragma once
#include <cstdint>

namespace bitnet {

double read_bandwidth(int64_t bytes, int threads);  // GB/s (1e9 bytes), the best of a few passes over `bytes`

}  // namespace bitnet
