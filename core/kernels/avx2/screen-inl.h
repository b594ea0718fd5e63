// The screen of an output head without product-sums of bytes.

// Bytes widened to 16 bits, because maddubs would saturate. A pair of products is at most 2 * 255 * 32639 < 2^24 in
// magnitude, so that 128 of them fit into 31 bits; then they are flushed to doubles, which hold every sum exactly.
constexpr int kFlushScreen = 128;

#define BITNET_SCREEN_TILE
BITNET_INLINE void screen_tile(const uint8_t* w, int64_t blocks, const ScreenToken& x, double* out) {
  for (int r = 0; r < kGroupRows; ++r) out[r] = 0;
  for (int64_t first = 0; first < blocks; first += kFlushScreen) {
    const int64_t last = first + kFlushScreen < blocks ? first + kFlushScreen : blocks;
    __m256i sums[4];  // of four rows each, in pairs
    for (int i = 0; i < 4; ++i) sums[i] = _mm256_setzero_si256();
    for (int64_t b = first; b < last; ++b) {
      prefetch(w + 64 * b + kPrefetchBytes);
      int64_t codes;
      __builtin_memcpy(&codes, x.codes + kScreenColumns * b, 8);
      const __m256i four = _mm256_set1_epi64x(codes);
      for (int i = 0; i < 4; ++i) {
        const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(w + 64 * b + 16 * i)));
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(v, four));
      }
    }
    for (int i = 0; i < 4; ++i) {
      int32_t pairs[8];
      _mm256_storeu_si256((__m256i*)pairs, sums[i]);
      for (int r = 0; r < 4; ++r) out[4 * i + r] += (double)pairs[2 * r] + pairs[2 * r + 1];
    }
  }
}
