// The screen of an output head by product-sums of 512 bits.

// Stored bytes are unsigned and both planes signed, as a product-sum wants them. Few sums keep several blocks in
// flight, because a product-sum takes longer than a block; two row groups share each broadcast.
#define BITNET_SCREEN_TILE
#define BITNET_SCREEN_TILES
template <int P, int M, int G>
BITNET_INLINE void screen_tiles(const uint8_t* w, int64_t blocks, const ScreenToken* x, const uint8_t* ahead,
                                int64_t ahead_bytes, double (*out)[M][kGroupRows]) {
  constexpr int S = M * G < 4 ? 4 / (M * G) : 1;
  __m512i hi[S][G][M], lo[S][G][M];
  for (int s = 0; s < S; ++s)
    for (int g = 0; g < G; ++g)
      for (int m = 0; m < M; ++m) hi[s][g][m] = lo[s][g][m] = _mm512_setzero_si512();
  for (int64_t b = 0; b < blocks; b += S) {  // columns are a multiple of 16, so blocks are one of 4
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      __m512i v[G];
      if (ahead_bytes) _mm_prefetch((const char*)(ahead + (b + s) * ahead_bytes), _MM_HINT_T1);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        const uint8_t* p = w + 64 * (g * blocks + b + s);
        if (!ahead_bytes) prefetch(p + kPrefetchBytes);
        v[g] = _mm512_loadu_si512(p);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const int8_t* planes = x[m].planes + 4 * P * (b + s);
#pragma GCC unroll 2
        for (int g = 0; g < G; ++g) {
          add_products(hi[s][g][m], v[g], planes);
          if constexpr (P == 2) add_products(lo[s][g][m], v[g], planes + 4);
        }
      }
    }
  }
  const __m512d step = _mm512_set1_pd(256);
  for (int g = 0; g < G; ++g)
    for (int m = 0; m < M; ++m) {
      __m512i h = hi[0][g][m], l = lo[0][g][m];
      for (int s = 1; s < S; ++s) h = _mm512_add_epi32(h, hi[s][g][m]), l = _mm512_add_epi32(l, lo[s][g][m]);
      const __m512d first = _mm512_cvtepi32_pd(_mm512_castsi512_si256(h)),
                    second = _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(h, 1));
      double* to = out[g][m];
      _mm512_storeu_pd(to, _mm512_add_pd(_mm512_mul_pd(first, step), _mm512_cvtepi32_pd(_mm512_castsi512_si256(l))));
      _mm512_storeu_pd(to + 8,
                       _mm512_add_pd(_mm512_mul_pd(second, step), _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(l, 1))));
    }
}
