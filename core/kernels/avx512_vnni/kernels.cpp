// AVX-512 with VNNI: a block is one register, a product of four bytes and their sum one instruction.
#include "kernels/kernels.h"

#include <immintrin.h>

#define BITNET_VECTOR_BYTES 64

namespace bitnet::avx512_vnni {
namespace {

constexpr int kPrefetchBytes = 6144, kDenseRows = 4, kDenseTokens = 4, kAttentionTile = 16;

#include "kernels/simd-inl.h"

BITNET_INLINE void prefetch(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

BITNET_INLINE float load_half(const uint16_t* p) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(*p))); }
BITNET_INLINE F32x16 load_f16(const uint16_t* p) {
  return (F32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
BITNET_INLINE void store_f16(uint16_t* p, F32x16 v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
BITNET_INLINE F32x16 load_bf16(const uint16_t* p) {
  return (F32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
}
BITNET_INLINE F32x16 load_i8(const int8_t* p) {
  return (F32x16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
BITNET_INLINE void store_low_bytes(int8_t* p, I32x16 v) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
}

BITNET_INLINE __m512i broadcast(const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, 4);
  return _mm512_set1_epi32(four);
}

// One token, shift-free: the masked byte is code * 4^f, so field f has its own sum, which is shifted once at the end. A
// sum of field f grows by at most 2 * 4^f * 128 * 4 a block, so field 3 is safe below 2^31 / 2^16 = 32,768 blocks, or
// 524,288 columns.
BITNET_INLINE __m512i ternary_one(const uint8_t* w, int64_t blocks, const int8_t* q) {
  const __m512i mask[4] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c), _mm512_set1_epi8(0x30),
                           _mm512_set1_epi8((char)0xc0)};
  __m512i even[4], odd[4];  // two blocks in flight, because a product-sum takes longer than a block
  for (int f = 0; f < 4; ++f) even[f] = odd[f] = _mm512_setzero_si512();
  int64_t b = 0;
  for (; b + 2 <= blocks; b += 2) {
    const uint8_t* p = w + b * kBlockBytes;
    prefetch(p + kPrefetchBytes);
    prefetch(p + kPrefetchBytes + kBlockBytes);
    const __m512i v = _mm512_loadu_si512(p), u = _mm512_loadu_si512(p + kBlockBytes);
#pragma GCC unroll 4
    for (int f = 0; f < 4; ++f) {
      even[f] = _mm512_dpbusd_epi32(even[f], _mm512_and_si512(v, mask[f]), broadcast(q + 16 * b + 4 * f));
      odd[f] = _mm512_dpbusd_epi32(odd[f], _mm512_and_si512(u, mask[f]), broadcast(q + 16 * b + 16 + 4 * f));
    }
  }
  if (b < blocks) {
    const __m512i v = _mm512_loadu_si512(w + b * kBlockBytes);
#pragma GCC unroll 4
    for (int f = 0; f < 4; ++f)
      even[f] = _mm512_dpbusd_epi32(even[f], _mm512_and_si512(v, mask[f]), broadcast(q + 16 * b + 4 * f));
  }
  for (int f = 0; f < 4; ++f) even[f] = _mm512_add_epi32(even[f], odd[f]);
  return _mm512_add_epi32(_mm512_add_epi32(even[0], _mm512_srai_epi32(even[1], 2)),
                          _mm512_add_epi32(_mm512_srai_epi32(even[2], 4), _mm512_srai_epi32(even[3], 6)));
}

// M tokens by G row groups: each field is moved to scale 1 once and serves all tokens, each broadcast serves all row
// groups.
template <int M, int G>
BITNET_INLINE void ternary_many(const uint8_t* w, int64_t stride, int64_t blocks, const int8_t* panel,
                                I32x16 (&acc)[G][M]) {
  const __m512i low = _mm512_set1_epi8(0x03);
  __m512i sum[G][M];
  for (int g = 0; g < G; ++g)
    for (int m = 0; m < M; ++m) sum[g][m] = _mm512_setzero_si512();
  for (int64_t b = 0; b < blocks; ++b) {
    __m512i v[G];
    for (int g = 0; g < G; ++g) {
      // The same block of the next row groups: this one was fetched a pass ago.
      _mm_prefetch((const char*)(w + (G + g) * stride + b * kBlockBytes), _MM_HINT_T1);
      v[g] = _mm512_loadu_si512(w + g * stride + b * kBlockBytes);
    }
#pragma GCC unroll 4
    for (int f = 0; f < 4; ++f) {
      __m512i code[G];
      for (int g = 0; g < G; ++g) {
        code[g] = _mm512_and_si512(v[g], low);
        v[g] = _mm512_srli_epi16(v[g], 2);
      }
      const int8_t* q = panel + (4 * b + f) * M * 4;
      for (int m = 0; m < M; ++m) {
        const __m512i four = broadcast(q + 4 * m);
        for (int g = 0; g < G; ++g) sum[g][m] = _mm512_dpbusd_epi32(sum[g][m], code[g], four);
      }
    }
  }
  for (int g = 0; g < G; ++g)
    for (int m = 0; m < M; ++m) acc[g][m] = (I32x16)sum[g][m];
}

template <int M, int G>
BITNET_INLINE void ternary_tile(const uint8_t* w, int64_t stride, int64_t blocks, const int8_t* panel,
                                I32x16 (&acc)[G][M]) {
  if constexpr (M == 1) {
    for (int g = 0; g < G; ++g) acc[g][0] = (I32x16)ternary_one(w + g * stride, blocks, panel);
  } else {
    ternary_many<M, G>(w, stride, blocks, panel, acc);
  }
}

uint64_t read(const uint8_t* p, int64_t bytes) {
  __m512i a = _mm512_setzero_si512(), b = a;
  for (int64_t i = 0; i + 128 <= bytes; i += 128) {
    prefetch(p + i + kPrefetchBytes);
    prefetch(p + i + kPrefetchBytes + 64);
    a = _mm512_add_epi64(a, _mm512_loadu_si512(p + i));
    b = _mm512_add_epi64(b, _mm512_loadu_si512(p + i + 64));
  }
  return (uint64_t)_mm512_reduce_add_epi64(_mm512_add_epi64(a, b));
}

// clang-format off
#include "kernels/avx512_vnni/screen-inl.h"
#include "kernels/algorithms-inl.h"
// clang-format on

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = BITNET_TABLE("avx512_vnni");

}  // namespace bitnet::avx512_vnni
