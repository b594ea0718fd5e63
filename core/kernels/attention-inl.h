// Softmax attention of query rows that share one key-value head, over one segment of a sequence. Every score is a sum
// over head_dim in ascending order, every output a sum over positions in ascending order: tiles and threads cannot
// change a bit.
//
// Pages are taken in chunks that stay in the first cache. Where several tiles of rows pass over a chunk it is decoded
// to floats once; a single tile decodes as it reads.

template <KVType type>
BITNET_INLINE F32x16 load_cached(const uint8_t* p, int64_t index) {
  return type == KVType::F16 ? load_f16((const uint16_t*)p + index) : load((const float*)p + index);
}

constexpr int kAttentionRows = 4;  // of a tile; leftover rows form tiles of two and one
constexpr int at_most(int n, int limit) { return n < limit ? n : limit; }

// Scores of R rows against B pages. `ahead`: pages to fetch meanwhile, or null.
template <KVType type, int R, int B>
BITNET_INLINE void score_tile(const AttentionTask& task, const uint8_t* const* keys, const uint8_t* const* ahead,
                              const float* q, float* scores) {
  constexpr int64_t bytes = type == KVType::F16 ? 2 : 4;
  F32x16 acc[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) acc[r][b] = fill(0.0f);
  const int64_t head_dim = task.head_dim;
  for (int64_t d = 0; d < head_dim; ++d) {
    F32x16 k[B];
    for (int b = 0; b < B; ++b) {
      if (ahead) prefetch(ahead[b] + d * kPagePositions * bytes);
      k[b] = load_cached<type>(keys[b], d * kPagePositions);
    }
    for (int r = 0; r < R; ++r) {
      const F32x16 broadcast = fill(q[r * head_dim + d]);
      for (int b = 0; b < B; ++b) acc[r][b] = acc[r][b] + k[b] * broadcast;
    }
  }
  const F32x16 factor = fill(task.scale);
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) store(scores + r * kSegmentPositions + b * kPagePositions, acc[r][b] * factor);
}

// Scores of R rows against the pages of a chunk.
template <KVType type, int R>
BITNET_INLINE void score_rows(const AttentionTask& task, int64_t row, const uint8_t* const* keys,
                              const uint8_t* const* ahead, int64_t pages, float* scores) {
  constexpr int B = at_most(kAttentionTile / R, kChunkPages);
  const float* q = task.q + row * task.head_dim;
  int64_t page = 0;
  for (; page + B <= pages; page += B) {
    if (ahead) {
      score_tile<type, R, B>(task, keys + page, ahead + page, q, scores + page * kPagePositions);
    } else {
      score_tile<type, R, B>(task, keys + page, nullptr, q, scores + page * kPagePositions);
    }
  }
  for (; page < pages; ++page) score_tile<type, R, 1>(task, keys + page, nullptr, q, scores + page * kPagePositions);
}

