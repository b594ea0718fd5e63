// The instruction set amx_int8 on CPUs without tiles: the same algorithm over tile registers in memory. Only the parity
// program has it.
#include "kernels/kernels.h"

#include <immintrin.h>

#define BITNET_VECTOR_BYTES 64

namespace bitnet::amx_emulated {
namespace {

constexpr int kPrefetchBytes = 6144, kDenseRows = 4, kDenseTokens = 4, kAttentionTile = 16;

// clang-format off
#include "kernels/simd-inl.h"
#include "kernels/avx512_vbmi/lookup-inl.h"
#include "kernels/avx512_vnni/vnni-inl.h"
#include "kernels/avx512_vnni/screen-inl.h"
#include "kernels/algorithms-inl.h"
#include "amx_emulated/tmm-inl.h"
#include "kernels/amx_int8/tiles-inl.h"
// clang-format on

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = with_tiles(BITNET_TABLE("amx_emulated"));

}  // namespace bitnet::amx_emulated
