// AVX512-VNNI on CPUs that also look up 64 bytes in one instruction (VBMI).
#include "kernels/kernels.h"

#include <immintrin.h>

#define BITNET_VECTOR_BYTES 64

namespace bitnet::avx512_vbmi {
namespace {

constexpr int kPrefetchBytes = 6144, kDenseRows = 4, kDenseTokens = 4, kAttentionTile = 16;

// clang-format off
#include "kernels/simd-inl.h"
#include "kernels/avx512_vbmi/lookup-inl.h"
#include "kernels/avx512_vnni/vnni-inl.h"
#include "kernels/avx512_vnni/screen-inl.h"
#include "kernels/algorithms-inl.h"
// clang-format on

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = BITNET_TABLE("avx512_vbmi");

}  // namespace bitnet::avx512_vbmi
