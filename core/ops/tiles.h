// Ternary products of many tokens, on CPUs that multiply tiles: linear.h's results, bit by bit.
#pragma once
#include <cstdint>

#include "ops/linear.h"

namespace bitnet {

// Whether tiles serve all of these products, and faster, for so many tokens.
bool tiles_serve(const Product* products, int64_t count, int64_t tokens);

void linear_on_tiles(Matrix<const float> x, const Product* products, int64_t count);
void ternary_matmul_on_tiles(Matrix<const int8_t> q, const TernaryWeight& w, int32_t* out);

}  // namespace bitnet
