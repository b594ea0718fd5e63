// AMX: many tokens by products of tiles, few as on every CPU with AVX512-VBMI.
#include "kernels/kernels.h"

#include <immintrin.h>

#define BITNET_VECTOR_BYTES 64

namespace bitnet::amx_int8 {
namespace {

constexpr int kPrefetchBytes = 6144, kDenseRows = 4, kDenseTokens = 4, kAttentionTile = 16;

// clang-format off
#include "kernels/simd-inl.h"
#include "kernels/avx512_vbmi/lookup-inl.h"
#include "kernels/avx512_vnni/vnni-inl.h"
#include "kernels/avx512_vnni/screen-inl.h"
#include "kernels/algorithms-inl.h"
#include "kernels/amx_int8/tmm-inl.h"
#include "kernels/amx_int8/tiles-inl.h"
// clang-format on

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = with_tiles(BITNET_TABLE("amx_int8"));

}  // namespace bitnet::amx_int8
