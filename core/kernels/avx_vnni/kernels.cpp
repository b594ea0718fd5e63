// AVX-VNNI: two halves of eight rows, a product of four bytes and their sum one instruction, in 256 bits.
#include "kernels/kernels.h"

#include <immintrin.h>

#define BITNET_VECTOR_BYTES 32

namespace bitnet::avx_vnni {
namespace {

constexpr int kPrefetchBytes = 6144, kDenseRows = 2, kDenseTokens = 2, kAttentionTile = 4;

#include "kernels/avx2/vectors-inl.h"

// sum += products of four bytes. As text, because gcc 12 moves and spills the running sums of the intrinsic.
BITNET_INLINE void dot(__m256i& sum, __m256i code, __m256i four) {
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(code), "x"(four));
}

// One token, shift-free: the masked byte is code * 4^f, so field f has its own sum, which is shifted once at the end. A
// sum of field f grows by at most 2 * 4^f * 128 * 4 a block, so field 3 is safe below 2^31 / 2^16 = 32,768 blocks, or
// 524,288 columns.
template <Packing packing>
BITNET_INLINE void ternary_one(const uint8_t* w, int64_t blocks, const int8_t* q, I32x16& acc) {
  const __m256i mask[4] = {_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c), _mm256_set1_epi8(0x30),
                           _mm256_set1_epi8((char)0xc0)};
  __m256i lo[4], hi[4];
  for (int f = 0; f < 4; ++f) lo[f] = hi[f] = _mm256_setzero_si256();
  for (int64_t b = 0; b < blocks; ++b) {
    prefetch(w + b * kBlockBytes + kPrefetchBytes);
    const Half v = load_half_block<packing>(w + b * kBlockBytes),
               u = load_half_block<packing>(w + b * kBlockBytes + 32);
    const int8_t* x = q + b * block_columns(packing);
#pragma GCC unroll 4
    for (int f = 0; f < 4; ++f) {
      const __m256i four = broadcast(x + 4 * f);
      dot(lo[f], _mm256_and_si256(v.four, mask[f]), four);
      dot(hi[f], _mm256_and_si256(u.four, mask[f]), four);
    }
    if constexpr (packing == Packing::T5) {
      const __m256i four = broadcast(x + 16);
      dot(lo[0], v.fifth, four);
      dot(hi[0], u.fifth, four);
    }
  }
  acc.lo = (NativeI)lo[0] + ((NativeI)lo[1] >> 2) + ((NativeI)lo[2] >> 4) + ((NativeI)lo[3] >> 6);
  acc.hi = (NativeI)hi[0] + ((NativeI)hi[1] >> 2) + ((NativeI)hi[2] >> 4) + ((NativeI)hi[3] >> 6);
}

// Up to four tokens: each field is moved to scale 1 once and serves all of them. One or two tokens keep two sums for
// each, because a product-sum takes longer than a field.
template <Packing packing, int M>
BITNET_INLINE void ternary_few(const uint8_t* w, int64_t blocks, const int8_t* panel, int64_t tokens, I32x16* acc) {
  const __m256i low = _mm256_set1_epi8(0x03);
  constexpr int S = M <= 2 ? 2 : 1;
  __m256i lo[S][M], hi[S][M];
  for (int s = 0; s < S; ++s)
    for (int m = 0; m < M; ++m) lo[s][m] = hi[s][m] = _mm256_setzero_si256();
  for (int64_t b = 0; b < blocks; ++b) {
    prefetch(w + b * kBlockBytes + kPrefetchBytes);
    Half v = load_half_block<packing>(w + b * kBlockBytes), u = load_half_block<packing>(w + b * kBlockBytes + 32);
    const int8_t* x = panel + b * block_columns(packing) * tokens;
    constexpr int F = fields(packing);
#pragma GCC unroll 5
    for (int f = 0; f < F; ++f) {
      const __m256i c = f == 4 ? v.fifth : _mm256_and_si256(v.four, low),
                    d = f == 4 ? u.fifth : _mm256_and_si256(u.four, low);
      v.four = _mm256_srli_epi16(v.four, 2), u.four = _mm256_srli_epi16(u.four, 2);
      for (int m = 0; m < M; ++m) {
        const __m256i four = broadcast(x + (f * tokens + m) * 4);
        dot(lo[f % S][m], c, four);
        dot(hi[f % S][m], d, four);
      }
    }
  }
  for (int m = 0; m < M; ++m) acc[m] = {(NativeI)lo[0][m], (NativeI)hi[0][m]};
  if constexpr (S == 2)
    for (int m = 0; m < M; ++m) acc[m] = acc[m] + I32x16{(NativeI)lo[1][m], (NativeI)hi[1][m]};
}

// clang-format off
#include "kernels/tile-inl.h"
#include "kernels/avx_vnni/screen-inl.h"
#include "kernels/avx_vnni/cells-inl.h"
#include "kernels/algorithms-inl.h"
// clang-format on

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = BITNET_TABLE("avx_vnni");

}  // namespace bitnet::avx_vnni
