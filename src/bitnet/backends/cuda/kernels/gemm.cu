// Products of many rows, for cards that Triton does not compile for. A result's sum has one order, whatever is computed
// beside it.
#include "tiles.cuh"

constexpr int kEights = 4;         // of tokens that a warp has
constexpr int kGroupedEights = 2;  // the same where every group has a scale: sums of floats beside those of integers

__device__ inline Words words_at(const void* from) { return *static_cast<const Words*>(from); }

// The lane's 16 columns of one tile for the tokens first + l / 4, 8 further, ...; codes: (tokens, stride), from there.
template <int kCount>
__device__ inline void load_tokens(Words (&x)[kCount], const signed char* codes, int stride, int first, int tokens) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    int token = first + 8 * i + lane_index() / 4;
    x[i] = Words{};
    if (token < tokens) x[i] = words_at(codes + size_t(token) * stride + lane_index() % 4 * 16);
  }
}

// codes (tokens, along * kColumns) with their multipliers and sums times a ternary matrix -> out (tokens, rows).
// residual: is added, or none.
// Blocks (x, y): the row of tiles x, and as many tokens as `across` warps have, from the y-th such run on. The warps
// beyond that share the columns, and add their integers up in shared memory.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
    gemm_ternary(const signed char* codes, const float* multipliers, const int* sums, const unsigned char* tiles,
                 const float* scales, const float* residual, float* out, int tokens, int rows, int along, int across) {
  __shared__ int cells[kWarps / 2][kEights][4][4][32];
  int mine = warp_index() % across, slice = warp_index() / across, slices = kWarps / across;
  int lane = lane_index(), first = (int(blockIdx.y) * across + mine) * 8 * kEights;
  const unsigned char* weights = tiles + size_t(blockIdx.x) * along * kTileBytes + lane * 16;
  Sums<kEights> sum;
  sum.clear();
  if (first < tokens) {
#pragma unroll 2
    for (int tile = slice; tile < along; tile += slices) {
      Words x[kEights];
      load_tokens(x, codes + tile * kColumns, along * kColumns, first, tokens);
      const unsigned char* from = weights + size_t(tile) * kTileBytes;
      sum.add(words_at(from), words_at(from + kTileBytes / 2), x);
    }
  }
  for (int half = slices / 2; half; half /= 2) {
    auto& of_it = cells[slice % half * across + mine];
    if (slice >= half && slice < 2 * half)
      for_each_sum<kEights>([&](int i, int field, int part) { of_it[i][field][part][lane] = sum.at[i][field][part]; });
    __syncthreads();
    if (slice < half)
      for_each_sum<kEights>([&](int i, int field, int part) { sum.at[i][field][part] += of_it[i][field][part][lane]; });
    __syncthreads();
  }
  if (slice) return;
  for_each_sum<kEights>([&](int i, int field, int part) {
    int n = int(blockIdx.x) * kRows + row_of(field, part), token = first + token_of(i, part);
    if (token >= tokens || n >= rows) return;
    float y = float((sum.at[i][field][part] >> 2 * field) - sums[token]) * (scales[n] / multipliers[token]);
    size_t at = size_t(token) * rows + n;
    out[at] = residual ? residual[at] + y : y;
  });
}

// The same with a scale for each group of `share` tiles: scales (rows, groups). A warp has a row of tiles and tokens to
// itself, and adds its groups up in their order. Blocks (x, y): kWarps / across rows of tiles, and tokens as above.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
    gemm_grouped(const signed char* codes, const float* multipliers, const unsigned char* tiles, const float* scales,
                 const float* residual, float* out, int tokens, int rows, int along, int share, int across) {
  constexpr unsigned kOnes = 0x01010101u;
  int lane = lane_index(), down = int(blockIdx.x) * (kWarps / across) + warp_index() / across;
  int first = (int(blockIdx.y) * across + warp_index() % across) * 8 * kGroupedEights, groups = along / share;
  if (down * kRows >= rows || first >= tokens) return;
  const unsigned char* weights = tiles + size_t(down) * along * kTileBytes + lane * 16;
  float totals[kGroupedEights][4][4] = {};
  for (int group = 0; group < groups; ++group) {
    Sums<kGroupedEights> sum;
    int of_codes[kGroupedEights][4] = {};  // a row of ones times the tokens: the sums of their codes
    sum.clear();
    for (int tile = group * share; tile < (group + 1) * share; ++tile) {
      Words x[kGroupedEights];
      load_tokens(x, codes + tile * kColumns, along * kColumns, first, tokens);
      const unsigned char* from = weights + size_t(tile) * kTileBytes;
      sum.add(words_at(from), words_at(from + kTileBytes / 2), x);
#pragma unroll
      for (int i = 0; i < kGroupedEights; ++i)
#pragma unroll
        for (int half = 0; half < 4; half += 2)
          mma<unsigned char>(of_codes[i], kOnes, kOnes, kOnes, kOnes, x[i].at[half], x[i].at[half + 1]);
    }
    for_each_sum<kGroupedEights>([&](int i, int field, int part) {
      int n = down * kRows + row_of(field, part);
      float scale = n < rows ? scales[size_t(n) * groups + group] : 0.0f;
      int product = (sum.at[i][field][part] >> 2 * field) - of_codes[i][part];
      totals[i][field][part] = totals[i][field][part] + float(product) * scale;
    });
  }
  for_each_sum<kGroupedEights>([&](int i, int field, int part) {
    int n = down * kRows + row_of(field, part), token = first + token_of(i, part);
    if (token >= tokens || n >= rows) return;
    float y = totals[i][field][part] / multipliers[token];
    size_t at = size_t(token) * rows + n;
    out[at] = residual ? residual[at] + y : y;
  });
}

