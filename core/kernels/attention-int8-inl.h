// Attention over int8 keys and values: whole numbers in both products, floats between them.
//
// A query is x ~ step * codes with codes of 16 bits, so that only the cache's own rounding shows; the weights of a
// segment, exp(score - max) * scale of the value, are another such row. Both products are exact, so that a result
// depends on nothing but the row and the positions that it attends.

// Rows of 16-bit codes, each with its step and the sum of its codes.
struct CodedRows {
  uint8_t* codes;
  float* steps;
  int32_t* totals;

  CodedRows from(int64_t row) const { return {codes + row * kCodedRowBytes, steps + row, totals + row}; }
};

BITNET_INLINE const float* scales_of(const uint8_t* page, int64_t head_dim) {
  return (const float*)(page + cells(head_dim) * kCellBytes);
}

// Row r of `to` from `count` floats, of which `most` is the largest magnitude. Tiny numbers become zeros, and a row
// that is not finite zeros with a step that is not a number.
BITNET_INLINE void encode_row(const float* x, int64_t count, float most, const CodedRows& to, int64_t r) {
  const bool tiny = most < 1e-30f;
  const F32x16 inverse = fill(tiny ? 0.0f : kMostCode / most), rounder = fill(kRounder);
  uint8_t* codes = to.codes + r * kCodedRowBytes;
  F32x16 total = fill(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32x16 v = count - i < kLanes ? load_part(x + i, count - i) : load(x + i), code = v * inverse + rounder;
    encode_codes(codes + 2 * i, bits(code));
    total = total + (code - rounder);  // below 2^24: exact
  }
  const float sum = fold_sum(total);
  to.steps[r] = tiny ? 0.0f : most / kMostCode;
  to.totals[r] = sum == sum ? (int32_t)sum : 0;
  if (sum == sum) return;
  __builtin_memset(codes, 0, (size_t)(cells(count) * 2 * kLanes));
  to.steps[r] = __builtin_nanf("");
}

void encode_queries(const AttentionTask& task, const CodedRows& to) {
  const int64_t head_dim = task.head_dim;
  for (int64_t r = 0; r < task.rows; ++r) {
    const float* q = task.q + r * head_dim;
    F32x16 most = fill(0.0f);
    for (int64_t d = 0; d < head_dim; d += kLanes)
      most = larger(magnitude(head_dim - d < kLanes ? load_part(q + d, head_dim - d) : load(q + d)), most);
    encode_row(q, head_dim, fold_max(most), to, r);
  }
}

// What is soon used into the first cache, and what is used a segment later into the second.
template <int B>
BITNET_INLINE void fetch_cells(const uint8_t* near, const uint8_t* far) {
  for (int line = 0; line < B * kCellBytes; line += 64) {
    prefetch(near + line);
    prefetch_far(far + line);
  }
}

// Scores of R rows against B pages. `ahead`: pages to fetch meanwhile, or null.
template <int R, int B>
BITNET_INLINE void score_cells(const AttentionTask& task, const CodedRows& q, const uint8_t* const* keys,
                               const uint8_t* const* ahead, float* scores) {
  CellSum sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = new_sum(q.totals[r]);
  const int64_t count = cells(task.head_dim);
  for (int64_t c = 0; c < count; ++c) {
    const uint8_t* at[B];
    for (int b = 0; b < B; ++b) {
      at[b] = keys[b] + c * kCellBytes;
      if (ahead) fetch_cells<1>(keys[b + kNearPages] + c * kCellBytes, ahead[b] + c * kCellBytes);
    }
    add_cells<R, B>(sums, at, q.codes + c * 2 * kLanes);
  }
  for (int b = 0; b < B; ++b) {
    if (ahead) prefetch_far(ahead[b] + count * kCellBytes);
    const F32x16 scales = load(scales_of(keys[b], task.head_dim));
    for (int r = 0; r < R; ++r)
      store(scores + r * kSegmentPositions + b * kPagePositions,
            to_float(lanes_of(sums[r][b])) * (scales * fill(q.steps[r] * task.scale)));
  }
}

// R rows against B pages at a time, the last one by one.
template <int R>
void score_cell_rows(const AttentionTask& task, const CodedRows& q, const uint8_t* const* keys,
                     const uint8_t* const* ahead, int64_t pages, float* scores) {
  constexpr int B = at_most(kCellTile / R, kChunkPages);
  int64_t page = 0;
  for (; page + B <= pages; page += B)
    score_cells<R, B>(task, q, keys + page, ahead ? ahead + page : nullptr, scores + page * kPagePositions);
  for (; page < pages; ++page)
    score_cells<R, 1>(task, q, keys + page, ahead ? ahead + page : nullptr, scores + page * kPagePositions);
}

