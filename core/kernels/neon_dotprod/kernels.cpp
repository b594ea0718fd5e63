// NEON with sdot (optional from armv8.2 on): a product of four bytes and their sum one instruction.
#include "kernels/kernels.h"

#include <arm_neon.h>

#define BITNET_VECTOR_BYTES 16

namespace bitnet::neon_dotprod {
namespace {

constexpr int kPrefetchBytes = 1024, kDenseRows = 2, kDenseTokens = 2, kAttentionTile = 4;

// clang-format off
#include "kernels/neon/vectors-inl.h"
#include "kernels/neon_dotprod/dot-inl.h"
#include "kernels/neon_dotprod/cells-inl.h"
// clang-format on

template <Density density, int M, int G>
BITNET_INLINE void ternary_tile(const uint8_t* w, int64_t stride, int64_t blocks, const int8_t* panel,
                                I32x16 (&acc)[G][M]) {
  for (int g = 0; g < G; ++g) {
    const uint8_t* group = w + g * stride;
    if constexpr (M == 1) {
      ternary_one<density>(group, blocks, panel, acc[g][0]);
    } else if constexpr (M <= 4) {
      ternary_few<density, M>(group, blocks, panel, M, acc[g]);
    } else {
      ternary_few<density, 4>(group, blocks, panel, M, acc[g]);
      ternary_few<density, M - 4>(group, blocks, panel + 16, M, acc[g] + 4);
    }
  }
}

#include "kernels/algorithms-inl.h"

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = BITNET_TABLE("neon_dotprod");

}  // namespace bitnet::neon_dotprod
