// Cells by codes with bytes widened to 16 bits, as on AVX2, in registers of 128 bits.
#define BITNET_CELLS
constexpr int kCellTile = 1;

struct CellSum {
  __m128i pairs[8];  // of two lanes each
};

BITNET_INLINE void encode_codes(uint8_t* to, I32x16 rounded) {
  const I32x16 codes = rounded - bits(fill(kRounder));
  _mm_storeu_si128((__m128i*)to, _mm_packs_epi32((__m128i)codes.lo.lo, (__m128i)codes.lo.hi));
  _mm_storeu_si128((__m128i*)(to + 16), _mm_packs_epi32((__m128i)codes.hi.lo, (__m128i)codes.hi.hi));
}

BITNET_INLINE CellSum new_sum(int32_t total) {
  const __m128i first = _mm_setr_epi32(-128 * total, 0, -128 * total, 0);
  return {{first, first, first, first, first, first, first, first}};
}

template <int R, int B>
BITNET_INLINE void add_cells(CellSum (&sums)[R][B], const uint8_t* const (&cells)[B], const uint8_t* codes) {
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g)
    for (int r = 0; r < R; ++r) {
      const __m128i bytes = _mm_loadl_epi64((const __m128i*)(codes + r * kCodedRowBytes + 8 * g)),
                    four = _mm_unpacklo_epi64(bytes, bytes);
      for (int b = 0; b < B; ++b)
        for (int i = 0; i < 8; ++i) {
          const __m128i v = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)(cells[b] + 64 * g + 8 * i)));
          sums[r][b].pairs[i] = _mm_add_epi32(sums[r][b].pairs[i], _mm_madd_epi16(v, four));
        }
    }
}

BITNET_INLINE I32x16 lanes_of(const CellSum& sum) {
  const auto lanes = [&](int i) __attribute__((always_inline)) {
    return (NativeI)_mm_hadd_epi32(sum.pairs[i], sum.pairs[i + 1]);
  };
  return {{lanes(0), lanes(2)}, {lanes(4), lanes(6)}};
}
