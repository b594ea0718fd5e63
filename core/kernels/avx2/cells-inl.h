// Cells by codes with bytes widened to 16 bits, because maddubs would saturate. A pair of products is below 2^24, and
// whatever overflows in between the result of 32 bits does not.
#define BITNET_CELLS
constexpr int kCellTile = 2;

struct CellSum {
  __m256i pairs[4];  // of four lanes each
};

BITNET_INLINE void encode_codes(uint8_t* to, I32x16 rounded) {
  const I32x16 codes = rounded - bits(fill(kRounder));
  const __m256i both = _mm256_packs_epi32((__m256i)codes.lo, (__m256i)codes.hi);
  _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(both, 0xd8));
}

BITNET_INLINE CellSum new_sum(int32_t total) {
  const __m256i first = _mm256_set1_epi64x((int64_t)(uint32_t)(-128 * total));
  return {{first, first, first, first}};
}

template <int R, int B>
BITNET_INLINE void add_cells(CellSum (&sums)[R][B], const uint8_t* const (&cells)[B], const uint8_t* codes) {
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    __m256i four[R];
    for (int r = 0; r < R; ++r) {
      int64_t bytes;
      __builtin_memcpy(&bytes, codes + r * kCodedRowBytes + 8 * g, 8);
      four[r] = _mm256_set1_epi64x(bytes);
    }
    for (int b = 0; b < B; ++b)
      for (int i = 0; i < 4; ++i) {
        const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(cells[b] + 64 * g + 16 * i)));
        for (int r = 0; r < R; ++r)
          sums[r][b].pairs[i] = _mm256_add_epi32(sums[r][b].pairs[i], _mm256_madd_epi16(v, four[r]));
      }
  }
}

// Lanes 0, 1, 4, 5, 2, 3, 6, 7 become ascending ones.
BITNET_INLINE NativeI eight_lanes(__m256i a, __m256i b) {
  return (NativeI)_mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8);
}
BITNET_INLINE I32x16 lanes_of(const CellSum& sum) {
  return {eight_lanes(sum.pairs[0], sum.pairs[1]), eight_lanes(sum.pairs[2], sum.pairs[3])};
}
