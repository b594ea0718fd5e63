// Loads and stores of 128-bit registers with SSE4.1, which converts no half floats.
#include "kernels/simd-inl.h"

BITNET_INLINE void prefetch(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

// half_to_float and float_to_half of simd-inl.h, four at a time. Here subnormals are the difference of two normal
// floats, because some CPUs are slow at products of subnormal ones.
BITNET_INLINE NativeF widen_half(const uint16_t* p) {
  const NativeI h = (NativeI)_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i*)p));
  const NativeI magnitude_bits = (h & 0x7fff) << 13, exponent = h & 0x7c00, rebias = fill(112 << 23).lo.lo;
  const NativeI normal = magnitude_bits + rebias;
  const NativeI special = (normal + rebias) | ((magnitude_bits > 0x1f << 23) & 0x400000);  // infinite, or a quiet NaN
  const NativeI subnormal = bits(from_bits(normal + (1 << 23)) - from_bits(rebias + (1 << 23)));
  const NativeI value = exponent == 0x7c00 ? special : exponent == 0 ? subnormal : normal;
  return from_bits(value | (h & 0x8000) << 16);
}
BITNET_INLINE NativeI narrow_float(NativeF x) {
  const NativeI magnitude_bits = bits(magnitude(x)), odd = magnitude_bits >> 13 & 1;
  const NativeI normal = (magnitude_bits + odd + (0xfff - (112 << 23))) >> 13;
  const NativeI subnormal = bits(from_bits(magnitude_bits) + 0.5f) - (126 << 23);
  const NativeI finite = magnitude_bits < 113 << 23 ? subnormal : normal;
  const NativeI nan = 0x7e00 | (magnitude_bits >> 13 & 0x3ff);
  const NativeI value = magnitude_bits > 255 << 23    ? nan
                        : magnitude_bits >= 143 << 23 ? fill(0x7c00).lo.lo  // 65536 and more
                                                      : finite;
  return value | (bits(x) >> 16 & 0x8000);
}

BITNET_INLINE float load_half(const uint16_t* p) { return half_to_float(*p); }
BITNET_INLINE F32x16 load_f16(const uint16_t* p) {
  return {{widen_half(p), widen_half(p + 4)}, {widen_half(p + 8), widen_half(p + 12)}};
}
BITNET_INLINE void store_f16x8(uint16_t* p, Pair<NativeF> v) {
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32((__m128i)narrow_float(v.lo), (__m128i)narrow_float(v.hi)));
}
BITNET_INLINE void store_f16(uint16_t* p, F32x16 v) {
  store_f16x8(p, v.lo);
  store_f16x8(p + 8, v.hi);
}
BITNET_INLINE Pair<NativeF> load_bf16x8(const uint16_t* p) {
  const __m128i v = _mm_loadu_si128((const __m128i*)p), zero = _mm_setzero_si128();
  return {(NativeF)_mm_unpacklo_epi16(zero, v), (NativeF)_mm_unpackhi_epi16(zero, v)};
}
BITNET_INLINE F32x16 load_bf16(const uint16_t* p) { return {load_bf16x8(p), load_bf16x8(p + 8)}; }
BITNET_INLINE NativeF load_i8x4(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return (NativeF)_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
}
BITNET_INLINE F32x16 load_i8(const int8_t* p) {
  return {{load_i8x4(p), load_i8x4(p + 4)}, {load_i8x4(p + 8), load_i8x4(p + 12)}};
}
BITNET_INLINE void store_low_bytes(int8_t* p, I32x16 v) {
  const __m128i pick = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const auto narrow = [&](Pair<NativeI> x) __attribute__((always_inline)) {
    return _mm_unpacklo_epi32(_mm_shuffle_epi8((__m128i)x.lo, pick), _mm_shuffle_epi8((__m128i)x.hi, pick));
  };
  _mm_storeu_si128((__m128i*)p, _mm_unpacklo_epi64(narrow(v.lo), narrow(v.hi)));
}

BITNET_INLINE __m128i broadcast(const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, 4);
  return _mm_set1_epi32(four);
}

#define BITNET_LOOKUP_LANES
BITNET_INLINE NativeB lookup_lanes(NativeB table, NativeB index) {
  return (NativeB)_mm_shuffle_epi8((__m128i)table, (__m128i)index);
}

// A quarter of a block as fields 0 to 3, which lie as in T2, and field 4.
struct Quarter {
  __m128i four, fifth;
};

// table[index]; bit 4 of the index is at the top of `bit4`'s bytes, bit 5 at the top of `bit5`'s; `low` has bits 0
// to 3.
BITNET_INLINE __m128i lookup(const uint8_t* table, __m128i low, __m128i bit4, __m128i bit5) {
  const __m128i* part = (const __m128i*)table;
  const __m128i first = _mm_blendv_epi8(_mm_shuffle_epi8(part[0], low), _mm_shuffle_epi8(part[1], low), bit4),
                second = _mm_blendv_epi8(_mm_shuffle_epi8(part[2], low), _mm_shuffle_epi8(part[3], low), bit4);
  return _mm_blendv_epi8(first, second, bit5);
}

template <Packing packing>
BITNET_INLINE Quarter load_quarter(const uint8_t* p) {
  const __m128i c = _mm_loadu_si128((const __m128i*)p);
  if constexpr (packing == Packing::T2) return {c, c};
  const __m128i nibble = _mm_set1_epi8(15), low = _mm_and_si128(c, nibble),
                high = _mm_and_si128(_mm_srli_epi16(c, 2), nibble);
  const __m128i bit4 = _mm_slli_epi16(c, 3), bit5 = _mm_slli_epi16(c, 2), bit6 = _mm_slli_epi16(c, 1);
  const __m128i a = lookup(kFiveTrits.a, low, bit4, bit5);
  return {_mm_xor_si128(a, lookup(kFiveTrits.g, high, bit6, c)), lookup(kFiveTrits.h, high, bit6, c)};
}

uint64_t read(const uint8_t* p, int64_t bytes) {
  __m128i a = _mm_setzero_si128(), b = a;
  for (int64_t i = 0; i + 64 <= bytes; i += 64) {
    prefetch(p + i + kPrefetchBytes);
    const __m128i* v = (const __m128i*)(p + i);
    a = _mm_add_epi64(a, _mm_xor_si128(_mm_loadu_si128(v), _mm_loadu_si128(v + 1)));
    b = _mm_add_epi64(b, _mm_xor_si128(_mm_loadu_si128(v + 2), _mm_loadu_si128(v + 3)));
  }
  a = _mm_add_epi64(a, b);
  return (uint64_t)(_mm_cvtsi128_si64(a) + _mm_cvtsi128_si64(_mm_unpackhi_epi64(a, a)));
}
