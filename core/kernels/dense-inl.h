// Float products and rows in their stored precision.

// Sixteen weights as floats.
template <DType dtype>
BITNET_INLINE F32x16 load_weights(const uint8_t* row, int64_t column) {
  if (dtype == DType::F16) return load_f16((const uint16_t*)row + column);
  if (dtype == DType::BF16) return load_bf16((const uint16_t*)row + column);
  if (dtype == DType::Q8_0) return load_i8((const int8_t*)row + column);
  return load((const float*)row + column);
}

// R rows by M tokens, each with its own sixteen running sums.
template <DType dtype, int R, int M>
BITNET_INLINE void dense_tile(const DenseTask& task, const uint8_t* rows, const float* x, float* y) {
  // One row is one stream; of several, each line's successor is in the next tile.
  const int64_t ahead = R == 1 ? kPrefetchBytes : R * task.row_bytes;
  F32x16 sums[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) sums[r][m] = fill(0.0f);
  if (dtype == DType::Q8_0) {
    // A row is its codes, then the f16 scales of its blocks of 32: sum += (q0 x0 + q1 x1) * d.
    for (int64_t i = 0; i < task.columns; i += kQ8Block) {
      for (int r = 0; r < R; ++r) {
        const uint8_t* row = rows + r * task.row_bytes;
        prefetch(row + i + ahead);
        const F32x16 d = fill(load_half((const uint16_t*)(row + task.columns) + i / kQ8Block));
        const F32x16 q0 = load_weights<dtype>(row, i), q1 = load_weights<dtype>(row, i + kLanes);
        for (int m = 0; m < M; ++m) {
          const float* v = x + m * task.ldx + i;
          sums[r][m] = sums[r][m] + (q0 * load(v) + q1 * load(v + kLanes)) * d;
        }
      }
    }
  } else {
    const int64_t bytes = dtype == DType::F32 ? 4 : 2;
    for (int64_t i = 0; i < task.columns; i += kLanes) {
      for (int r = 0; r < R; ++r) {
        const uint8_t* row = rows + r * task.row_bytes;
        prefetch(row + i * bytes + ahead);
        const F32x16 w = load_weights<dtype>(row, i);
        for (int m = 0; m < M; ++m) sums[r][m] = sums[r][m] + w * load(x + m * task.ldx + i);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) y[m * task.ldy + r] = fold_sum(sums[r][m]);
}

// R rows against all tokens.
template <DType dtype, int R>
BITNET_INLINE void dense_rows(const DenseTask& task, int64_t r) {
  constexpr int M = kDenseTokens;
  const uint8_t* rows = task.rows + r * task.row_bytes;
  int64_t t = 0;
  for (; t + M <= task.tokens; t += M)
    dense_tile<dtype, R, M>(task, rows, task.x + t * task.ldx, task.y + t * task.ldy + r);
  for (; t < task.tokens; ++t) dense_tile<dtype, R, 1>(task, rows, task.x + t * task.ldx, task.y + t * task.ldy + r);
}

template <DType dtype>
void dense_all(const DenseTask& task) {
  int64_t r = 0;
  if (task.tokens > 1)  // a single token streams the rows in order instead: memory is the bound
    for (; r + kDenseRows <= task.count; r += kDenseRows) dense_rows<dtype, kDenseRows>(task, r);
  for (; r < task.count; ++r) dense_rows<dtype, 1>(task, r);
}

void dense(const DenseTask& task) {
  switch (task.dtype) {
    case DType::F32:
      return dense_all<DType::F32>(task);
    case DType::F16:
      return dense_all<DType::F16>(task);
    case DType::BF16:
      return dense_all<DType::BF16>(task);
    case DType::Q8_0:
      return dense_all<DType::Q8_0>(task);
    case DType::Q4_0:
      return dense_blocks<DType::Q4_0>(task);
    case DType::Q5_0:
      return dense_blocks<DType::Q5_0>(task);
    case DType::Q3_K:
      return dense_blocks<DType::Q3_K>(task);
    case DType::Q4_K:
      return dense_blocks<DType::Q4_K>(task);
    case DType::Q5_K:
      return dense_blocks<DType::Q5_K>(task);
    case DType::Q6_K:
      return dense_blocks<DType::Q6_K>(task);
  }
}

template <DType dtype>
BITNET_INLINE void decode_all(const uint8_t* row, int64_t columns, float* out) {
  for (int64_t i = 0; i < columns; i += kLanes) {
    F32x16 v = load_weights<dtype>(row, i);
    // Q8_0 rows are padded to 32 columns, so the scales begin there.
    const int64_t padded = (columns + kQ8Block - 1) / kQ8Block * kQ8Block;
    if (dtype == DType::Q8_0) v = v * fill(load_half((const uint16_t*)(row + padded) + i / kQ8Block));
    if (i + kLanes <= columns) {
      store(out + i, v);
    } else {
      store_part(out + i, v, columns - i);
    }
  }
}

void decode_row(const uint8_t* row, DType dtype, int64_t columns, float* out) {
  switch (dtype) {
    case DType::F32:
      return decode_all<DType::F32>(row, columns, out);
    case DType::F16:
      return decode_all<DType::F16>(row, columns, out);
    case DType::BF16:
      return decode_all<DType::BF16>(row, columns, out);
    case DType::Q8_0:
      return decode_all<DType::Q8_0>(row, columns, out);
    case DType::Q4_0:
      return decode_blocks<DType::Q4_0>(row, columns, out);
    case DType::Q5_0:
      return decode_blocks<DType::Q5_0>(row, columns, out);
    case DType::Q3_K:
      return decode_blocks<DType::Q3_K>(row, columns, out);
    case DType::Q4_K:
      return decode_blocks<DType::Q4_K>(row, columns, out);
    case DType::Q5_K:
      return decode_blocks<DType::Q5_K>(row, columns, out);
    case DType::Q6_K:
      return decode_blocks<DType::Q6_K>(row, columns, out);
  }
}

void encode_f16(const float* x, int64_t count, uint16_t* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_f16(out + i, load(x + i));
  for (; i < count; ++i) out[i] = float_to_half(x[i]);
}
