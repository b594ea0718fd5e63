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
#include "kernels/tile-inl.h"
#include "kernels/algorithms-inl.h"
// clang-format on

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = BITNET_TABLE("neon_dotprod");

}  // namespace bitnet::neon_dotprod
