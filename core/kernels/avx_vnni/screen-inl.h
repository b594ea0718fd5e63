// The screen of an output head by product-sums of 256 bits.

// Stored bytes are unsigned and both planes signed, as a product-sum wants them.
template <int P>
BITNET_INLINE void screen_tile(const uint8_t* w, int64_t blocks, const ScreenToken& x, double* out) {
  __m256i hi[2], lo[2];
  for (int h = 0; h < 2; ++h) hi[h] = lo[h] = _mm256_setzero_si256();
  for (int64_t b = 0; b < blocks; ++b) {
    prefetch(w + 64 * b + kPrefetchBytes);
    const int8_t* planes = x.planes + 4 * P * b;
    for (int h = 0; h < 2; ++h) {
      const __m256i v = _mm256_loadu_si256((const __m256i*)(w + 64 * b + 32 * h));
      dot(hi[h], v, broadcast(planes));
      if constexpr (P == 2) dot(lo[h], v, broadcast(planes + 4));
    }
  }
  for (int h = 0; h < 2; ++h) {
    int32_t high[8], low[8];
    _mm256_storeu_si256((__m256i*)high, hi[h]);
    _mm256_storeu_si256((__m256i*)low, lo[h]);
    for (int r = 0; r < 8; ++r) out[8 * h + r] = 256.0 * high[r] + low[r];
  }
}

#define BITNET_SCREEN_TILE
#define BITNET_SCREEN_TILES
template <int P, int M, int G>
BITNET_INLINE void screen_tiles(const uint8_t* w, int64_t blocks, const ScreenToken* x, const uint8_t*, int64_t,
                                double (*out)[M][kGroupRows]) {
  for (int g = 0; g < G; ++g)
    for (int m = 0; m < M; ++m) screen_tile<P>(w + 64 * g * blocks, blocks, x[m], out[g][m]);
}
