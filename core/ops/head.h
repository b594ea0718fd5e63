// The output head: logits of a token over the whole vocabulary, or exactly the likeliest of them for fewer bytes.
#pragma once
#include <cstdint>
#include <vector>

#include "ops/weights.h"
#include "tensor.h"

namespace bitnet {

// A cheap copy of a dense matrix, row r ~ scale * int8 codes, and how far it can be off. For a token x ~ step * codes
// of 16 bits it bounds the logit that linear() computes, for its roundings too:
//
//   |logit - approximation| <= |row - its copy| |x| + |copy| |x - its copy| + roundings
//
// so that only the rows whose upper bound reaches the k-th largest lower bound have to be read precisely. Of several
// tokens that want few logits the upper 8 bits of their codes do: the bounds are wider, and half the products.
class Screen {
 public:
  explicit Screen(const DenseWeight& w);  // std::invalid_argument for more than 65536 columns

  // Over memory of somebody else, as make() fills it.
  Screen(const uint8_t* memory, int64_t n, int64_t k);

  // Fills nbytes() of `memory`: codes, then scales, errors and norms of the rows, then `longest`.
  static void make(const DenseWeight& w, uint8_t* memory);
  static int64_t nbytes(int64_t n, int64_t k);

  int64_t n, columns;
  int64_t row_groups() const { return (n + kGroupRows - 1) / kGroupRows; }
  int64_t row_group_bytes() const { return kGroupRows * columns; }
  int64_t nbytes() const { return nbytes(n, columns); }
  const uint8_t* codes() const { return codes_; }
  const float* scales() const { return floats(0); }
  const float* errors() const { return floats(1); }
  const float* norms() const { return floats(2); }
  float longest() const { return *floats(3); }  // of the finite rows' lengths, not less than it

 private:
  const float* floats(int64_t part) const {
    return reinterpret_cast<const float*>(codes_ + row_groups() * (row_group_bytes() + part * kGroupRows * 4));
  }
  Buffer buffer_;
  const uint8_t* codes_;
};

// Logits y (S, n) of x (S, k), as linear() computes them, bit for bit. With a screen, where tops[s] > 0, as many of the
// largest of row s, those equal to the last of them, and those that are not numbers; the rest is -inf. All logits where
// the screen would not help: x not finite or too small, or too many rows within reach. Returns how many rows were read
// precisely, for all of x.
int64_t head(Matrix<const float> x, const DenseWeight& w, const int32_t* tops, float* y);

}  // namespace bitnet
