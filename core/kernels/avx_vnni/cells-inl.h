// Cells by codes in product-sums of 256 bits. Stored bytes are unsigned and both planes of a code signed, as a
// product-sum wants them: 16 codes are 16 high bytes, then 16 low ones.
#define BITNET_CELLS
constexpr int kCellTile = 2;

struct CellSum {
  __m256i hi[2], lo[2];  // of eight lanes each
};

BITNET_INLINE void encode_codes(uint8_t* to, I32x16 rounded) {
  store_low_bytes((int8_t*)to, shift_right(rounded + fill(128), 8));
  store_low_bytes((int8_t*)to + 16, rounded);
}

BITNET_INLINE CellSum new_sum(int32_t total) {
  const __m256i zero = _mm256_setzero_si256(), first = _mm256_set1_epi32(-128 * total);
  return {{zero, zero}, {first, first}};
}

template <int R, int B>
BITNET_INLINE void add_cells(CellSum (&sums)[R][B], const uint8_t* const (&cells)[B], const uint8_t* codes) {
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g)
    for (int b = 0; b < B; ++b) {
      const __m256i v[2] = {_mm256_loadu_si256((const __m256i*)(cells[b] + 64 * g)),
                            _mm256_loadu_si256((const __m256i*)(cells[b] + 64 * g + 32))};
      for (int r = 0; r < R; ++r) {
        const int8_t* four = (const int8_t*)codes + r * kCodedRowBytes + 4 * g;
        const __m256i hi = broadcast(four), lo = broadcast(four + 16);
        for (int h = 0; h < 2; ++h) {
          dot(sums[r][b].hi[h], v[h], hi);
          dot(sums[r][b].lo[h], v[h], lo);
        }
      }
    }
}

BITNET_INLINE I32x16 lanes_of(const CellSum& sum) {
  return {((NativeI)sum.hi[0] << 8) + (NativeI)sum.lo[0], ((NativeI)sum.hi[1] << 8) + (NativeI)sum.lo[1]};
}
