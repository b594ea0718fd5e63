// The screen of an output head without product-sums of bytes, in registers of 128 bits.

// As on AVX2: pairs of products of 16 bits, 128 of which fit into 31 bits.
constexpr int kFlushScreen = 128;

#define BITNET_SCREEN_TILE
BITNET_INLINE void screen_tile(const uint8_t* w, int64_t blocks, const ScreenToken& x, double* out) {
  for (int r = 0; r < kGroupRows; ++r) out[r] = 0;
  for (int64_t first = 0; first < blocks; first += kFlushScreen) {
    const int64_t last = first + kFlushScreen < blocks ? first + kFlushScreen : blocks;
    __m128i sums[8];  // of two rows each, in pairs
    for (int i = 0; i < 8; ++i) sums[i] = _mm_setzero_si128();
    for (int64_t b = first; b < last; ++b) {
      prefetch(w + 64 * b + kPrefetchBytes);
      const __m128i codes = _mm_loadl_epi64((const __m128i*)(x.codes + kScreenColumns * b)),
                    four = _mm_unpacklo_epi64(codes, codes);
      for (int i = 0; i < 8; ++i) {
        const __m128i v = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)(w + 64 * b + 8 * i)));
        sums[i] = _mm_add_epi32(sums[i], _mm_madd_epi16(v, four));
      }
    }
    for (int i = 0; i < 8; ++i) {
      int32_t pairs[4];
      _mm_storeu_si128((__m128i*)pairs, sums[i]);
      for (int r = 0; r < 2; ++r) out[2 * i + r] += (double)pairs[2 * r] + pairs[2 * r + 1];
    }
  }
}
