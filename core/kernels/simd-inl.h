// Sixteen lanes on every instruction set. A wide vector is a native one or a pair of half as wide ones, so that every
// target does the same IEEE operations in the same order: float results are equal to the last bit. (-ffp-contract=off,
// no fast-math.)
//
// The including file defines BITNET_VECTOR_BYTES (64, 32 or 16) and opens its own anonymous namespace.

#define BITNET_INLINE inline __attribute__((always_inline))

#include "kernels/five-trits-inl.h"

// Into the second cache: what is used a segment later would push out of the first one what is used now.
BITNET_INLINE void prefetch_far(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

template <class Half>
struct Pair {
  Half lo, hi;
};

typedef float NativeF __attribute__((vector_size(BITNET_VECTOR_BYTES)));
typedef int32_t NativeI __attribute__((vector_size(BITNET_VECTOR_BYTES)));
typedef uint32_t NativeU __attribute__((vector_size(BITNET_VECTOR_BYTES)));
typedef uint8_t NativeB __attribute__((vector_size(BITNET_VECTOR_BYTES)));

#if BITNET_VECTOR_BYTES == 64
using F32x16 = NativeF;
using I32x16 = NativeI;
#elif BITNET_VECTOR_BYTES == 32
using F32x16 = Pair<NativeF>;
using I32x16 = Pair<NativeI>;
#else
using F32x16 = Pair<Pair<NativeF>>;
using I32x16 = Pair<Pair<NativeI>>;
#endif

#define BITNET_PAIRWISE(op)                                 \
  template <class H>                                        \
  BITNET_INLINE Pair<H> operator op(Pair<H> a, Pair<H> b) { \
    return {a.lo op b.lo, a.hi op b.hi};                    \
  }
BITNET_PAIRWISE(+)
BITNET_PAIRWISE(-)
BITNET_PAIRWISE(*)
BITNET_PAIRWISE(/)
BITNET_PAIRWISE(&)
#undef BITNET_PAIRWISE
template <class H>
BITNET_INLINE Pair<H> operator<<(Pair<H> a, int n) {
  return {a.lo << n, a.hi << n};
}
template <class H>
BITNET_INLINE Pair<H> operator>>(Pair<H> a, int n) {
  return {a.lo >> n, a.hi >> n};
}

template <class T>
struct Wide;  // how to make and take apart a wide value

template <>
struct Wide<NativeF> {
  static constexpr int kLanes = BITNET_VECTOR_BYTES / 4;
  static BITNET_INLINE NativeF fill(float x) { return x - NativeF{}; }  // x - 0 is x, also for -0
  static BITNET_INLINE NativeF load(const float* p) {
    NativeF v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static BITNET_INLINE void store(float* p, NativeF v) { __builtin_memcpy(p, &v, sizeof v); }
};
template <>
struct Wide<NativeI> {
  static constexpr int kLanes = BITNET_VECTOR_BYTES / 4;
  static BITNET_INLINE NativeI fill(int32_t x) { return x - NativeI{}; }
  static BITNET_INLINE NativeI load(const int32_t* p) {
    NativeI v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static BITNET_INLINE void store(int32_t* p, NativeI v) { __builtin_memcpy(p, &v, sizeof v); }
};
template <class H>
struct Wide<Pair<H>> {
  static constexpr int kLanes = 2 * Wide<H>::kLanes;
  template <class T>
  static BITNET_INLINE Pair<H> fill(T x) {
    return {Wide<H>::fill(x), Wide<H>::fill(x)};
  }
  template <class T>
  static BITNET_INLINE Pair<H> load(const T* p) {
    return {Wide<H>::load(p), Wide<H>::load(p + Wide<H>::kLanes)};
  }
  template <class T>
  static BITNET_INLINE void store(T* p, Pair<H> v) {
    Wide<H>::store(p, v.lo);
    Wide<H>::store(p + Wide<H>::kLanes, v.hi);
  }
};

BITNET_INLINE F32x16 fill(float x) { return Wide<F32x16>::fill(x); }
BITNET_INLINE F32x16 load(const float* p) { return Wide<F32x16>::load(p); }
BITNET_INLINE void store(float* p, F32x16 v) { Wide<F32x16>::store(p, v); }
BITNET_INLINE I32x16 load(const int32_t* p) { return Wide<I32x16>::load(p); }
BITNET_INLINE void store(int32_t* p, I32x16 v) { Wide<I32x16>::store(p, v); }
BITNET_INLINE I32x16 fill(int32_t x) { return Wide<I32x16>::fill(x); }

BITNET_INLINE NativeF larger(NativeF a, NativeF b) { return a > b ? a : b; }
BITNET_INLINE NativeF smaller(NativeF a, NativeF b) { return a < b ? a : b; }
BITNET_INLINE NativeF magnitude(NativeF a) { return (NativeF)((NativeU)a & 0x7fffffffu); }
BITNET_INLINE NativeI bits(NativeF a) { return (NativeI)a; }
BITNET_INLINE NativeF from_bits(NativeI a) { return (NativeF)a; }
BITNET_INLINE NativeI shift_left(NativeI a, int n) { return a << n; }
BITNET_INLINE NativeI shift_right(NativeI a, int n) { return a >> n; }
BITNET_INLINE NativeF to_float(NativeI a) { return __builtin_convertvector(a, NativeF); }
// x where a >= b, else 0
BITNET_INLINE NativeF where_ge(NativeF a, NativeF b, NativeF x) { return a >= b ? x : NativeF{}; }

template <class H>
BITNET_INLINE Pair<H> larger(Pair<H> a, Pair<H> b) {
  return {larger(a.lo, b.lo), larger(a.hi, b.hi)};
}
template <class H>
BITNET_INLINE Pair<H> smaller(Pair<H> a, Pair<H> b) {
  return {smaller(a.lo, b.lo), smaller(a.hi, b.hi)};
}
template <class H>
BITNET_INLINE Pair<H> magnitude(Pair<H> a) {
  return {magnitude(a.lo), magnitude(a.hi)};
}
template <class H>
BITNET_INLINE auto bits(Pair<H> a) -> Pair<decltype(bits(a.lo))> {
  return {bits(a.lo), bits(a.hi)};
}
template <class H>
BITNET_INLINE Pair<H> shift_left(Pair<H> a, int n) {
  return {shift_left(a.lo, n), shift_left(a.hi, n)};
}
template <class H>
BITNET_INLINE Pair<H> shift_right(Pair<H> a, int n) {
  return {shift_right(a.lo, n), shift_right(a.hi, n)};
}
template <class H>
BITNET_INLINE Pair<H> where_ge(Pair<H> a, Pair<H> b, Pair<H> x) {
  return {where_ge(a.lo, b.lo, x.lo), where_ge(a.hi, b.hi, x.hi)};
}
#if BITNET_VECTOR_BYTES == 32
BITNET_INLINE F32x16 from_bits(I32x16 a) { return {from_bits(a.lo), from_bits(a.hi)}; }
BITNET_INLINE F32x16 to_float(I32x16 a) { return {to_float(a.lo), to_float(a.hi)}; }
#elif BITNET_VECTOR_BYTES == 16
BITNET_INLINE Pair<NativeF> from_bits(Pair<NativeI> a) { return {from_bits(a.lo), from_bits(a.hi)}; }
BITNET_INLINE Pair<NativeF> to_float(Pair<NativeI> a) { return {to_float(a.lo), to_float(a.hi)}; }
BITNET_INLINE F32x16 from_bits(I32x16 a) { return {from_bits(a.lo), from_bits(a.hi)}; }
BITNET_INLINE F32x16 to_float(I32x16 a) { return {to_float(a.lo), to_float(a.hi)}; }
#endif

// Lanes folded as a tree: l with l + 8, then l + 4, l + 2, l + 1.
BITNET_INLINE float fold_sum(NativeF v) {
#if BITNET_VECTOR_BYTES == 64
  v = v + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
  v = v + __builtin_shufflevector(v, v, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
#elif BITNET_VECTOR_BYTES == 32
  v = v + __builtin_shufflevector(v, v, 4, 5, 6, 7, 4, 5, 6, 7);
#endif
  const float a = v[0] + v[2], b = v[1] + v[3];
  return a + b;
}
template <class H>
BITNET_INLINE float fold_sum(Pair<H> v) {
  return fold_sum(v.lo + v.hi);
}
BITNET_INLINE float fold_max(NativeF v) {
#if BITNET_VECTOR_BYTES == 64
  v = larger(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
  v = larger(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7));
#elif BITNET_VECTOR_BYTES == 32
  v = larger(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 4, 5, 6, 7));
#endif
  const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}
template <class H>
BITNET_INLINE float fold_max(Pair<H> v) {
  return fold_max(larger(v.lo, v.hi));
}

// Part of a vector, for lengths that are no multiple of 16; the missing lanes are 0 and are not stored.
BITNET_INLINE F32x16 load_part(const float* p, int64_t n) {
  float buffer[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}
BITNET_INLINE void store_part(float* p, F32x16 v, int64_t n) {
  float buffer[kLanes];
  store(buffer, v);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

// Adding 1.5 * 2^23 leaves a float |x| < 2^22 rounded half to even in its low bits, as an integer in two's complement.
constexpr float kRounder = 12582912.0f;

// exp by 2^n * e^r with n = round(x / ln 2); e^r by the polynomial of Cephes expf. Relative error below 2e-7; 0 below
// -87.
BITNET_INLINE F32x16 exponential(F32x16 x) {
  const F32x16 lowest = fill(-87.0f);
  const F32x16 clamped = smaller(larger(x, lowest), fill(88.0f));
  const F32x16 shifted = clamped * fill(1.44269504088896341f) + fill(kRounder);
  const F32x16 n = shifted - fill(kRounder);
  const F32x16 r = (clamped - n * fill(0.693359375f)) - n * fill(-2.12194440e-4f);
  F32x16 p = fill(1.9875691500e-4f);
  p = p * r + fill(1.3981999507e-3f);
  p = p * r + fill(8.3334519073e-3f);
  p = p * r + fill(4.1665795894e-2f);
  p = p * r + fill(1.6666665459e-1f);
  p = p * r + fill(5.0000001201e-1f);
  p = p * (r * r) + r + fill(1.0f);
  // The low byte of `shifted` is n; moved to the exponent it multiplies by 2^n.
  return where_ge(x, lowest, from_bits(bits(p) + shift_left(bits(shifted), 23)));
}

// Half floats, exactly as F16C converts them (round half to even, subnormals kept), for targets without such
// instructions.

BITNET_INLINE float half_to_float(uint16_t h) {
  // Placing the bits 13 higher gives the value times 2^-112; one multiplication repairs normals and subnormals alike.
  const uint32_t magnitude_bits = (uint32_t)(h & 0x7fff) << 13;
  float value;
  __builtin_memcpy(&value, &magnitude_bits, 4);
  value *= 5.192296858534828e33f;  // 2^112
  uint32_t out;
  __builtin_memcpy(&out, &value, 4);
  if ((h & 0x7c00) == 0x7c00) out = magnitude_bits | 0x7f800000u | ((h & 0x3ff) ? 0x400000u : 0u);
  out |= (uint32_t)(h & 0x8000) << 16;
  __builtin_memcpy(&value, &out, 4);
  return value;
}

BITNET_INLINE uint16_t float_to_half(float x) {
  uint32_t in;
  __builtin_memcpy(&in, &x, 4);
  const uint32_t sign = (in >> 16) & 0x8000;
  in &= 0x7fffffff;
  if (in > 0x7f800000) return (uint16_t)(sign | 0x7e00 | ((in >> 13) & 0x3ff));  // NaN
  if (in >= 0x47800000) return (uint16_t)(sign | 0x7c00);                        // 65536 and more
  if (in < 0x38800000) {  // subnormal: adding 0.5 rounds to multiples of 2^-24, half to even
    float value;
    __builtin_memcpy(&value, &in, 4);
    value += 0.5f;
    __builtin_memcpy(&in, &value, 4);
    return (uint16_t)(sign | (in - 0x3f000000));
  }
  in += 0xfff + ((in >> 13) & 1);  // half to even; may carry up to infinity, which is right
  return (uint16_t)(sign | ((in - 0x38000000) >> 13));
}
