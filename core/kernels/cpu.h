// What a CPU and its operating system offer, as far as targets.def asks for it.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace bitnet {

// clang-format off
#define BITNET_FEATURES(X)                                                                                    \
  X(ssse3) X(sse4_1) X(avx2) X(f16c) X(fma) X(avx_vnni)                                                       \
  X(avx512f) X(avx512bw) X(avx512dq) X(avx512vl) X(avx512_vnni) X(avx512_vbmi) X(avx512_bf16)                 \
  X(amx_tile) X(amx_int8)                                                                                     \
  X(neon) X(neon_dotprod) X(neon_i8mm)
// clang-format on

struct Features {
#define BITNET_FIELD(name) bool name = false;
  BITNET_FEATURES(BITNET_FIELD)
#undef BITNET_FIELD

  // Every one by name; set() throws std::invalid_argument for an unknown name.
  std::vector<std::pair<std::string, bool>> list() const;
  void set(const std::string& name, bool present);
};

const Features& this_cpu();

}  // namespace bitnet
