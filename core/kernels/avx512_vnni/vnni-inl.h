// Everything but one lookup of the targets that have AVX512-VNNI. The including file defines
//
//   __m512i lookup(const uint8_t* table, __m512i index)   table[index & 63], for the tables of T5

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

#define BITNET_LOOKUP_LANES
BITNET_INLINE NativeB lookup_lanes(NativeB table, NativeB index) {
  return (NativeB)_mm512_shuffle_epi8((__m512i)table, (__m512i)index);
}

// A block of T5 as fields 0 to 3, which lie as in T2, and field 4.
struct Block {
  __m512i four, fifth;
};

template <Packing packing>
BITNET_INLINE Block load_block(const uint8_t* p) {
  const __m512i c = _mm512_loadu_si512(p);
  if constexpr (packing == Packing::T2) return {c, c};
  const __m512i high = _mm512_srli_epi16(c, 2);  // what comes from the next byte is in bits 6 and 7
  return {_mm512_xor_si512(lookup(kFiveTrits.a, c), lookup(kFiveTrits.g, high)), lookup(kFiveTrits.h, high)};
}

// One token, shift-free: the masked byte is code * 4^f, so field f has its own sum, which is shifted once at the end;
// field 4 shares that of field 0. A sum of field f < 4 grows by at most 2 * 4^f * 128 * 4 a block, so field 3 is safe
// below 2^31 / 2^16 = 32,768 blocks, or 524,288 columns.
template <Packing packing>
BITNET_INLINE void add_block(const uint8_t* p, const int8_t* q, __m512i (&sum)[4]) {
  const __m512i mask[4] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c), _mm512_set1_epi8(0x30),
                           _mm512_set1_epi8((char)0xc0)};
  const Block v = load_block<packing>(p);
#pragma GCC unroll 4
  for (int f = 0; f < 4; ++f)
    sum[f] = _mm512_dpbusd_epi32(sum[f], _mm512_and_si512(v.four, mask[f]), broadcast(q + 4 * f));
  if constexpr (packing == Packing::T5) sum[0] = _mm512_dpbusd_epi32(sum[0], v.fifth, broadcast(q + 16));
}

template <Packing packing>
BITNET_INLINE __m512i ternary_one(const uint8_t* w, int64_t blocks, const int8_t* q) {
  constexpr int columns = block_columns(packing);
  __m512i even[4], odd[4];  // two blocks in flight, because a product-sum takes longer than a block
  for (int f = 0; f < 4; ++f) even[f] = odd[f] = _mm512_setzero_si512();
  int64_t b = 0;
  for (; b + 2 <= blocks; b += 2) {
    const uint8_t* p = w + b * kBlockBytes;
    prefetch(p + kPrefetchBytes);
    prefetch(p + kPrefetchBytes + kBlockBytes);
    add_block<packing>(p, q + b * columns, even);
    add_block<packing>(p + kBlockBytes, q + (b + 1) * columns, odd);
  }
  if (b < blocks) add_block<packing>(w + b * kBlockBytes, q + b * columns, even);
  for (int f = 0; f < 4; ++f) even[f] = _mm512_add_epi32(even[f], odd[f]);
  return _mm512_add_epi32(_mm512_add_epi32(even[0], _mm512_srai_epi32(even[1], 2)),
                          _mm512_add_epi32(_mm512_srai_epi32(even[2], 4), _mm512_srai_epi32(even[3], 6)));
}

// sum += code * the four bytes at q. Written out because gcc 12 copies and spills the sums around the intrinsic.
BITNET_INLINE void add_products(__m512i& sum, __m512i code, const int8_t* q) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(code), "m"(*(const int32_t*)q));
}

// M tokens by G row groups: each field is moved to scale 1 once and serves all tokens, each broadcast serves all row
// groups.
template <Packing packing, int M, int G>
BITNET_INLINE void ternary_many(const uint8_t* w, int64_t stride, int64_t blocks, const int8_t* panel,
                                I32x16 (&acc)[G][M]) {
  const __m512i low = _mm512_set1_epi8(0x03);
  __m512i sum[G][M];
  for (int g = 0; g < G; ++g)
    for (int m = 0; m < M; ++m) sum[g][m] = _mm512_setzero_si512();
  for (int64_t b = 0; b < blocks; ++b) {
    __m512i v[G], fifth[G];
    for (int g = 0; g < G; ++g) {
      // The same block of the next row groups: this one was fetched a pass ago.
      _mm_prefetch((const char*)(w + (G + g) * stride + b * kBlockBytes), _MM_HINT_T1);
      const Block block = load_block<packing>(w + g * stride + b * kBlockBytes);
      v[g] = block.four, fifth[g] = block.fifth;
    }
    constexpr int F = fields(packing);
#pragma GCC unroll 5
    for (int f = 0; f < F; ++f) {
      __m512i code[G];
      for (int g = 0; g < G; ++g) {
        code[g] = f == 4 ? fifth[g] : _mm512_and_si512(v[g], low);
        v[g] = _mm512_srli_epi16(v[g], 2);
      }
      const int8_t* q = panel + (fields(packing) * b + f) * M * 4;
      for (int m = 0; m < M; ++m)
        for (int g = 0; g < G; ++g) add_products(sum[g][m], code[g], q + 4 * m);
    }
  }
  for (int g = 0; g < G; ++g)
    for (int m = 0; m < M; ++m) acc[g][m] = (I32x16)sum[g][m];
}

template <Packing packing, int M, int G>
BITNET_INLINE void ternary_tile(const uint8_t* w, int64_t stride, int64_t blocks, const int8_t* panel,
                                I32x16 (&acc)[G][M]) {
  if constexpr (M == 1) {
    for (int g = 0; g < G; ++g) acc[g][0] = (I32x16)ternary_one<packing>(w + g * stride, blocks, panel);
  } else {
    ternary_many<packing, M, G>(w, stride, blocks, panel, acc);
  }
}

#include "kernels/avx512_vnni/cells-inl.h"

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
