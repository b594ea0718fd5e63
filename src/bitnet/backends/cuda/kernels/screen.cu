// An output head, screened: int8 copies of its rows and of x bound every logit, and few rows have to be computed.
//
// With w' and x' for the copies, |w x - w' x'| <= |w - w'| |x| + |w'| |x - x'|, the norms being Euclidean. Codes lie in
// tiles of 16 lines of 64 bytes, tile after tile along a row.
#include "rows.cuh"

constexpr int kLines = 16;
constexpr int kLineTile = kLines * kColumns;
// Of |w| |x|, for each column: what the float head's own rounding, and that of the bounds, may come to. A matrix unit
// cuts its sums off at 24 bits, twice for every 8 columns, and always towards zero.
constexpr float kSlack = 1.0f / (1 << 23);

// A row of the head -> its codes, and (scale, |w'|, |w - w'|). A block for each row, also for those that fill a tile
// up.
extern "C" __global__ void __launch_bounds__(kThreads)
    screen_rows(const void* table, int type, int rows, int columns, signed char* codes, float* measures) {
  int row = blockIdx.x, along = (columns + kColumns - 1) / kColumns;
  signed char* to = codes + size_t(row / kLines) * along * kLineTile + row % kLines * kColumns;
  size_t from = size_t(row) * columns;
  bool real = row < rows;
  float most = 0.0f;
  for (int c = threadIdx.x; real && c < columns; c += kThreads)
    most = Largest()(fabsf(dense_at(table, type, from + c)), most);
  most = reduce_block(most, Largest());
  float scale = most / 127.0f, inverse = most > 0.0f ? 127.0f / most : 0.0f;
  float sizes = 0.0f, errors = 0.0f;
  for (int c = threadIdx.x; c < along * kColumns; c += kThreads) {
    float w = real && c < columns ? dense_at(table, type, from + c) : 0.0f;
    int code = __float2int_rn(fminf(fmaxf(w * inverse, -127.0f), 127.0f));
    to[c / kColumns * kLineTile + c % kColumns] = static_cast<signed char>(code);
    float copy = float(code) * scale;
    sizes += copy * copy;
    errors += (w - copy) * (w - copy);
  }
  sizes = reduce_block(sizes, Sum());
  errors = reduce_block(errors, Sum());
  if (threadIdx.x == 0 && real) {
    measures[3 * row] = scale;
    measures[3 * row + 1] = sqrtf(sizes);
    measures[3 * row + 2] = sqrtf(errors);
  }
}

// x (rows, columns) and its copy -> (|x|, |x - x'|). A block for each row.
extern "C" __global__ void __launch_bounds__(kThreads)
    measure_rows(const float* x, const signed char* codes, const float* multipliers, int columns, float* measures) {
  int row = blockIdx.x, padded = (columns + kColumns - 1) / kColumns * kColumns;
  float sizes = 0.0f, errors = 0.0f, multiplier = multipliers[row];
  for (int c = threadIdx.x; c < columns; c += kThreads) {
    float value = x[size_t(row) * columns + c];
    float error = value - float(codes[size_t(row) * padded + c]) / multiplier;
    sizes += value * value;
    errors += error * error;
  }
  sizes = reduce_block(sizes, Sum());
  errors = reduce_block(errors, Sum());
  if (threadIdx.x == 0) measures[2 * row] = sqrtf(sizes), measures[2 * row + 1] = sqrtf(errors);
}

// Up to kTokens rows of x against the head -> the least and the most that each logit may be, (2, tokens, rows). A
// warp for each tile of 16 rows. Shared memory: codes (tokens, stride).
extern "C" __global__ void __launch_bounds__(kThreads)
    bound_logits(const signed char* x, const float* multipliers, const float* of_x, int tokens, const signed char* head,
                 const float* of_head, int rows, int columns, float* bounds) {
  DYNAMIC_SHARED(memory);
  int along = (columns + kColumns - 1) / kColumns, padded = along * kColumns, stride = (padded + 127) / 128 * 128 + 64;
  for (int i = threadIdx.x; i < tokens * (padded / 16); i += kThreads) {
    int token = i / (padded / 16), at = i % (padded / 16) * 16;
    *reinterpret_cast<Words*>(memory + token * stride + at) =
        *reinterpret_cast<const Words*>(x + size_t(token) * padded + at);
  }
  __syncthreads();
  int tile = blockIdx.x * kWarps + warp_index(), lane = lane_index();
  if (tile * kLines >= rows) return;
  const signed char* weights = head + size_t(tile) * along * kLineTile + lane * 16;
  const unsigned char* codes = memory + lane / 4 * stride + lane % 4 * 16;
  int sum[4] = {};
#pragma unroll 4
  for (int i = 0; i < along; ++i) {
    Words low = load_once(weights + size_t(i) * kLineTile), high = load_once(weights + size_t(i) * kLineTile + 512);
    Words of_token = {};
    if (lane / 4 < tokens) of_token = *reinterpret_cast<const Words*>(codes + i * kColumns);
#pragma unroll
    for (int half = 0; half < 4; half += 2)
      mma<signed char>(sum, low.at[half], high.at[half], low.at[half + 1], high.at[half + 1], of_token.at[half],
                       of_token.at[half + 1]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int row = tile * kLines + lane / 4 + i / 2 * 8, token = lane % 4 * 2 + i % 2;
    if (row >= rows || token >= tokens) continue;
    const float* w = of_head + 3 * size_t(row);
    float size = of_x[2 * token], error = of_x[2 * token + 1];
    float logit = float(sum[i]) * (w[0] / multipliers[token]);
    float bound = w[2] * size + w[1] * error + kSlack * float(padded) * ((w[1] + w[2]) * (size + error));
    bounds[size_t(token) * rows + row] = logit - bound;
    bounds[size_t(tokens + token) * rows + row] = logit + bound;
  }
}
