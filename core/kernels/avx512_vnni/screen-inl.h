// The screen of an output head by product-sums of 512 bits.

// Stored bytes are unsigned and both planes signed, as a product-sum wants them. Few tokens keep several blocks in
// flight, because a product-sum takes longer than a block.
#define BITNET_SCREEN_TILE
#define BITNET_SCREEN_TILES
template <int M>
BITNET_INLINE void screen_tiles(const uint8_t* w, int64_t blocks, const ScreenToken* x, double (*out)[kGroupRows]) {
  constexpr int S = 4 / M;
  __m512i hi[S][M], lo[S][M];
  for (int s = 0; s < S; ++s)
    for (int m = 0; m < M; ++m) hi[s][m] = lo[s][m] = _mm512_setzero_si512();
  for (int64_t b = 0; b < blocks; b += S) {  // columns are a multiple of 16, so blocks are one of 4
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      const uint8_t* p = w + 64 * (b + s);
      prefetch(p + kPrefetchBytes);
      const __m512i v = _mm512_loadu_si512(p);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        hi[s][m] = _mm512_dpbusd_epi32(hi[s][m], v, broadcast(x[m].planes + 8 * (b + s)));
        lo[s][m] = _mm512_dpbusd_epi32(lo[s][m], v, broadcast(x[m].planes + 8 * (b + s) + 4));
      }
    }
  }
  const __m512d step = _mm512_set1_pd(256);
  for (int m = 0; m < M; ++m) {
    __m512i h = hi[0][m], l = lo[0][m];
    for (int s = 1; s < S; ++s) h = _mm512_add_epi32(h, hi[s][m]), l = _mm512_add_epi32(l, lo[s][m]);
    _mm512_storeu_pd(out[m], _mm512_add_pd(_mm512_mul_pd(_mm512_cvtepi32_pd(_mm512_castsi512_si256(h)), step),
                                           _mm512_cvtepi32_pd(_mm512_castsi512_si256(l))));
    _mm512_storeu_pd(out[m] + 8, _mm512_add_pd(_mm512_mul_pd(_mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(h, 1)), step),
                                               _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(l, 1))));
  }
}
