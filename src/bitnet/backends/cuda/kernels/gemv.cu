// A few tokens times ternary weights: reads every weight once, from up to three matrices, and rounds the tokens itself.
#include "rows.cuh"
#include "tiles.cuh"

struct Matrix {
  const unsigned char* tiles;
  const float* scales;  // (rows,), or (rows, groups)
  float* out;           // (tokens, rows)
  int rows;
};

constexpr int kCells = kRows * kTokens;  // of a tile of results
constexpr int kAhead = 4;                // tiles whose loads a warp has under way

// cells: (kRows, kTokens).
__device__ inline void store(const Sums<1>& sums, int* cells) {
  for_each_sum<1>([&](int i, int field, int part) {
    cells[row_of(field, part) * kTokens + token_of(i, part)] = sums.at[i][field][part];
  });
}

// The tiles first, first + step, ... before last, of one row of tiles.
__device__ inline void accumulate(Sums<1>& sums, const unsigned char* tiles, const signed char* codes, int stride,
                                  int tokens, int first, int last, int step) {
  int lane = lane_index();
  bool mine = lane / 4 < tokens;  // the other columns of the matrix unit are zero
  const unsigned char* weights = tiles + lane * 16;
  const signed char* x = codes + lane / 4 * stride + lane % 4 * 16;
  for (int tile = first; tile < last; tile += kAhead * step) {
    Words low[kAhead], high[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      int at = minimum(tile + i * step, last - 1);  // beyond the end: loaded in vain
      low[i] = load_once(weights + size_t(at) * kTileBytes);
      high[i] = load_once(weights + size_t(at) * kTileBytes + kTileBytes / 2);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (tile + i * step < last) {
        Words of_x[1] = {};
        if (mine) of_x[0] = *reinterpret_cast<const Words*>(x + (tile + i * step) * kColumns);
        sums.add(low[i], high[i], of_x);
      }
  }
}

// Shared memory: codes (tokens, stride), then what is staged before the product, and in its place what is summed after
// it: cells (kWarps, kCells) and the sums of the codes of groups (tokens, groups).
//
// tokens: up to kTokens. codes, multipliers, sums: of rows that are rounded already, or none.
// group: columns that share a scale, a multiple of kColumns; 0: one for each row. residual: is added, or none.
// Blocks (x, y): y of them share the columns of the row of tiles x, and add their integers into `workspace`, which is
// zero before and after; the one that comes last, which `counters` tells, writes the result.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
    ternary_gemv(const float* x, const float* up, const float* norm, int act, float eps, int columns,
                 const signed char* codes, const float* multipliers, const int* sums, int tokens,
                 const unsigned char* tiles0, const float* scales0, float* out0, int rows0, const unsigned char* tiles1,
                 const float* scales1, float* out1, int rows1, const unsigned char* tiles2, const float* scales2,
                 float* out2, int rows2, const float* residual, int group, int* workspace, int* counters) {
  DYNAMIC_SHARED(memory);
  __shared__ float token_multipliers[kTokens];
  __shared__ int token_sums[kTokens];
  __shared__ int is_last;

  int along = (columns + kColumns - 1) / kColumns, padded = along * kColumns;
  int stride = (padded + 127) / 128 * 128 + 64;  // two tokens' runs of 64 bytes fall into different banks
  signed char* shared_codes = reinterpret_cast<signed char*>(memory);
  int* cells = reinterpret_cast<int*>(memory + tokens * stride);

  RowSource source{x, up, norm, act, eps, columns};
  for (int token = 0; token < tokens; ++token) {
    signed char* to = shared_codes + token * stride;
    if (codes) {
      const Words* from = reinterpret_cast<const Words*>(codes + size_t(token) * padded);
      for (int c = threadIdx.x; c < padded / 16; c += kThreads) reinterpret_cast<Words*>(to)[c] = from[c];
      if (threadIdx.x == 0) token_multipliers[token] = multipliers[token], token_sums[token] = sums[token];
    } else {
      float multiplier;
      int sum = quantise_row(source, token, reinterpret_cast<float*>(cells), to, padded, &multiplier);
      if (threadIdx.x == 0) token_multipliers[token] = multiplier, token_sums[token] = sum;
    }
  }
  __syncthreads();

  int tile = blockIdx.x;
  Matrix w{tiles0, scales0, out0, rows0};
  int tiles_of_it = (rows0 + kRows - 1) / kRows;
  if (tile >= tiles_of_it) {
    tile -= tiles_of_it;
    w = Matrix{tiles1, scales1, out1, rows1};
    tiles_of_it = (rows1 + kRows - 1) / kRows;
    if (tile >= tiles_of_it) {
      tile -= tiles_of_it;
      w = Matrix{tiles2, scales2, out2, rows2};
    }
  }
  const unsigned char* weights = w.tiles + size_t(tile) * along * kTileBytes;
  Sums<1> sum;
  float totals[kCells / kThreads] = {};

  if (group) {  // a warp for each group, then the groups in their order
    int each = group / kColumns, groups = along / each;
    int* group_sums = cells + kWarps * kCells;
    for (int i = threadIdx.x; i < tokens * groups; i += kThreads) {
      const signed char* of_group = shared_codes + i / groups * stride + i % groups * group;
      group_sums[i] = 0;
      for (int c = 0; c < group; ++c) group_sums[i] += of_group[c];
    }
    for (int first = 0; first < groups; first += kWarps) {
      int mine = first + warp_index();
      sum.clear();
      if (mine < groups) accumulate(sum, weights, shared_codes, stride, tokens, mine * each, (mine + 1) * each, 1);
      __syncthreads();
      store(sum, cells + warp_index() * kCells);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kCells / kThreads; ++i) {
        int cell = threadIdx.x + i * kThreads, row = cell % kRows, token = cell / kRows, n = tile * kRows + row;
        for (int part = 0; part < minimum(kWarps, groups - first); ++part) {
          if (token >= tokens || n >= w.rows) continue;
          int product = (cells[part * kCells + row * kTokens + token] >> 2 * (row / 16)) -
                        group_sums[token * groups + first + part];
          totals[i] = totals[i] + float(product) * w.scales[size_t(n) * groups + first + part];
        }
      }
    }
  } else {
    int share = (along + gridDim.y - 1) / gridDim.y, first = blockIdx.y * share;
    sum.clear();
    accumulate(sum, weights, shared_codes, stride, tokens, first + warp_index(), minimum(first + share, along), kWarps);
    __syncthreads();
    store(sum, cells + warp_index() * kCells);
    __syncthreads();
  }

  int* mine = workspace + size_t(blockIdx.x) * kCells;
  int exact[kCells / kThreads];
  if (!group) {
#pragma unroll
    for (int i = 0; i < kCells / kThreads; ++i) {
      int cell = threadIdx.x + i * kThreads;
      exact[i] = 0;
      for (int warp = 0; warp < kWarps; ++warp)
        exact[i] += cells[warp * kCells + cell % kRows * kTokens + cell / kRows];
      if (gridDim.y > 1) atomicAdd(mine + cell, exact[i]);
    }
    if (gridDim.y > 1) {
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) is_last = atomicAdd(counters + blockIdx.x, 1) == int(gridDim.y) - 1;
      __syncthreads();
      if (!is_last) return;
      __threadfence();
#pragma unroll
      for (int i = 0; i < kCells / kThreads; ++i) exact[i] = atomicExch(mine + threadIdx.x + i * kThreads, 0);
      if (threadIdx.x == 0) counters[blockIdx.x] = 0;
    }
  }
#pragma unroll
  for (int i = 0; i < kCells / kThreads; ++i) {
    int cell = threadIdx.x + i * kThreads, row = cell % kRows, token = cell / kRows, n = tile * kRows + row;
    if (token >= tokens || n >= w.rows) continue;
    float multiplier = token_multipliers[token];
    float y = group ? totals[i] / multiplier
                    : float((exact[i] >> 2 * (row / 16)) - token_sums[token]) * (w.scales[n] / multiplier);
    size_t at = size_t(token) * w.rows + n;
    w.out[at] = residual ? residual[at] + y : y;
  }
}