// Calls tile(row, constant number of rows) for all rows.
template <class Tile>
BITNET_INLINE void for_cell_rows(int64_t rows, Tile tile) {
  int64_t row = 0;
  if constexpr (kCellTile >= 4)
    for (; row + 4 <= rows; row += 4) tile.template operator()<4>(row);
  if constexpr (kCellTile >= 2)
    for (; row + 2 <= rows; row += 2) tile.template operator()<2>(row);
  for (; row < rows; ++row) tile.template operator()<1>(row);
}

void score_int8(const AttentionTask& task, const CodedRows& q, int64_t pages) {
  for (int64_t page = 0; page < pages; page += kChunkPages) {
    const uint8_t* const* keys = task.pages + page;
    for_cell_rows(task.rows, [&]<int R>(int64_t row) __attribute__((always_inline)) {
      const int64_t wanted = (task.counts[row + R - 1] - page * kPagePositions + kPagePositions - 1) / kPagePositions;
      const int64_t n = pages - page < kChunkPages ? pages - page : kChunkPages;
      score_cell_rows<R>(task, q.from(row), keys, row ? nullptr : keys + kAheadPages, wanted < n ? wanted : n,
                         task.scores + row * kSegmentPositions + page * kPagePositions);
    });
  }
}

// `v` with zeros in its first n lanes.
BITNET_INLINE F32x16 without_first(F32x16 v, int64_t n) {
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < n && i < kLanes; ++i) lanes[i] = 0;
  return load(lanes);
}

// The weights of a row, exp(score - max), times the scales of their values, as codes. Before its window and beyond its
// count they are zeros, whatever is stored there.
BITNET_INLINE void encode_weights(const AttentionTask& task, const uint8_t* const* values, int64_t pages,
                                  const CodedRows& to, int64_t r) {
  float* weights = task.scores + r * kSegmentPositions;
  const int64_t start = task.starts ? task.starts[r] : 0, count = task.counts[r], used = cells(count);
  F32x16 most = fill(0.0f);
  const auto weigh = [&](int64_t i, F32x16 e) __attribute__((always_inline)) {
    const float* scales = scales_of(values[i / kPagePositions], task.head_dim);
    F32x16 w = e * (count - i < kLanes ? load_part(scales, count - i) : load(scales));
    if (i < start) w = without_first(w, start - i);
    most = larger(w, most);
    return w;
  };
  hide(task, r);
  soften(weights, count, task.max + r, task.sum + r, weigh);
  encode_row(weights, used * kLanes, fold_max(most), to, r);
  __builtin_memset(to.codes + r * kCodedRowBytes + used * 2 * kLanes, 0, (size_t)((pages - used) * 2 * kLanes));
}

// Output columns 16 * cell .. of R rows and B cells a page.
template <int R, int B>
BITNET_INLINE void weigh_cells(const AttentionTask& task, const CodedRows& w, const uint8_t* const* values,
                               const uint8_t* const* ahead, int64_t pages, int64_t cell, float* out) {
  CellSum sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = new_sum(w.totals[r]);
  for (int64_t page = 0; page < pages; ++page) {
    const uint8_t* at[B];
    for (int b = 0; b < B; ++b) at[b] = values[page] + (cell + b) * kCellBytes;
    if (ahead) fetch_cells<B>(values[page + kNearPages] + cell * kCellBytes, ahead[page] + cell * kCellBytes);
    add_cells<R, B>(sums, at, w.codes + page * 2 * kLanes);
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) {
      const int64_t column = (cell + b) * kLanes, left = task.head_dim - column;
      const F32x16 y = to_float(lanes_of(sums[r][b])) * fill(w.steps[r]);
      if (left < kLanes) {
        store_part(out + r * task.head_dim + column, y, left);
      } else {
        store(out + r * task.head_dim + column, y);
      }
    }
}

