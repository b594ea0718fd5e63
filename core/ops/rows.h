// Operations that treat every token by itself.
#pragma once
#include <cstdint>

#include "ops/weights.h"
#include "tensor.h"

namespace bitnet {

// x * 1 / sqrt(mean(x^2) + eps) * weight
void rms_norm(Matrix<const float> x, const float* weight, float eps, float* y);

// x (T, heads * head_dim); cos, sin (positions, rotary / 2). Pairs are (i, i + rotary / 2), or (2i, 2i + 1) when
// interleaved; columns of a head beyond `rotary` pass through.
void rope(Matrix<const float> x, Matrix<const float> cos, Matrix<const float> sin, const int32_t* positions,
          int64_t head_dim, bool interleaved, float* y);

void gate(Matrix<const float> g, const float* u, Activation activation, float* y);  // activation(g) * u
void add(Matrix<const float> x, const float* y, float* out);
void scale(Matrix<const float> x, float c, float* y);

// H(signs * x) in blocks, H the normalised Walsh-Hadamard matrix; inverse: signs * H(x)
void hadamard(Matrix<const float> x, const float* signs, int64_t block, bool inverse, float* y);

// Rows of a table, dequantised; ids must be in [0, n).
void embed(const DenseWeight& table, const int32_t* ids, int64_t count, float* y);
void embed(const TernaryWeight& table, const int32_t* ids, int64_t count, float* y);

}  // namespace bitnet
