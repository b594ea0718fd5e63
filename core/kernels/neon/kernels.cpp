// NEON as every 64-bit ARM has it: products of bytes into int16.
#include "kernels/kernels.h"

#include <arm_neon.h>

#define BITNET_VECTOR_BYTES 16

namespace bitnet::neon {
namespace {

constexpr int kPrefetchBytes = 1024, kDenseRows = 2, kDenseTokens = 2, kAttentionTile = 4;

#include "kernels/neon/vectors-inl.h"

// A product is at most 2 * 128 = 256 in magnitude and a block adds four to each running int16, so 32 blocks reach
// -32768 with q = -128 and 32512 with q = 127: both fit. With five, 25 blocks reach 32000. Then they are flushed to
// int32.
constexpr int flush(Packing d) { return d == Packing::T5 ? 25 : 32; }

template <int M, int f>
BITNET_INLINE void add_field(const Quarter (&v)[4], const int8_t* q, int16x8_t (&sum)[M][8]) {
  int8x16_t code[4];
  for (int i = 0; i < 4; ++i) code[i] = vreinterpretq_s8_u8(field<f>(v[i]));
  for (int m = 0; m < M; ++m) {
    const int8x16_t four = broadcast(q + 4 * m);
    for (int i = 0; i < 4; ++i) {
      sum[m][2 * i] = vmlal_s8(sum[m][2 * i], vget_low_s8(code[i]), vget_low_s8(four));
      sum[m][2 * i + 1] = vmlal_high_s8(sum[m][2 * i + 1], code[i], four);
    }
  }
}

// Up to two tokens of a panel of `tokens`.
template <Packing packing, int M>
BITNET_INLINE void ternary_few(const uint8_t* w, int64_t blocks, const int8_t* panel, int64_t tokens, I32x16* acc) {
  int32x4_t total[M][8];  // sums of two bytes: rows 2i and 2i + 1, in pairs
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < 8; ++i) total[m][i] = vdupq_n_s32(0);
  for (int64_t first = 0; first < blocks; first += flush(packing)) {
    const int64_t last = first + flush(packing) < blocks ? first + flush(packing) : blocks;
    int16x8_t sum[M][8];
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < 8; ++i) sum[m][i] = vdupq_n_s16(0);
    for (int64_t b = first; b < last; ++b) {
      prefetch(w + b * kBlockBytes + kPrefetchBytes);
      Quarter v[4];
      for (int i = 0; i < 4; ++i) v[i] = load_quarter<packing>(w + b * kBlockBytes + 16 * i);
      const int8_t* q = panel + block_columns(packing) * b * tokens;
      add_field<M, 0>(v, q, sum);
      add_field<M, 1>(v, q + 4 * tokens, sum);
      add_field<M, 2>(v, q + 8 * tokens, sum);
      add_field<M, 3>(v, q + 12 * tokens, sum);
      if constexpr (packing == Packing::T5) add_field<M, 4>(v, q + 16 * tokens, sum);
    }
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < 8; ++i) total[m][i] = vpadalq_s16(total[m][i], sum[m][i]);
  }
  for (int m = 0; m < M; ++m) {
    int32x4_t rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = vpaddq_s32(total[m][2 * i], total[m][2 * i + 1]);
    acc[m] = sixteen(rows);
  }
}

template <Packing packing, int M, int G>
BITNET_INLINE void ternary_tile(const uint8_t* w, int64_t stride, int64_t blocks, const int8_t* panel,
                                I32x16 (&acc)[G][M]) {
  for (int g = 0; g < G; ++g) {
    const uint8_t* group = w + g * stride;
    for (int m = 0; m + 2 <= M; m += 2) ternary_few<packing, 2>(group, blocks, panel + 4 * m, M, acc[g] + m);
    if constexpr (M % 2 == 1) ternary_few<packing, 1>(group, blocks, panel + 4 * (M - 1), M, acc[g] + M - 1);
  }
}

// clang-format off
#include "kernels/neon/cells-inl.h"
#include "kernels/algorithms-inl.h"
// clang-format on

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = BITNET_TABLE("neon");

}  // namespace bitnet::neon