// out[row ..][column ..] of R rows and D vectors, plus weight * value over positions [first, last) of a chunk.
template <KVType type, int R, int D>
BITNET_INLINE void weigh_tile(const AttentionTask& task, int64_t row, int64_t column, const uint8_t* const* values,
                              const uint8_t* const* ahead, int64_t first, int64_t last, const float* weights) {
  constexpr int64_t bytes = type == KVType::F16 ? 2 : 4;
  const int64_t head_dim = task.head_dim;
  float* out = task.out + row * head_dim + column;
  // A last vector may reach into the next row of values (there is slack behind the last one); those lanes are dropped.
  const int64_t whole = column + D * kLanes <= head_dim ? kLanes : head_dim - column;
  F32x16 acc[R][D];
  for (int r = 0; r < R; ++r)
    for (int d = 0; d < D; ++d)
      acc[r][d] = whole == kLanes ? load(out + r * head_dim + d * kLanes) : load_part(out + r * head_dim, whole);
  while (first < last) {
    const int64_t page = first / kPagePositions, end = (page + 1) * kPagePositions;
    const uint8_t* p = values[page] + (first % kPagePositions * head_dim + column) * bytes;
    const int64_t distance = ahead ? ahead[page] - values[page] : 0;
    for (const int64_t stop = last < end ? last : end; first < stop; ++first, p += head_dim * bytes) {
      F32x16 v[D];
      for (int d = 0; d < D; ++d) {
        if (ahead) prefetch(p + distance + d * kLanes * bytes);
        v[d] = load_cached<type>(p, d * kLanes);
      }
      for (int r = 0; r < R; ++r) {
        const F32x16 w = fill(weights[r * kSegmentPositions + first]);
        for (int d = 0; d < D; ++d) acc[r][d] = acc[r][d] + w * v[d];
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int d = 0; d < D; ++d) {
      if (whole == kLanes) {
        store(out + r * head_dim + d * kLanes, acc[r][d]);
      } else {
        store_part(out + r * head_dim, acc[r][d], whole);
      }
    }
}

template <KVType type, int R>
BITNET_INLINE void weigh_positions(const AttentionTask& task, int64_t row, const uint8_t* const* values,
                                   const uint8_t* const* ahead, int64_t first, int64_t last, const float* weights) {
  constexpr int D = at_most(kAttentionTile / R, 8);
  int64_t column = 0;
  for (; column + D * kLanes <= task.head_dim; column += D * kLanes) {
    if (ahead) {
      weigh_tile<type, R, D>(task, row, column, values, ahead, first, last, weights);
    } else {
      weigh_tile<type, R, D>(task, row, column, values, nullptr, first, last, weights);
    }
  }
  for (; column < task.head_dim; column += kLanes)
    weigh_tile<type, R, 1>(task, row, column, values, nullptr, first, last, weights);
}

// R rows share the positions that all of them attend; the later rows then go on alone.
template <KVType type, int R>
BITNET_INLINE void weigh_rows(const AttentionTask& task, int64_t row, const uint8_t* const* values,
                              const uint8_t* const* ahead, int64_t before, int64_t size, const float* weights) {
  int64_t common = task.counts[row] - before;
  common = common < 0 ? 0 : common < size ? common : size;
  if (common) weigh_positions<type, R>(task, row, values, ahead, 0, common, weights);
  for (int r = 1; r < R; ++r) {
    const int64_t left = task.counts[row + r] - before, last = left < size ? left : size;
    if (last > common)
      weigh_positions<type, 1>(task, row + r, values, nullptr, common, last, weights + r * kSegmentPositions);
  }
}

// Scores to exp(score - max), in place and as `use` changes them; scores beyond the last position become 0.
template <class Use>
BITNET_INLINE void soften(float* scores, int64_t count, float* max, float* sum, Use use) {
  for (int64_t i = count; i % kLanes; ++i) scores[i] = -__builtin_inff();
  F32x16 top = load(scores);
  for (int64_t i = kLanes; i < count; i += kLanes) top = larger(top, load(scores + i));
  *max = fold_max(top);
  F32x16 total = fill(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32x16 e = exponential(load(scores + i) - fill(*max));
    store(scores + i, use(i, e));
    total = total + e;
  }
  *sum = fold_sum(total);
}

// Pages of a chunk as floats.
void decode_pages(const AttentionTask& task, const uint8_t* const* from, int64_t pages, const uint8_t** decoded) {
  const int64_t size = task.head_dim * kPagePositions;
  for (int64_t i = 0; i < pages; ++i) {
    float* to = task.scratch + i * size;
    const int64_t distance = from[i + kChunkPages] - from[i];
    for (int64_t e = 0; e < size; e += kLanes) {
      prefetch(from[i] + 2 * e + distance);
      store(to + e, load_cached<KVType::F16>(from[i], e));
    }
    decoded[i] = (const uint8_t*)to;
  }
}

// R rows over the keys or values of one chunk, which begins after `before` positions.
template <KVType type, bool of_keys, int R>
void attend_rows(const AttentionTask& task, int64_t row, const uint8_t* const* chunk, const uint8_t* const* ahead,
                 int64_t before, int64_t pages) {
  float* scores = task.scores + row * kSegmentPositions + before;
  if (of_keys) {
    const int64_t wanted = (task.counts[row + R - 1] - before + kPagePositions - 1) / kPagePositions;
    score_rows<type, R>(task, row, chunk, ahead, wanted < pages ? wanted : pages, scores);
  } else {
    weigh_rows<type, R>(task, row, chunk, ahead, before, pages * kPagePositions, scores);
  }
}

// All rows over one chunk; the first tile fetches the next one.
template <KVType type, bool of_keys>
BITNET_INLINE void attend_chunk(const AttentionTask& task, const uint8_t* const* chunk, const uint8_t* const* ahead,
                                int64_t before, int64_t pages) {
  int64_t row = 0;
  for (; row + kAttentionRows <= task.rows; row += kAttentionRows, ahead = nullptr)
    attend_rows<type, of_keys, kAttentionRows>(task, row, chunk, ahead, before, pages);
  for (; row + 2 <= task.rows; row += 2, ahead = nullptr)
    attend_rows<type, of_keys, 2>(task, row, chunk, ahead, before, pages);
  for (; row < task.rows; ++row, ahead = nullptr) attend_rows<type, of_keys, 1>(task, row, chunk, ahead, before, pages);
}

template <bool of_keys>
BITNET_INLINE void attend_pages(const AttentionTask& task, const uint8_t* const* pages, int64_t count) {
  for (int64_t page = 0; page < count; page += kChunkPages) {
    const int64_t n = count - page < kChunkPages ? count - page : kChunkPages, before = page * kPagePositions;
    const uint8_t* const* chunk = pages + page;
    if (task.type == KVType::F32) {
      attend_chunk<KVType::F32, of_keys>(task, chunk, chunk + kChunkPages, before, n);
    } else if (task.rows > kAttentionRows) {
      const uint8_t* decoded[kChunkPages];
      decode_pages(task, chunk, n, decoded);
      attend_chunk<KVType::F32, of_keys>(task, decoded, nullptr, before, n);
    } else {
      attend_chunk<KVType::F16, of_keys>(task, chunk, chunk + kChunkPages, before, n);
    }
  }
}

void attend_floats(const AttentionTask& task) {
  const int64_t pages = (task.counts[task.rows - 1] + kPagePositions - 1) / kPagePositions;
  attend_pages<true>(task, task.pages, pages);
  for (int64_t r = 0; r < task.rows; ++r)
    soften(task.scores + r * kSegmentPositions, task.counts[r], task.max + r, task.sum + r,
           [](int64_t, F32x16 e) __attribute__((always_inline)) { return e; });
  __builtin_memset(task.out, 0, (size_t)(task.rows * task.head_dim) * 4);
  attend_pages<false>(task, task.pages + pages, pages);
}

BITNET_INLINE float exponential_of(float x) {
  float lanes[kLanes];
  store(lanes, exponential(fill(x)));
  return lanes[0];
}

void attend_merge(float* max, float* sum, float* out, const float* part_max, const float* part_sum,
                  const float* part_out, int64_t rows, int64_t head_dim) {
  for (int64_t r = 0; r < rows; ++r) {
    const float top = max[r] > part_max[r] ? max[r] : part_max[r];
    const float a = exponential_of(max[r] - top), b = exponential_of(part_max[r] - top);
    max[r] = top;
    sum[r] = sum[r] * a + part_sum[r] * b;
    float* y = out + r * head_dim;
    const float* part = part_out + r * head_dim;
    for (int64_t i = 0; i < head_dim; ++i) y[i] = y[i] * a + part[i] * b;
  }
}

void attend_finish(float* out, const float* sum, int64_t rows, int64_t head_dim) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < head_dim; ++i) out[r * head_dim + i] = out[r * head_dim + i] / sum[r];
}

