// A row on its way into a product: gate, norm, absmax and rounding to int8, of which the model may want any but the
// last.
#pragma once
#include "common.cuh"

enum Activation { kNone, kSilu, kRelu2, kGelu };

__device__ inline float activate(int act, float g) {
  if (act == kSilu) return g / (1.0f + expf(-g));
  if (act == kRelu2) {
    float positive = g > 0.0f || g != g ? g : 0.0f;
    return positive * positive;
  }
  float inner = 0.7978845608f * (g + 0.044715f * (g * g * g));
  return 0.5f * g * (1.0f + tanhf(inner));
}

// x: (rows, columns); up: as x, where act says so; norm: (columns,) or none.
struct RowSource {
  const float* x;
  const float* up;
  const float* norm;
  int act;
  float eps;
  int columns;

  __device__ float operator()(int row, int column) const {
    size_t at = size_t(row) * columns + column;
    return act == kNone ? x[at] : activate(act, x[at]) * up[at];
  }
};

// Thread t has the columns t, t + kThreads, ... to itself; so nothing between the reductions needs a barrier.

__device__ inline float inverse_rms(const float* row, int columns, float eps) {
  float squares = 0.0f;
  for (int c = threadIdx.x; c < columns; c += kThreads) squares += row[c] * row[c];
  return 1.0f / sqrtf(reduce_block(squares, Sum()) / float(columns) + eps);
}

// The row as the product reads it: codes (columns rounded up to tiles, which ends in zeros) and 127 / absmax. Returns
// the sum of the codes. staged: (columns,) floats.
__device__ inline int quantise_row(const RowSource& source, int row, float* staged, signed char* codes, int padded,
                                   float* multiplier) {
  int columns = source.columns;
  for (int c = threadIdx.x; c < columns; c += kThreads) staged[c] = source(row, c);
  if (source.norm) {
    float inverse = inverse_rms(staged, columns, source.eps);
    for (int c = threadIdx.x; c < columns; c += kThreads) staged[c] = staged[c] * inverse * source.norm[c];
  }
  float most = 0.0f;
  for (int c = threadIdx.x; c < columns; c += kThreads) most = Largest()(fabsf(staged[c]), most);
  most = Largest()(reduce_block(most, Largest()), 1e-5f);
  float scale = 127.0f / most;
  int sum = 0;
  for (int c = threadIdx.x; c < padded; c += kThreads) {
    int code = c < columns ? __float2int_rn(fminf(fmaxf(staged[c] * scale, -128.0f), 127.0f)) : 0;
    codes[c] = static_cast<signed char>(code);
    sum += code;
  }
  *multiplier = scale;
  return reduce_block(sum, Sum());
}
