// Loads and stores of 256-bit registers, for every target that has AVX2 and F16C.
#include "kernels/simd-inl.h"

BITNET_INLINE void prefetch(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

BITNET_INLINE float load_half(const uint16_t* p) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(*p))); }
BITNET_INLINE F32x16 load_f16(const uint16_t* p) {
  return {(NativeF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          (NativeF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
BITNET_INLINE void store_f16(uint16_t* p, F32x16 v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph((__m256)v.hi, _MM_FROUND_TO_NEAREST_INT));
}
BITNET_INLINE F32x16 load_bf16(const uint16_t* p) {
  const __m256i v = _mm256_loadu_si256((const __m256i*)p);
  const __m256i lo = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)),
                hi = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1));
  return {(NativeF)_mm256_slli_epi32(lo, 16), (NativeF)_mm256_slli_epi32(hi, 16)};
}
BITNET_INLINE F32x16 load_i8(const int8_t* p) {
  return {(NativeF)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          (NativeF)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
BITNET_INLINE void store_low_bytes(int8_t* p, I32x16 v) {
  // Bytes 0, 4, 8, 12 of each 128-bit half to its first four bytes, then the four quads in order.
  const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                                        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i both =
      _mm256_unpacklo_epi32(_mm256_shuffle_epi8((__m256i)v.lo, pick), _mm256_shuffle_epi8((__m256i)v.hi, pick));
  _mm_storeu_si128((__m128i*)p, _mm_unpacklo_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
}

BITNET_INLINE __m256i broadcast(const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

#define BITNET_LOOKUP_LANES
BITNET_INLINE NativeB lookup_lanes(NativeB table, NativeB index) {
  return (NativeB)_mm256_shuffle_epi8((__m256i)table, (__m256i)index);
}

// A block half of T5 as fields 0 to 3, which lie as in T2, and field 4.
struct Half {
  __m256i four, fifth;
};

BITNET_INLINE __m256i table_part(const uint8_t* table, int part) {
  return _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)(table + 16 * part)));
}

// table[index]; bit 4 of the index is at the top of `bit4`'s bytes, bit 5 at the top of `bit5`'s; `low` has bits 0
// to 3.
BITNET_INLINE __m256i lookup(const uint8_t* table, __m256i low, __m256i bit4, __m256i bit5) {
  const __m256i first = _mm256_blendv_epi8(_mm256_shuffle_epi8(table_part(table, 0), low),
                                           _mm256_shuffle_epi8(table_part(table, 1), low), bit4),
                second = _mm256_blendv_epi8(_mm256_shuffle_epi8(table_part(table, 2), low),
                                            _mm256_shuffle_epi8(table_part(table, 3), low), bit4);
  return _mm256_blendv_epi8(first, second, bit5);
}

template <Packing packing>
BITNET_INLINE Half load_half_block(const uint8_t* p) {
  const __m256i c = _mm256_loadu_si256((const __m256i*)p);
  if constexpr (packing == Packing::T2) return {c, c};
  const __m256i nibble = _mm256_set1_epi8(15), low = _mm256_and_si256(c, nibble),
                high = _mm256_and_si256(_mm256_srli_epi16(c, 2), nibble);
  const __m256i bit4 = _mm256_slli_epi16(c, 3), bit5 = _mm256_slli_epi16(c, 2), bit6 = _mm256_slli_epi16(c, 1);
  const __m256i a = lookup(kFiveTrits.a, low, bit4, bit5);
  return {_mm256_xor_si256(a, lookup(kFiveTrits.g, high, bit6, c)), lookup(kFiveTrits.h, high, bit6, c)};
}

uint64_t read(const uint8_t* p, int64_t bytes) {
  __m256i a = _mm256_setzero_si256(), b = a;
  for (int64_t i = 0; i + 64 <= bytes; i += 64) {
    prefetch(p + i + kPrefetchBytes);
    a = _mm256_add_epi64(a, _mm256_loadu_si256((const __m256i*)(p + i)));
    b = _mm256_add_epi64(b, _mm256_loadu_si256((const __m256i*)(p + i + 32)));
  }
  a = _mm256_add_epi64(a, b);
  return (uint64_t)(_mm256_extract_epi64(a, 0) + _mm256_extract_epi64(a, 1) + _mm256_extract_epi64(a, 2) +
                    _mm256_extract_epi64(a, 3));
}
