// Cells by codes in product-sums of 512 bits. Stored bytes are unsigned and both planes of a code signed, as a
// product-sum wants them: 16 codes are 16 high bytes, then 16 low ones.
#define BITNET_CELLS
constexpr int kCellTile = 8;

struct CellSum {
  __m512i hi, lo;
};

BITNET_INLINE void encode_codes(uint8_t* to, I32x16 rounded) {
  store_low_bytes((int8_t*)to, shift_right(rounded + fill(128), 8));
  store_low_bytes((int8_t*)to + 16, rounded);
}

BITNET_INLINE CellSum new_sum(int32_t total) { return {_mm512_setzero_si512(), _mm512_set1_epi32(-128 * total)}; }

template <int R, int B>
BITNET_INLINE void add_cells(CellSum (&sums)[R][B], const uint8_t* const (&cells)[B], const uint8_t* codes) {
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    __m512i v[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) v[b] = _mm512_loadu_si512(cells[b] + 64 * g);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int8_t* four = (const int8_t*)codes + r * kCodedRowBytes + 4 * g;
      const __m512i hi = broadcast(four), lo = broadcast(four + 16);
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) {
        sums[r][b].hi = _mm512_dpbusd_epi32(sums[r][b].hi, v[b], hi);
        sums[r][b].lo = _mm512_dpbusd_epi32(sums[r][b].lo, v[b], lo);
      }
    }
  }
}

BITNET_INLINE I32x16 lanes_of(const CellSum& sum) {
  return (I32x16)_mm512_add_epi32(_mm512_slli_epi32(sum.hi, 8), sum.lo);
}
