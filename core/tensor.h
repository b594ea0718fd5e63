// Views: who owns the memory is somebody else's business.
#pragma once
#include <cstdint>

namespace bitnet {

// Rows of contiguous elements, one after the other.
template <class T>
struct Matrix {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;

  T* row(int64_t i) const { return data + i * columns; }
  int64_t size() const { return rows * columns; }
};

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
constexpr int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

}  // namespace bitnet
