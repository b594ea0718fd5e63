// NEON with int8 matrix products: two rows by two tokens of eight products each, one instruction.
#include "kernels/kernels.h"

#include <arm_neon.h>

#define BITNET_VECTOR_BYTES 16

namespace bitnet::neon_i8mm {
namespace {

constexpr int kPrefetchBytes = 1024, kDenseRows = 2, kDenseTokens = 2, kAttentionTile = 4;

// clang-format off
#include "kernels/neon/vectors-inl.h"
#include "kernels/neon_dotprod/dot-inl.h"
#include "kernels/neon_dotprod/cells-inl.h"
// clang-format on

// Four bytes of the token at p, four of the one after it.
BITNET_INLINE int32x2_t two_tokens(const int8_t* p) { return vreinterpret_s32_s8(vld1_s8(p)); }

// Field f of two blocks: rows 2i, 2i + 1 (eight columns each, four from either block) by P pairs of tokens.
template <int P, int f>
BITNET_INLINE void add_field(const Quarter (&rows)[8], const int8_t* q, const int8_t* next, int32x4_t (&sum)[P][8]) {
  int8x16_t x[P];
  for (int p = 0; p < P; ++p)
    x[p] = vreinterpretq_s8_s32(
        vcombine_s32(vzip1_s32(two_tokens(q + 8 * p), next ? two_tokens(next + 8 * p) : vdup_n_s32(0)),
                     vzip2_s32(two_tokens(q + 8 * p), next ? two_tokens(next + 8 * p) : vdup_n_s32(0))));
  for (int i = 0; i < 8; ++i) {
    const uint8x16_t code = field<f>(rows[i]);
    for (int p = 0; p < P; ++p) sum[p][i] = vusmmlaq_s32(sum[p][i], code, x[p]);
  }
}

// Words of four bytes, one from either in turn.
BITNET_INLINE uint8x16_t zip_low(uint8x16_t a, uint8x16_t b) {
  return vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}
BITNET_INLINE uint8x16_t zip_high(uint8x16_t a, uint8x16_t b) {
  return vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}

// Two blocks, or a last one alone.
template <Packing packing, int P>
BITNET_INLINE void add_blocks(const uint8_t* w, const int8_t* q, int64_t tokens, bool both, int32x4_t (&sum)[P][8]) {
  Quarter rows[8];
  for (int i = 0; i < 4; ++i) {
    const Quarter v = load_quarter<packing>(w + 16 * i),
                  u = both ? load_quarter<packing>(w + kBlockBytes + 16 * i) : Quarter{vdupq_n_u8(0), vdupq_n_u8(0)};
    rows[2 * i] = {zip_low(v.four, u.four), zip_low(v.fifth, u.fifth)};
    rows[2 * i + 1] = {zip_high(v.four, u.four), zip_high(v.fifth, u.fifth)};
  }
  const int8_t* next = both ? q + block_columns(packing) * tokens : nullptr;
  add_field<P, 0>(rows, q, next, sum);
  add_field<P, 1>(rows, q + 4 * tokens, both ? next + 4 * tokens : nullptr, sum);
  add_field<P, 2>(rows, q + 8 * tokens, both ? next + 8 * tokens : nullptr, sum);
  add_field<P, 3>(rows, q + 12 * tokens, both ? next + 12 * tokens : nullptr, sum);
  if constexpr (packing == Packing::T5)
    add_field<P, 4>(rows, q + 16 * tokens, both ? next + 16 * tokens : nullptr, sum);
}

// P pairs of tokens of a panel of `tokens`.
template <Packing packing, int P>
BITNET_INLINE void ternary_pairs(const uint8_t* w, int64_t blocks, const int8_t* panel, int64_t tokens, I32x16* acc) {
  int32x4_t sum[P][8];  // row 2i by both tokens, row 2i + 1 by both
  for (int p = 0; p < P; ++p)
    for (int i = 0; i < 8; ++i) sum[p][i] = vdupq_n_s32(0);
  int64_t b = 0;
  for (; b + 2 <= blocks; b += 2) {
    prefetch(w + b * kBlockBytes + kPrefetchBytes);
    prefetch(w + (b + 1) * kBlockBytes + kPrefetchBytes);
    add_blocks<packing, P>(w + b * kBlockBytes, panel + block_columns(packing) * b * tokens, tokens, true, sum);
  }
  if (b < blocks)
    add_blocks<packing, P>(w + b * kBlockBytes, panel + block_columns(packing) * b * tokens, tokens, false, sum);
  for (int p = 0; p < P; ++p) {
    int32x4_t even[4], odd[4];
    for (int i = 0; i < 4; ++i) {
      even[i] = vuzp1q_s32(sum[p][2 * i], sum[p][2 * i + 1]);
      odd[i] = vuzp2q_s32(sum[p][2 * i], sum[p][2 * i + 1]);
    }
    acc[2 * p] = sixteen(even);
    acc[2 * p + 1] = sixteen(odd);
  }
}

#define BITNET_TERNARY_SEVERAL
template <Packing packing, int M>
BITNET_INLINE void ternary_several(const uint8_t* w, int64_t blocks, const int8_t* panel, I32x16 (&acc)[M]) {
  for (int m = 0; m + 4 <= M; m += 4) ternary_pairs<packing, 2>(w, blocks, panel + 4 * m, M, acc + m);
  if constexpr (M % 4 >= 2) ternary_pairs<packing, 1>(w, blocks, panel + M / 4 * 16, M, acc + M / 4 * 4);
  if constexpr (M % 2 == 1) ternary_few<packing, 1>(w, blocks, panel + 4 * (M - 1), M, acc + M - 1);
}

// clang-format off
#include "kernels/tile-inl.h"
#include "kernels/algorithms-inl.h"
// clang-format on

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = BITNET_TABLE("neon_i8mm");

}  // namespace bitnet::neon_i8mm