constexpr int kDown = 128;  // rows of a float matrix that a block has
constexpr int kPitch = kDown + 1;
constexpr int kAlong = 32;  // columns at once
constexpr int kMostTokens = 32;

// kCount tokens: a thread has four of them, and every row that is as many further as there are threads for a row.
template <int kCount, class Weight>
__device__ inline void multiply_floats(const float* x, const Weight* weights, float* out, int tokens, int width,
                                       int columns, const int* names, float* shared_w, Four* shared_x) {
  constexpr int kAcross = kThreads / (kCount / 4), kOfThread = kDown / kAcross;
  constexpr int kPitchOfX = kCount / 4 + 1;  // in fours
  int lane = threadIdx.x % kAlong, group = threadIdx.x / kAlong;
  int row = threadIdx.x % kAcross, token = threadIdx.x / kAcross * 4;
  float total[kOfThread][4] = {};
  for (int first = 0; first < columns; first += kAlong) {
    int column = first + lane;
#pragma unroll
    for (int i = 0; i < kDown; i += kThreads / kAlong) {
      int name = names[group + i];
      shared_w[lane * kPitch + group + i] =
          name >= 0 && column < columns ? widened(weights[size_t(name) * columns + column]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kCount; i += kThreads / kAlong)
      shared_x[lane * kPitchOfX + (group + i) / 4].at[(group + i) % 4] =
          group + i < tokens && column < columns ? x[size_t(group + i) * columns + column] : 0.0f;
    __syncthreads();
#pragma unroll 8
    for (int c = 0; c < kAlong; ++c) {
      Four of_x = shared_x[c * kPitchOfX + token / 4];
#pragma unroll
      for (int i = 0; i < kOfThread; ++i) {
        float w = shared_w[c * kPitch + row + i * kAcross];
#pragma unroll
        for (int j = 0; j < 4; ++j) total[i][j] = fmaf(w, of_x.at[j], total[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kOfThread; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (names[row + i * kAcross] >= 0 && token + j < tokens)
        out[size_t(token + j) * width + row + i * kAcross] = total[i][j];
}

template <class Weight>
__device__ inline void multiply_either(int together, const float* x, const Weight* weights, float* out, int tokens,
                                       int width, int columns, const int* names, float* shared_w, Four* shared_x) {
  if (together == 8)
    multiply_floats<8>(x, weights, out, tokens, width, columns, names, shared_w, shared_x);
  else
    multiply_floats<kMostTokens>(x, weights, out, tokens, width, columns, names, shared_w, shared_x);
}

// x (tokens, columns) times a float matrix (rows, columns) -> out (tokens, rows). Blocks (x, y): kDown rows, and
// `together` tokens, which are 8 or kMostTokens.
// ids (tokens, most): the rows of each token's own, where they are gathered, of which there are counts[token]; out is
// (tokens, most) then, and the block has one token.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
    gemm_dense(const float* x, const void* weights, int type, float* out, int tokens, int rows, int columns,
               int together, const int* ids, const int* counts, int most) {
  __shared__ float shared_w[kAlong * kPitch];
  __shared__ Four shared_x[kAlong * (kMostTokens / 4 + 1)];
  __shared__ int names[kDown];  // of the block's rows; -1: none
  int first = int(blockIdx.x) * kDown, token = int(blockIdx.y) * (ids ? 1 : together), width = ids ? most : rows;
  int count = ids ? counts[token] : rows;
  if (ids && (count > most || first >= count)) return;
  if (threadIdx.x < kDown) {
    int n = first + threadIdx.x;
    names[threadIdx.x] = n >= count ? -1 : ids ? ids[size_t(token) * most + n] : n;
  }
  __syncthreads();
  x += size_t(token) * columns;
  out += size_t(token) * width + first;
  tokens = ids ? 1 : minimum(tokens - token, together);
  if (type == kF32)
    multiply_either(together, x, static_cast<const float*>(weights), out, tokens, width, columns, names, shared_w,
                    shared_x);
  if (type == kF16)
    multiply_either(together, x, static_cast<const Half*>(weights), out, tokens, width, columns, names, shared_w,
                    shared_x);
  if (type == kBF16)
    multiply_either(together, x, static_cast<const BFloat*>(weights), out, tokens, width, columns, names, shared_w,
                    shared_x);
}
