// The screen of an output head by product-sums of 256 bits.

// Stored bytes are unsigned and both planes signed, as a product-sum wants them.
#define BITNET_SCREEN_TILE
BITNET_INLINE void screen_tile(const uint8_t* w, int64_t blocks, const ScreenToken& x, double* out) {
  __m256i hi[2], lo[2];
  for (int h = 0; h < 2; ++h) hi[h] = lo[h] = _mm256_setzero_si256();
  for (int64_t b = 0; b < blocks; ++b) {
    prefetch(w + 64 * b + kPrefetchBytes);
    const __m256i high = broadcast(x.planes + 8 * b), low = broadcast(x.planes + 8 * b + 4);
    for (int h = 0; h < 2; ++h) {
      const __m256i v = _mm256_loadu_si256((const __m256i*)(w + 64 * b + 32 * h));
      dot(hi[h], v, high);
      dot(lo[h], v, low);
    }
  }
  for (int h = 0; h < 2; ++h) {
    int32_t high[8], low[8];
    _mm256_storeu_si256((__m256i*)high, hi[h]);
    _mm256_storeu_si256((__m256i*)low, lo[h]);
    for (int r = 0; r < 8; ++r) out[8 * h + r] = 256.0 * high[r] + low[r];
  }
}