// Cells of a page in tiles, and for each all rows over the whole segment: what a tile reads stays in the first cache.
template <int B>
BITNET_INLINE void weigh_columns(const AttentionTask& task, const CodedRows& w, const uint8_t* const* values,
                                 int64_t cell) {
  for_cell_rows(task.rows, [&]<int R>(int64_t row) __attribute__((always_inline)) {
    const int64_t wanted = cells(task.counts[row + R - 1]);
    static_assert(R * B <= kCellTile || B == 1);
    weigh_cells<R, B>(task, w.from(row), values, row ? nullptr : values + kAheadPages, wanted, cell,
                      task.out + row * task.head_dim);
  });
}

void attend_int8(const AttentionTask& task) {
  float* steps = task.scratch + task.rows * kCodedRowBytes / 4;
  const CodedRows coded{(uint8_t*)task.scratch, steps, (int32_t*)steps + task.rows};
  const int64_t pages = cells(task.counts[task.rows - 1]), columns = cells(task.head_dim);
  const uint8_t* const* values = task.pages + pages;

  encode_queries(task, coded);
  for (int64_t i = 0; i < pages; ++i) prefetch(values[i] + columns * kCellBytes);
  score_int8(task, coded, pages);
  for (int64_t r = 0; r < task.rows; ++r) encode_weights(task, values, pages, coded, r);
  for (int64_t i = 0; i < kAheadPages; ++i) prefetch(values[pages + i] + columns * kCellBytes);
  constexpr int B = kCellTile >= 8 ? 2 : 1;
  int64_t cell = 0;
  for (; cell + B <= columns; cell += B) weigh_columns<B>(task, coded, values, cell);
  for (; cell < columns; ++cell) weigh_columns<1>(task, coded, values, cell);
}

void attend(const AttentionTask& task) {
  if (task.type == KVType::I8) return attend_int8(task);
  attend_floats(task);
}

// The codes + 128 and the scale of a vector: absmax / 127, so that the codes are round_half_even(x * (127 / absmax)).
// Tiny numbers are zeros. False, with zeros: not finite.
BITNET_INLINE bool encode_vector(const float* x, int64_t count, uint8_t* codes, float* scale) {
  F32x16 top = fill(0.0f), differences = fill(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32x16 v = count - i < kLanes ? load_part(x + i, count - i) : load(x + i);
    top = larger(magnitude(v), top);
    differences = differences + (v - v);
  }
  const float most = fold_max(top);
  const bool finite = fold_sum(differences) == 0, coded = finite && most >= 1e-30f;
  const F32x16 inverse = fill(coded ? 127 / most : 0), rounder = fill(kRounder), offset = fill(kRounder + 128);
  *scale = coded ? most / 127 : 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32x16 v = count - i < kLanes ? load_part(x + i, count - i) : load(x + i);
    const F32x16 code = coded ? v * inverse + rounder - rounder : fill(0.0f);
    store_low_bytes((int8_t*)codes + i, bits(code + offset));
  }
  return finite;
}

// One token's k and v into position `slot` of pages. Where one of a head's is not finite, its value becomes not a
// number, and with it every row that attends the position.
void store_int8(const float* k, const float* v, int64_t kv_heads, int64_t head_dim, uint8_t* keys, uint8_t* values,
                int64_t slot) {
  const int64_t size = page_bytes(KVType::I8, head_dim), scale = cells(head_dim) * kCellBytes + 4 * slot;
  for (int64_t h = 0; h < kv_heads; ++h, keys += size, values += size) {
    uint8_t codes[kMostI8Columns];
    float step;
    const bool finite = encode_vector(k + h * head_dim, head_dim, codes, &step);
    __builtin_memcpy(keys + scale, &step, 4);
    for (int64_t d = 0; d < head_dim; d += 4) __builtin_memcpy(keys + d * 16 + 4 * slot, codes + d, 4);
    if (!encode_vector(v + h * head_dim, head_dim, codes, &step) || !finite) step = __builtin_nanf("");
    __builtin_memcpy(values + scale, &step, 4);
    uint8_t* to = values + slot / 4 * 64 + slot % 4;
    for (int64_t d = 0; d < head_dim; ++d) to[d / kLanes * kCellBytes + d % kLanes * 4] = codes[d];
  }
}

void store_kv(const float* k, const float* v, int64_t kv_heads, int64_t head_dim, KVType type, uint8_t* keys,
              uint8_t* values, int64_t slot) {
  if (type == KVType::I8) return store_int8(k, v, kv_heads, head_dim, keys, values, slot);
  store_floats(k, v, kv_heads, head_dim, type, keys, values, slot);
}