// One token's k and v (kv_heads, head_dim) into position `slot` of a page.
void store_floats(const float* k, const float* v, int64_t kv_heads, int64_t head_dim, KVType type, uint8_t* keys,
                  uint8_t* values, int64_t slot) {
  const int64_t head_bytes = page_bytes(type, head_dim);
  for (int64_t h = 0; h < kv_heads; ++h) {
    const float *from_k = k + h * head_dim, *from_v = v + h * head_dim;
    if (type == KVType::F16) {
      uint16_t* to = (uint16_t*)(keys + h * head_bytes) + slot;
      for (int64_t d = 0; d < head_dim; d += kLanes) {
        const int64_t n = head_dim - d < kLanes ? head_dim - d : kLanes;
        uint16_t half[kLanes];
        store_f16(half, n == kLanes ? load(from_k + d) : load_part(from_k + d, n));
        for (int64_t i = 0; i < n; ++i) to[(d + i) * kPagePositions] = half[i];
      }
      encode_f16(from_v, head_dim, (uint16_t*)(values + h * head_bytes) + slot * head_dim);
    } else {
      float* to = (float*)(keys + h * head_bytes) + slot;
      for (int64_t d = 0; d < head_dim; ++d) to[d * kPagePositions] = from_k[d];
      __builtin_memcpy((float*)(values + h * head_bytes) + slot * head_dim, from_v, (size_t)head_dim * 4);
    }
  }
}
