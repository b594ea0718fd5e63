// SSE4.1: four quarters of four rows, products by maddubs into int16.
#include "kernels/kernels.h"

#include <smmintrin.h>

#define BITNET_VECTOR_BYTES 16

namespace bitnet::sse41 {
namespace {

constexpr int kPrefetchBytes = 1024, kDenseRows = 1, kDenseTokens = 2, kAttentionTile = 4;

#include "kernels/sse41/vectors-inl.h"

// sum += pairs of products. The empty text keeps gcc from adding in another order, with which it spills everything.
BITNET_INLINE void add_pairs(__m128i& sum, __m128i code, __m128i four) {
  sum = _mm_add_epi16(sum, _mm_maddubs_epi16(code, four));
  __asm__("" : "+x"(sum));
}

// One token, shift-saving: fields 0 and 2 are used at scale 1 and fields 1 and 3 at scale 4, after one shift by 4.
//
// A pair of products of maddubs is at most 2 * 2 * 128 = 512 in magnitude at scale 1 and 2048 at scale 4 (it saturates
// at 2^15, so never). A block adds two pairs to each running int16: 4096 at scale 4, so 8 blocks reach -32768 with q =
// -128 and +32512 with q = 127: both fit. Then they are flushed to int32. Field 4 adds a third pair at scale 1.
constexpr int kFlushOne = 8;

template <Packing packing>
BITNET_INLINE void ternary_one(const uint8_t* w, int64_t blocks, const int8_t* q, I32x16& acc) {
  const __m128i low = _mm_set1_epi8(0x03), high = _mm_set1_epi8(0x0c), ones = _mm_set1_epi16(1);
  __m128i total1[4], total4[4];
  for (int i = 0; i < 4; ++i) total1[i] = total4[i] = _mm_setzero_si128();
  for (int64_t first = 0; first < blocks; first += kFlushOne) {
    const int64_t last = first + kFlushOne < blocks ? first + kFlushOne : blocks;
    __m128i sum1[4], sum4[4];
    for (int i = 0; i < 4; ++i) sum1[i] = sum4[i] = _mm_setzero_si128();
    for (int64_t b = first; b < last; ++b) {
      prefetch(w + b * kBlockBytes + kPrefetchBytes);
      const int8_t* p = q + b * block_columns(packing);
      const __m128i x = _mm_loadu_si128((const __m128i*)p);
      const __m128i q0 = _mm_shuffle_epi32(x, 0x00), q1 = _mm_shuffle_epi32(x, 0x55), q2 = _mm_shuffle_epi32(x, 0xaa),
                    q3 = _mm_shuffle_epi32(x, 0xff);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Quarter quarter = load_quarter<packing>(w + b * kBlockBytes + 16 * i);
        const __m128i v = quarter.four, u = _mm_srli_epi16(v, 4);
        if constexpr (packing == Packing::T5) add_pairs(sum1[i], quarter.fifth, broadcast(p + 16));
        add_pairs(sum1[i], _mm_and_si128(v, low), q0);
        add_pairs(sum4[i], _mm_and_si128(v, high), q1);
        add_pairs(sum1[i], _mm_and_si128(u, low), q2);
        add_pairs(sum4[i], _mm_and_si128(u, high), q3);
      }
    }
    for (int i = 0; i < 4; ++i) {
      total1[i] = _mm_add_epi32(total1[i], _mm_madd_epi16(sum1[i], ones));
      total4[i] = _mm_add_epi32(total4[i], _mm_madd_epi16(sum4[i], ones));
    }
  }
  NativeI rows[4];
  for (int i = 0; i < 4; ++i) rows[i] = (NativeI)_mm_add_epi32(total1[i], _mm_srai_epi32(total4[i], 2));
  acc = {{rows[0], rows[1]}, {rows[2], rows[3]}};
}

// M tokens by Q quarters, every field moved to scale 1: a block adds four pairs, 4 * 512 = 2048; 16 blocks reach -32768
// or +32512. With five pairs, 2560, 12 blocks reach 30720.
constexpr int flush_tile(Packing p) { return p == Packing::T5 ? 12 : 16; }

template <Packing packing, int M, int Q>
BITNET_INLINE void ternary_quarters(const uint8_t* w, int64_t blocks, const int8_t* panel, int64_t tokens,
                                    NativeI (&rows)[M][4], int quarter) {
  const __m128i low = _mm_set1_epi8(0x03), ones = _mm_set1_epi16(1);
  __m128i total[M][Q];
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < Q; ++i) total[m][i] = _mm_setzero_si128();
  for (int64_t first = 0; first < blocks; first += flush_tile(packing)) {
    const int64_t last = first + flush_tile(packing) < blocks ? first + flush_tile(packing) : blocks;
    __m128i sum[M][Q];
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < Q; ++i) sum[m][i] = _mm_setzero_si128();
    for (int64_t b = first; b < last; ++b) {
      prefetch(w + b * kBlockBytes + kPrefetchBytes);
      Quarter v[Q];
      for (int i = 0; i < Q; ++i) v[i] = load_quarter<packing>(w + b * kBlockBytes + 16 * i);
      const int8_t* x = panel + b * block_columns(packing) * tokens;
      constexpr int F = fields(packing);
#pragma GCC unroll 5
      for (int f = 0; f < F; ++f) {
        __m128i q[M];
        if constexpr (M == 4) {
          const __m128i four = _mm_loadu_si128((const __m128i*)(x + f * tokens * 4));
          q[0] = _mm_shuffle_epi32(four, 0x00), q[1] = _mm_shuffle_epi32(four, 0x55);
          q[2] = _mm_shuffle_epi32(four, 0xaa), q[3] = _mm_shuffle_epi32(four, 0xff);
        } else {
          for (int m = 0; m < M; ++m) q[m] = broadcast(x + (f * tokens + m) * 4);
        }
        for (int i = 0; i < Q; ++i) {
          const __m128i code = f == 4 ? v[i].fifth : _mm_and_si128(v[i].four, low);
          v[i].four = _mm_srli_epi16(v[i].four, 2);
          for (int m = 0; m < M; ++m) add_pairs(sum[m][i], code, q[m]);
        }
      }
    }
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < Q; ++i) total[m][i] = _mm_add_epi32(total[m][i], _mm_madd_epi16(sum[m][i], ones));
  }
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < Q; ++i) rows[m][quarter + i] = (NativeI)total[m][i];
}

// Up to four tokens: one or two by all 16 rows, three or four by eight rows at a time, which is what 16 registers hold.
template <Packing packing, int M>
BITNET_INLINE void ternary_few(const uint8_t* w, int64_t blocks, const int8_t* panel, int64_t tokens, I32x16* acc) {
  constexpr int Q = M > 2 ? 2 : 4;
  NativeI rows[M][4];
  for (int i = 0; i < 4; i += Q) ternary_quarters<packing, M, Q>(w + 16 * i, blocks, panel, tokens, rows, i);
  for (int m = 0; m < M; ++m) acc[m] = {{rows[m][0], rows[m][1]}, {rows[m][2], rows[m][3]}};
}

// clang-format off
#include "kernels/tile-inl.h"
#include "kernels/sse41/screen-inl.h"
#include "kernels/sse41/cells-inl.h"
#include "kernels/algorithms-inl.h"
// clang-format on

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = BITNET_TABLE("sse41");

}  // namespace bitnet::sse41
