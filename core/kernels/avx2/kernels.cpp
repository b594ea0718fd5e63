// AVX2 with F16C: two halves of eight rows, products by maddubs into int16.
#include "kernels/kernels.h"

#include <immintrin.h>

#define BITNET_VECTOR_BYTES 32

namespace bitnet::avx2 {
namespace {

constexpr int kPrefetchBytes = 6144, kDenseRows = 2, kDenseTokens = 2, kAttentionTile = 4;

#include "kernels/avx2/vectors-inl.h"

// sum += pairs of products. The empty text keeps gcc from adding in another order, with which it spills everything.
BITNET_INLINE void add_pairs(__m256i& sum, __m256i code, __m256i four) {
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(code, four));
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
  const __m256i low = _mm256_set1_epi8(0x03), high = _mm256_set1_epi8(0x0c), ones = _mm256_set1_epi16(1);
  __m256i total1[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()},
          total4[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int64_t first = 0; first < blocks; first += kFlushOne) {
    const int64_t last = first + kFlushOne < blocks ? first + kFlushOne : blocks;
    __m256i sum1[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()},
            sum4[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t b = first; b < last; ++b) {
      prefetch(w + b * kBlockBytes + kPrefetchBytes);
      const int8_t* x = q + b * block_columns(packing);
      const __m256i q0 = broadcast(x), q1 = broadcast(x + 4), q2 = broadcast(x + 8), q3 = broadcast(x + 12);
      for (int h = 0; h < 2; ++h) {
        const Half half = load_half_block<packing>(w + b * kBlockBytes + 32 * h);
        const __m256i v = half.four, u = _mm256_srli_epi16(v, 4);
        if constexpr (packing == Packing::T5) add_pairs(sum1[h], half.fifth, broadcast(x + 16));
        add_pairs(sum1[h], _mm256_and_si256(v, low), q0);
        add_pairs(sum4[h], _mm256_and_si256(v, high), q1);
        add_pairs(sum1[h], _mm256_and_si256(u, low), q2);
        add_pairs(sum4[h], _mm256_and_si256(u, high), q3);
      }
    }
    for (int h = 0; h < 2; ++h) {
      total1[h] = _mm256_add_epi32(total1[h], _mm256_madd_epi16(sum1[h], ones));
      total4[h] = _mm256_add_epi32(total4[h], _mm256_madd_epi16(sum4[h], ones));
    }
  }
  acc.lo = (NativeI)_mm256_add_epi32(total1[0], _mm256_srai_epi32(total4[0], 2));
  acc.hi = (NativeI)_mm256_add_epi32(total1[1], _mm256_srai_epi32(total4[1], 2));
}

// Up to four tokens, every field moved to scale 1: a block adds four pairs, 4 * 512 = 2048; 16 blocks reach -32768 or
// +32512. With five pairs, 2560, 12 blocks reach 30720.
constexpr int flush_tile(Packing d) { return d == Packing::T5 ? 12 : 16; }

template <Packing packing, int M>
BITNET_INLINE void ternary_few(const uint8_t* w, int64_t blocks, const int8_t* panel, int64_t tokens, I32x16* acc) {
  const __m256i low = _mm256_set1_epi8(0x03), ones = _mm256_set1_epi16(1);
  for (int m = 0; m < M; ++m) acc[m] = fill(0);
  for (int64_t first = 0; first < blocks; first += flush_tile(packing)) {
    const int64_t last = first + flush_tile(packing) < blocks ? first + flush_tile(packing) : blocks;
    __m256i sum[M][2];
    for (int m = 0; m < M; ++m) sum[m][0] = sum[m][1] = _mm256_setzero_si256();
    for (int64_t b = first; b < last; ++b) {
      prefetch(w + b * kBlockBytes + kPrefetchBytes);
      Half v0 = load_half_block<packing>(w + b * kBlockBytes), v1 = load_half_block<packing>(w + b * kBlockBytes + 32);
      const int8_t* x = panel + b * block_columns(packing) * tokens;
      constexpr int F = fields(packing);
#pragma GCC unroll 5
      for (int f = 0; f < F; ++f) {
        const __m256i c0 = f == 4 ? v0.fifth : _mm256_and_si256(v0.four, low),
                      c1 = f == 4 ? v1.fifth : _mm256_and_si256(v1.four, low);
        v0.four = _mm256_srli_epi16(v0.four, 2), v1.four = _mm256_srli_epi16(v1.four, 2);
        for (int m = 0; m < M; ++m) {
          const __m256i q = broadcast(x + (f * tokens + m) * 4);
          add_pairs(sum[m][0], c0, q);
          add_pairs(sum[m][1], c1, q);
        }
      }
    }
    for (int m = 0; m < M; ++m) {
      acc[m].lo = acc[m].lo + (NativeI)_mm256_madd_epi16(sum[m][0], ones);
      acc[m].hi = acc[m].hi + (NativeI)_mm256_madd_epi16(sum[m][1], ones);
    }
  }
}

// clang-format off
#include "kernels/tile-inl.h"
#include "kernels/avx2/screen-inl.h"
#include "kernels/avx2/cells-inl.h"
#include "kernels/algorithms-inl.h"
// clang-format on

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = BITNET_TABLE("avx2");

}  // namespace bitnet::avx2
