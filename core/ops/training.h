// What lies between the matrix products of a training step: rows of bfloat16, forward and backward. Results do not
// depend on the number of threads.
#pragma once
#include <cstdint>

#include "kernels/kernels.h"
#include "tensor.h"

namespace bitnet::training {

using Bf16 = uint16_t;

// What a product reads: act(gate) * x, or x without `gate`; then an RMS norm with the weight `norm`, unless it is null.
struct Input {
  Matrix<const Bf16> x;
  const Bf16* gate;
  Activation activation;
  const float* norm;
  float eps;
};

constexpr int64_t kNormRows = 64;  // that share a row of norm_grads

void quantize(const Input& input, int8_t* codes, float* multipliers);
void evaluate(const Input& input, Bf16* y);
// The gradient of what was read is sums / multipliers, or `grad` where sums is null. norm_grads has a row for each
// kNormRows rows and begins with zeros.
void input_backward(const Input& input, const int32_t* sums, const float* multipliers, const Bf16* grad,
                    float* norm_grads, Bf16* x_grad, Bf16* gate_grad);

// y (T, n) = sums * (scales / multipliers), of n columns of the sums (T, ld).
void output(const int32_t* sums, int64_t ld, const float* scales, const float* multipliers, Matrix<Bf16> y);

struct Part {
  const Bf16* grad;  // (T, columns)
  int64_t columns;
};
// Gradients of several outputs side by side, (T, n): quantised after being multiplied by the weights' scales, and
// divided by the inputs' multipliers.
void output_backward(const Part* parts, int64_t count, int64_t rows, int64_t n, const float* scales,
                     const float* multipliers, int8_t* codes, float* grad_multipliers, Bf16* divided);

void rope(Matrix<const Bf16> x, Matrix<const float> cos, Matrix<const float> sin, const int64_t* positions,
          int64_t head_dim, bool backward, Bf16* y);

// Scores of `block` queries from position `start` of each sequence on, [sequence][head][query][key]: a query at t looks
// at the keys first[sequence][t] .. t, the last `window` of them where that is not 0.
struct Visible {
  const int32_t* first;
  int64_t length, heads, start, block, window;
};
void softmax(Matrix<Bf16> scores, const Visible& visible, float scale);
void softmax_backward(Matrix<const Bf16> p, const Visible& visible, float scale, Bf16* grad);

// Targets below 0 do not count: their log sums and gradients are 0. losses: log_sums - logits[target].
void cross_entropy(Matrix<const Bf16> logits, const int64_t* targets, float* log_sums, float* losses);
void cross_entropy_backward(Matrix<const Bf16> logits, const int64_t* targets, const float* log_sums, float factor,
                            Bf16* grad);

}  // namespace bitnet::training
