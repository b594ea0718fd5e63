// The living definition of the kernels: plain C++ that every CPU runs. The others are compared with it, bit by bit.
#include "kernels/kernels.h"

#define BITNET_VECTOR_BYTES 16

namespace bitnet::scalar {
namespace {

constexpr int kPrefetchBytes = 1024, kDenseRows = 1, kDenseTokens = 1, kAttentionTile = 4;

#include "kernels/simd-inl.h"

BITNET_INLINE void prefetch(const uint8_t* p) { __builtin_prefetch(p); }

BITNET_INLINE float load_half(const uint16_t* p) { return half_to_float(*p); }
BITNET_INLINE F32x16 load_f16(const uint16_t* p) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = half_to_float(p[i]);
  return load(lanes);
}
BITNET_INLINE void store_f16(uint16_t* p, F32x16 v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(lanes[i]);
}
BITNET_INLINE F32x16 load_bf16(const uint16_t* p) {
  int32_t lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = (int32_t)((uint32_t)p[i] << 16);
  return from_bits(load(lanes));
}
BITNET_INLINE F32x16 load_i8(const int8_t* p) {
  int32_t lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = p[i];
  return to_float(load(lanes));
}
BITNET_INLINE void store_low_bytes(int8_t* p, I32x16 v) {
  int32_t lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < kLanes; ++i) p[i] = (int8_t)lanes[i];
}

template <Packing packing, int M, int G>
BITNET_INLINE void ternary_tile(const uint8_t* w, int64_t stride, int64_t blocks, const int8_t* panel,
                                I32x16 (&acc)[G][M]) {
  int32_t sums[G][M][kGroupRows] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    for (int g = 0; g < G; ++g) {
      const uint8_t* block = w + g * stride + b * kBlockBytes;
      for (int f = 0; f < fields(packing); ++f)
        for (int m = 0; m < M; ++m) {
          const int8_t* q = panel + ((fields(packing) * b + f) * M + m) * 4;
          for (int r = 0; r < kGroupRows; ++r)
            for (int j = 0; j < 4; ++j) sums[g][m][r] += code_of(packing, block[4 * r + j], f) * q[j];
        }
    }
  }
  for (int g = 0; g < G; ++g)
    for (int m = 0; m < M; ++m) acc[g][m] = load(sums[g][m]);
}

uint64_t read(const uint8_t* p, int64_t bytes) {
  uint64_t sum = 0;
  for (int64_t i = 0; i + 64 <= bytes; i += 64) {
    prefetch(p + i + kPrefetchBytes);
    uint64_t word;
    __builtin_memcpy(&word, p + i, 8);
    sum += word;
  }
  return sum;
}

#include "kernels/algorithms-inl.h"

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = BITNET_TABLE("scalar");

}  // namespace bitnet::scalar
