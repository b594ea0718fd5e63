// The screen of an output head: bounds of every logit from int8 rows and int16 activations.
//
// A target with byte products defines BITNET_SCREEN_TILE and its own screen_tile; this one serves the others.

#ifndef BITNET_SCREEN_TILE
// A product is at most 255 * 32639 < 2^23 in magnitude, so that 256 of them fit into 31 bits; then they are flushed.
constexpr int kFlushProducts = 256;

// out[r] = sum of stored byte * code over all columns, exactly (below 2^53). Written for the compiler to vectorise.
BITNET_INLINE void screen_tile(const uint8_t* w, int64_t blocks, const ScreenToken& x, double* out) {
  for (int r = 0; r < kGroupRows; ++r) out[r] = 0;
  for (int64_t first = 0; first < blocks; first += kFlushProducts) {
    const int64_t last = first + kFlushProducts < blocks ? first + kFlushProducts : blocks;
    int32_t sums[4][16] = {};  // four rows of four columns each
    for (int64_t b = first; b < last; ++b) {
      prefetch(w + 64 * b + kPrefetchBytes);
      int16_t codes[16];  // those of the block, once for each of four rows
      for (int r = 0; r < 4; ++r) __builtin_memcpy(codes + 4 * r, x.codes + kScreenColumns * b, 8);
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 16; ++j) sums[i][j] += (int16_t)w[64 * b + 16 * i + j] * codes[j];
    }
    for (int r = 0; r < kGroupRows; ++r)
      for (int j = 0; j < 4; ++j) out[r] += sums[r / 4][r % 4 * 4 + j];
  }
}
#endif

#ifdef BITNET_SCREEN_TILES
constexpr bool kCoarseScreen = true;
#else
constexpr bool kCoarseScreen = false;  // products of 16 bits cost the same for any code

// P planes of M tokens, and G row groups, one after the other: a row group stays in the first cache.
template <int P, int M, int G>
BITNET_INLINE void screen_tiles(const uint8_t* w, int64_t blocks, const ScreenToken* x, const uint8_t*, int64_t,
                                double (*out)[M][kGroupRows]) {
  for (int g = 0; g < G; ++g)
    for (int m = 0; m < M; ++m) screen_tile(w + 64 * g * blocks, blocks, x[m], out[g][m]);
}
#endif

template <int P, int M, int G>
BITNET_INLINE void screen_tokens(const ScreenTask& task, int64_t group, const ScreenToken* tokens) {
  constexpr int kMost = 8 / P;
  double sums[G][M][kGroupRows];
  const uint8_t* w = task.codes + group * task.blocks * 64;
  const int64_t passes = (task.count + kMost - 1) / kMost, pass = (tokens - task.tokens) / kMost,
                pair = 2 * task.blocks * 64;
  // Of several passes over a pair of row groups each fetches a part of the next pair, for one alone would have to wait.
  const int64_t ahead_bytes = G == 2 && passes > 1 ? 128 / passes : 0;
  screen_tiles<P, M, G>(w, task.blocks, tokens, w + pair + pass * pair / passes, ahead_bytes, sums);
  for (int g = 0; g < G; ++g) {
    const int64_t row = (group + g) * kGroupRows;
    const F32x16 scale = load(task.scales + row), error = load(task.errors + row), norm = load(task.norms + row);
    for (int m = 0; m < M; ++m) {
      const ScreenToken& x = tokens[m];
      float rounded[kGroupRows];
      for (int r = 0; r < kGroupRows; ++r) rounded[r] = (float)(sums[g][m][r] - x.offset);
      const F32x16 approximation = load(rounded) * (scale * fill(x.step));
      const F32x16 radius = error * fill(x.per_error) + norm * fill(x.per_norm) + fill(x.slack);
      const F32x16 lower = approximation - radius, upper = approximation + radius;
      store(x.lower + row, lower);
      store(x.upper + row, upper);
      x.group_lower[group + g] = fold_max(lower);
      x.group_upper[group + g] = fold_max(upper);
    }
  }
}

// P planes of all tokens.
template <int P, int G>
BITNET_INLINE void screen_groups(const ScreenTask& task, int64_t group) {
  int64_t t = 0;
  if constexpr (P == 1)
    for (; t + 8 <= task.count; t += 8) screen_tokens<P, 8, G>(task, group, task.tokens + t);
  for (; t + 4 <= task.count; t += 4) screen_tokens<P, 4, G>(task, group, task.tokens + t);
  for (; t + 2 <= task.count; t += 2) screen_tokens<P, 2, G>(task, group, task.tokens + t);
  for (; t < task.count; ++t) screen_tokens<P, 1, G>(task, group, task.tokens + t);
}

template <int P>
BITNET_INLINE void screen_planes(const ScreenTask& task) {
  int64_t g = 0;
  if (task.count > 1)  // a single token streams the rows in order instead
    for (; g + 2 <= task.row_groups; g += 2) screen_groups<P, 2>(task, g);
  for (; g < task.row_groups; ++g) screen_groups<P, 1>(task, g);
}

void screen(const ScreenTask& task) {
  if constexpr (kCoarseScreen)
    if (task.coarse) return screen_planes<1>(task);
  screen_planes<2>(task);
}

BITNET_INLINE float not_below(double x) {
  float f = (float)x;
  if ((double)f < x) {
    int32_t i;
    __builtin_memcpy(&i, &f, 4);
    ++i;
    __builtin_memcpy(&f, &i, 4);
  }
  return f;
}

// The length of a vector from its lanes' sums of squares; the factor covers the roundings of those sums in double.
BITNET_INLINE float length(const double* squares) {
  double sum = 0;
  for (int l = 0; l < kLanes; ++l) sum += squares[l];
  return not_below(__builtin_sqrt(sum) * (1 + 1e-9));
}

void screen_row(const float* w, int64_t columns, uint8_t* to, float* scale, float* error, float* norm) {
  F32x16 largest = fill(0.0f), differences = fill(0.0f);
  for (int64_t i = 0; i < columns; i += kLanes) {
    const F32x16 v = load(w + i);
    largest = larger(largest, magnitude(v));
    differences = differences + (v - v);  // 0, or not a number where v is not finite
  }
  const float most = fold_max(largest);
  const bool finite = fold_sum(differences) == 0, coded = finite && most >= 1e-30f;
  const float step = coded ? most / 127 : 0, inverse = coded ? 127 / most : 0;
  double errors[kLanes] = {}, norms[kLanes] = {};
  for (int64_t i = 0; i < columns; i += kLanes) {
    const F32x16 v = load(w + i);
    // |v * inverse| exceeds 127 by a rounding at most, so the code does not.
    const F32x16 code = coded ? (v * fill(inverse) + fill(kRounder)) - fill(kRounder) : fill(0.0f);
    float values[kLanes], codes[kLanes];
    store(values, v);
    store(codes, code);
    for (int l = 0; l < kLanes; ++l) {
      const double part = (double)step * codes[l], off = values[l] - part;  // the product is exact
      errors[l] += off * off;
      norms[l] += part * part;
    }
    int8_t bytes[kLanes];
    store_low_bytes(bytes, bits(code + fill(kRounder + 128)));
    for (int j = 0; j < kLanes; j += kScreenColumns)
      __builtin_memcpy(to + (i + j) / kScreenColumns * 64, bytes + j, kScreenColumns);
  }
  *scale = step;
  *error = finite ? length(errors) : __builtin_inff();
  *norm = length(norms);
}
