// y = x w^T, for ternary and dense weights.
#pragma once
#include <cstdint>

#include "ops/weights.h"
#include "tensor.h"

namespace bitnet {

struct Product {
  const TernaryWeight* ternary;  // exactly one of the two
  const DenseWeight* dense;
  float* y;  // (T, n)
};

// All products of one x (T, k) in one fork and join. For ternary weights x is quantised once, each row by its absmax:
//   one scale or a scale per row:   y = float(integer sum) * (scale / s)
//   scales per group:               y = (sum over groups, ascending, of float(integer sum of the group) * scale) / s
void linear(Matrix<const float> x, const Product* products, int64_t count);

// The integer sums alone: q (T, k) to (T, n).
void ternary_matmul(Matrix<const int8_t> q, const TernaryWeight& w, int32_t* out);

// codes (T, k) and the multiplier s of each row: code = round_half_even(x * s), s = 127 / max(max|x|, 1e-5).
void quantize(Matrix<const float> x, int8_t* codes, float* multipliers);

}  // namespace bitnet
