// Loads and stores of 128-bit registers, for every target that has NEON.
#include "kernels/simd-inl.h"

BITNET_INLINE void prefetch(const uint8_t* p) { __builtin_prefetch(p); }

// armv8.0 converts half floats exactly as F16C does: half to even, subnormals kept.
BITNET_INLINE float load_half(const uint16_t* p) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(*p))), 0);
}
BITNET_INLINE Pair<NativeF> load_f16x8(const uint16_t* p) {
  const uint16x8_t v = vld1q_u16(p);
  return {(NativeF)vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(v))),
          (NativeF)vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(v)))};
}
BITNET_INLINE F32x16 load_f16(const uint16_t* p) { return {load_f16x8(p), load_f16x8(p + 8)}; }
BITNET_INLINE void store_f16x8(uint16_t* p, Pair<NativeF> v) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v.lo)));
  vst1_u16(p + 4, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v.hi)));
}
BITNET_INLINE void store_f16(uint16_t* p, F32x16 v) {
  store_f16x8(p, v.lo);
  store_f16x8(p + 8, v.hi);
}
BITNET_INLINE Pair<NativeF> load_bf16x8(const uint16_t* p) {
  const uint16x8_t v = vld1q_u16(p);
  return {(NativeF)vshll_n_u16(vget_low_u16(v), 16), (NativeF)vshll_n_u16(vget_high_u16(v), 16)};
}
BITNET_INLINE F32x16 load_bf16(const uint16_t* p) { return {load_bf16x8(p), load_bf16x8(p + 8)}; }
BITNET_INLINE Pair<NativeF> load_i8x8(const int8_t* p) {
  const int16x8_t v = vmovl_s8(vld1_s8(p));
  return {(NativeF)vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), (NativeF)vcvtq_f32_s32(vmovl_s16(vget_high_s16(v)))};
}
BITNET_INLINE F32x16 load_i8(const int8_t* p) { return {load_i8x8(p), load_i8x8(p + 8)}; }
BITNET_INLINE void store_low_bytes(int8_t* p, I32x16 v) {
  const auto narrow = [](Pair<NativeI> x) __attribute__((always_inline)) {
    return vmovn_s16(vcombine_s16(vmovn_s32((int32x4_t)x.lo), vmovn_s32((int32x4_t)x.hi)));
  };
  vst1q_s8(p, vcombine_s8(narrow(v.lo), narrow(v.hi)));
}

// Sixteen rows from four registers of four.
BITNET_INLINE I32x16 sixteen(const int32x4_t (&v)[4]) {
  return {{(NativeI)v[0], (NativeI)v[1]}, {(NativeI)v[2], (NativeI)v[3]}};
}

BITNET_INLINE int8x16_t broadcast(const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

#define BITNET_LOOKUP_LANES
BITNET_INLINE NativeB lookup_lanes(NativeB table, NativeB index) {
  return (NativeB)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index);
}

// A quarter of a block as fields 0 to 3, which lie as in T2, and field 4.
struct Quarter {
  uint8x16_t four, fifth;
};

BITNET_INLINE uint8x16_t lookup(const uint8_t* table, uint8x16_t index) {
  return vqtbl4q_u8(vld1q_u8_x4(table), index);
}

template <Packing packing>
BITNET_INLINE Quarter load_quarter(const uint8_t* p) {
  const uint8x16_t c = vld1q_u8(p);
  if constexpr (packing == Packing::T2) return {c, c};
  const uint8x16_t low = vandq_u8(c, vdupq_n_u8(63)), high = vshrq_n_u8(c, 2);
  return {veorq_u8(lookup(kFiveTrits.a, low), lookup(kFiveTrits.g, high)), lookup(kFiveTrits.h, high)};
}

// Field f at scale 1.
template <int f>
BITNET_INLINE uint8x16_t field(Quarter v) {
  if constexpr (f == 0) return vandq_u8(v.four, vdupq_n_u8(3));
  if constexpr (f == 1 || f == 2) return vandq_u8(vshrq_n_u8(v.four, 2 * f), vdupq_n_u8(3));
  if constexpr (f == 3) return vshrq_n_u8(v.four, 6);
  return v.fifth;
}

uint64_t read(const uint8_t* p, int64_t bytes) {
  uint64x2_t a = vdupq_n_u64(0), b = a;
  for (int64_t i = 0; i + 64 <= bytes; i += 64) {
    prefetch(p + i + kPrefetchBytes);
    a = vaddq_u64(a, vreinterpretq_u64_u8(veorq_u8(vld1q_u8(p + i), vld1q_u8(p + i + 16))));
    b = vaddq_u64(b, vreinterpretq_u64_u8(veorq_u8(vld1q_u8(p + i + 32), vld1q_u8(p + i + 48))));
  }
  a = vaddq_u64(a, b);
  return vgetq_lane_u64(a, 0) + vgetq_lane_u64(a, 1);
}
