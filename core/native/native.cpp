#include "native/native.h"

#include <array>
#include <utility>

#include "ops/linear.h"
#include "runtime/thread_pool.h"

using namespace bitnet;

extern "C" {

int32_t bitnet_ternary(const float* x, int64_t tokens, int64_t k, int64_t group, int64_t per_row, int64_t matrices,
                       const uint8_t* w0, const float* scales0, int64_t n0, float* y0, const uint8_t* w1,
                       const float* scales1, int64_t n1, float* y1, const uint8_t* w2, const float* scales2, int64_t n2,
                       float* y2) {
  const auto view = [&](const uint8_t* w, const float* scales, int64_t n) {
    return TernaryWeight::view(w, scales, n, k, group, per_row != 0);
  };
  // Those that are not there repeat the first, and are not read.
  const std::array<TernaryWeight, 3> weights{view(w0, scales0, n0),
                                             matrices > 1 ? view(w1, scales1, n1) : view(w0, scales0, n0),
                                             matrices > 2 ? view(w2, scales2, n2) : view(w0, scales0, n0)};
  const Product products[] = {{&weights[0], nullptr, y0}, {&weights[1], nullptr, y1}, {&weights[2], nullptr, y2}};
  linear({x, tokens, k}, products, matrices);
  return 0;
}

int32_t bitnet_dense(const float* x, int64_t tokens, int64_t k, const void* w, int64_t n, int64_t dtype, float* y) {
  const DenseWeight weight = DenseWeight::view(w, n, k, static_cast<DType>(dtype));
  const Product product{nullptr, &weight, y};
  linear({x, tokens, k}, &product, 1);
  return 0;
}

void bitnet_set_threads(int64_t count) {
  if (count > 0) set_threads(static_cast<int>(count));
}

}  // extern "C"
