// Operations on rows: what comes before, between and after the products.
#include "rows.cuh"

// (rows, columns) -> codes (rows, padded), multipliers and sums of codes (rows,). A block for each row.
// scratch: (rows, columns), where a row does not fit into shared memory.
extern "C" __global__ void __launch_bounds__(kThreads)
    quantise_rows(const float* x, const float* up, const float* norm, int act, float eps, int columns, float* scratch,
                  signed char* codes, float* multipliers, int* sums) {
  DYNAMIC_SHARED(memory);
  int padded = (columns + kColumns - 1) / kColumns * kColumns, row = blockIdx.x;
  float multiplier;
  float* staged = scratch ? scratch + size_t(row) * columns : reinterpret_cast<float*>(memory);
  int sum = quantise_row(RowSource{x, up, norm, act, eps, columns}, row, staged, codes + size_t(row) * padded, padded,
                         &multiplier);
  if (threadIdx.x == 0) multipliers[row] = multiplier, sums[row] = sum;
}

// Runs of `columns` numbers, each normalised by itself. A block for each.
extern "C" __global__ void __launch_bounds__(kThreads)
    norm_rows(const float* x, const float* up, const float* norm, int act, float eps, int columns, float* out) {
  RowSource source{x, up, norm, act, eps, columns};
  float* row = out + size_t(blockIdx.x) * columns;
  for (int c = threadIdx.x; c < columns; c += kThreads) row[c] = source(blockIdx.x, c);
  float inverse = inverse_rms(row, columns, eps);
  for (int c = threadIdx.x; c < columns; c += kThreads) row[c] = row[c] * inverse * norm[c];
}

extern "C" __global__ void gate_values(const float* g, const float* u, int act, long long count, float* out) {
  long long step = (long long)gridDim.x * kThreads;
  for (long long i = (long long)blockIdx.x * kThreads + threadIdx.x; i < count; i += step)
    out[i] = activate(act, g[i]) * u[i];
}

extern "C" __global__ void add_values(const float* x, const float* y, long long count, float* out) {
  long long step = (long long)gridDim.x * kThreads;
  for (long long i = (long long)blockIdx.x * kThreads + threadIdx.x; i < count; i += step) out[i] = x[i] + y[i];
}

extern "C" __global__ void scale_values(const float* x, float c, long long count, float* out) {
  long long step = (long long)gridDim.x * kThreads;
  for (long long i = (long long)blockIdx.x * kThreads + threadIdx.x; i < count; i += step) out[i] = x[i] * c;
}

extern "C" __global__ void take_rows(const float* x, const int* rows, int columns, float* out) {
  const float* from = x + size_t(rows[blockIdx.x]) * columns;
  for (int c = threadIdx.x; c < columns; c += kThreads) out[size_t(blockIdx.x) * columns + c] = from[c];
}

extern "C" __global__ void embed_dense(const int* ids, const void* table, int type, int columns, float* out) {
  size_t from = size_t(ids[blockIdx.x]) * columns, to = size_t(blockIdx.x) * columns;
  for (int c = threadIdx.x; c < columns; c += kThreads) out[to + c] = dense_at(table, type, from + c);
}

// The tiles of gemv.cu.
extern "C" __global__ void embed_ternary(const int* ids, const unsigned char* tiles, const float* scales, int group,
                                         int columns, float* out) {
  int row = ids[blockIdx.x], along = (columns + kColumns - 1) / kColumns;
  int line = row % kRows % 16, field = row % kRows / 16, groups = group ? columns / group : 1;
  for (int c = threadIdx.x; c < columns; c += kThreads) {
    size_t tile = size_t(row / kRows) * along + c / kColumns;
    unsigned char byte = tiles[tile * kTileBytes + line * kColumns + c % kColumns];
    float scale = scales[size_t(row) * groups + (group ? c / group : 0)];
    out[size_t(blockIdx.x) * columns + c] = float(int(byte >> 2 * field & 3) - 1) * scale;
  }
}

// H(signs * x), or signs * H(x): the normalised Walsh-Hadamard transform of each `block` columns, a power of two.
extern "C" __global__ void hadamard_rows(const float* x, const float* signs, int columns, int block, int inverse,
                                         float* out) {
  DYNAMIC_SHARED(memory);
  float* values = reinterpret_cast<float*>(memory);
  size_t at = size_t(blockIdx.y) * columns + size_t(blockIdx.x) * block;
  const float* sign = signs + size_t(blockIdx.x) * block;
  for (int c = threadIdx.x; c < block; c += kThreads) values[c] = inverse ? x[at + c] : x[at + c] * sign[c];
  for (int half = 1; half < block; half *= 2) {
    __syncthreads();
    for (int i = threadIdx.x; i < block / 2; i += kThreads) {
      int low = i / half * 2 * half + i % half;
      float a = values[low], b = values[low + half];
      values[low] = a + b;
      values[low + half] = a - b;
    }
  }
  __syncthreads();
  float root = sqrtf(float(block));
  for (int c = threadIdx.x; c < block; c += kThreads) {
    float y = values[c] / root;
    out[at + c] = inverse ? y * sign[c] : y;
  }
}

// Partial sums (splits, rows, columns) of a product -> what ternary_gemv writes.
extern "C" __global__ void finish_product(const int* parts, int splits, const float* multipliers, const float* scales,
                                          int rows, int columns, const float* residual, float* out) {
  size_t count = size_t(rows) * columns, step = size_t(gridDim.x) * kThreads;
  for (size_t i = size_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    int sum = 0;
    for (int split = 0; split < splits; ++split) sum += parts[split * count + i];
    float y = float(sum) * (scales[i % columns] / multipliers[i / columns]);
    out[i] = residual ? residual[i] + y : y;
  }
}
