#include "ops/head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/registry.h"
#include "ops/linear.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace bitnet {
namespace {

constexpr int kLargestCode = 127 * 256 + 127;  // both planes of a code are within a byte
constexpr int64_t kTokens = 8;                 // that share a pass over the screen
constexpr int64_t kRescoredRows = 8;           // of a chunk
constexpr double kSafe = 1 + 1e-6;             // covers the roundings of the bounds in float and double
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// A token, as its codes and as the constants of its bounds.
struct Query {
  std::vector<int16_t> codes;
  std::vector<int8_t> planes;
  std::vector<float> x;  // padded for the dense kernel
  std::vector<float> lower, upper, group_lower, group_upper;
  std::vector<float> heap;    // the largest lower bounds so far, the least of them first
  std::vector<int32_t> rows;  // to be computed precisely
  ScreenToken token{};
  bool screened = false;
};

// False where the bounds do not hold (numbers that are not finite or might overflow) or say nothing (tiny ones).
//
// u = 2^-24 bounds the relative error of a float operation. With lengths X of x, D of x - step * codes, and for a row
// E of its error, N of its copy and W <= E + N of itself:
//
//   |row x - approximation|        <= E X + N D
//   |logit - row x|                <= g W X         g = m u / (1 - m u): no product meets more than m operations
//   |computed approximation - it|  <= 4.01 u N (X + D)
//   what underflows                <= slack
bool quantize(const float* x, int64_t k, const DenseWeight& w, const Screen& screen, Query& q) {
  double squares = 0;
  float most = 0;
  for (int64_t i = 0; i < k; ++i) {
    squares += static_cast<double>(x[i]) * x[i];
    most = std::max(most, std::fabs(x[i]));
  }
  const double length = std::sqrt(squares) * kSafe;
  if (!(length * (1.0 + screen.longest) < 1e30) || most < 1e-25f) return false;  // also when it is not a number

  const float step = most / kLargestCode;
  const double inverse = kLargestCode / static_cast<double>(most);
  q.codes.assign(static_cast<size_t>(screen.columns), 0);
  q.planes.assign(static_cast<size_t>(2 * screen.columns), 0);
  double off = 0;
  int64_t sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    const int code = static_cast<int>(std::lrint(x[i] * inverse));
    const int hi = (code + 128) >> 8;
    const double difference = x[i] - static_cast<double>(step) * code;
    q.codes[i] = static_cast<int16_t>(code);
    int8_t* planes = q.planes.data() + i / kScreenColumns * 8 + i % kScreenColumns;
    planes[0] = static_cast<int8_t>(hi);
    planes[4] = static_cast<int8_t>(code - 256 * hi);
    off += difference * difference;
    sum += code;
  }
  const double rest = std::sqrt(off) * kSafe, m = static_cast<double>(w.columns() / kLanes + 8), u = 0x1p-24;
  const double g = m * u / (1 - m * u);
  q.token.codes = q.codes.data();
  q.token.planes = q.planes.data();
  q.token.offset = 128.0 * static_cast<double>(sum);
  q.token.step = step;
  q.token.per_error = static_cast<float>((1 + g) * length * kSafe);
  q.token.per_norm = static_cast<float>((rest + g * length + 16 * u * (length + rest)) * kSafe);
  q.token.slack =
      static_cast<float>((1e-25 + 1e-36 * static_cast<double>(w.columns()) * (1 + length + screen.longest)) * kSafe);
  return true;
}

// The k-th largest lower bound, rows beyond n left out.
float threshold(Query& q, int64_t n, int64_t k) {
  std::vector<float>& heap = q.heap;
  heap.clear();
  for (int64_t g = 0; g * kGroupRows < n; ++g) {
    if (static_cast<int64_t>(heap.size()) == k && q.group_lower[g] <= heap.front()) continue;
    for (int64_t r = g * kGroupRows; r < std::min(n, (g + 1) * kGroupRows); ++r) {
      if (static_cast<int64_t>(heap.size()) == k) {
        if (q.lower[r] <= heap.front()) continue;
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        heap.pop_back();
      }
      heap.push_back(q.lower[r]);
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  }
  return heap.front();
}

void find_rows(Query& q, int64_t n, int64_t k) {
  const float least = threshold(q, n, k);
  q.rows.clear();
  for (int64_t g = 0; g * kGroupRows < n; ++g) {
    if (q.group_upper[g] < least) continue;
    for (int64_t r = g * kGroupRows; r < std::min(n, (g + 1) * kGroupRows); ++r)
      if (q.upper[r] >= least) q.rows.push_back(static_cast<int32_t>(r));
  }
}

void all_logits(const float* x, const DenseWeight& w, float* y) {
  const Product product{nullptr, &w, y};
  linear({x, 1, w.k}, &product, 1);
}

// Bounds of all logits of the queries that are screened; fills their rows of y with -inf on the way.
void screen_rows(const Screen& screen, std::vector<Query>& queries, int64_t count, float* y) {
  const Kernels& kernel = kernels();
  const int64_t groups = screen.row_groups();
  const int64_t bytes = std::clamp<int64_t>(groups * screen.row_group_bytes() / (4 * threads()), 16 << 10, 1 << 20);
  const int64_t step = std::clamp<int64_t>(bytes / screen.row_group_bytes(), 1, groups);
  parallel_for(ceil_div(groups, step), [&](int64_t chunk) {
    const int64_t first = chunk * step, row = first * kGroupRows;
    ScreenToken tokens[kTokens];
    ScreenTask task{};
    task.codes = screen.codes() + first * screen.row_group_bytes();
    task.row_groups = std::min(step, groups - first);
    task.blocks = screen.columns / kScreenColumns;
    task.scales = screen.scales() + row;
    task.errors = screen.errors() + row;
    task.norms = screen.norms() + row;
    task.tokens = tokens;
    for (int64_t t = 0; t < count; ++t) {
      if (!queries[t].screened) continue;
      ScreenToken& token = tokens[task.count++];
      token = queries[t].token;
      token.lower += row;
      token.upper += row;
      token.group_lower += first;
      token.group_upper += first;
      std::fill(y + t * screen.n + row, y + t * screen.n + std::min(screen.n, row + task.row_groups * kGroupRows),
                kNothing);
    }
    kernel.screen(task);
  });
}

// The logits of the rows within reach, by the arithmetic of linear().
void rescore(const Query& q, const DenseWeight& w, float* y) {
  const Kernels& kernel = kernels();
  const int64_t count = static_cast<int64_t>(q.rows.size());
  parallel_for(ceil_div(count, kRescoredRows), [&](int64_t chunk) {
    for (int64_t i = chunk * kRescoredRows; i < std::min(count, (chunk + 1) * kRescoredRows); ++i) {
      DenseTask task{};
      task.rows = w.rows() + q.rows[i] * w.row_bytes();
      task.row_bytes = w.row_bytes();
      task.count = 1;
      task.columns = w.columns();
      task.dtype = w.dtype;
      task.x = q.x.data();
      task.tokens = 1;
      task.y = y + q.rows[i];
      kernel.dense(task);
    }
  });
}

void screened(Matrix<const float> x, const DenseWeight& w, const Screen& screen, int64_t top, float* y) {
  static thread_local std::vector<Query> kept(kTokens);
  std::vector<Query>& queries = kept;  // the same for all threads that help
  const size_t groups = static_cast<size_t>(screen.row_groups());
  bool any = false;
  for (int64_t t = 0; t < x.rows; ++t) {
    Query& q = queries[t];
    q.screened = quantize(x.row(t), w.k, w, screen, q);
    any |= q.screened;
    for (auto* rows : {&q.lower, &q.upper}) rows->resize(groups * kGroupRows);
    for (auto* each : {&q.group_lower, &q.group_upper}) each->resize(groups);
    q.token.lower = q.lower.data(), q.token.upper = q.upper.data();
    q.token.group_lower = q.group_lower.data(), q.token.group_upper = q.group_upper.data();
    q.x.assign(static_cast<size_t>(w.columns()), 0.0f);
    std::copy(x.row(t), x.row(t) + w.k, q.x.data());
  }
  if (any) screen_rows(screen, queries, x.rows, y);
  parallel_for(x.rows, [&](int64_t t) {
    if (queries[t].screened) find_rows(queries[t], w.n, top);
  });
  for (int64_t t = 0; t < x.rows; ++t) {
    const Query& q = queries[t];
    if (q.screened && static_cast<int64_t>(q.rows.size()) <= w.n / 4) {
      rescore(q, w, y + t * w.n);
    } else {
      all_logits(x.row(t), w, y + t * w.n);
    }
  }
}

}  // namespace

Screen::Screen(const DenseWeight& w) : n(w.n), columns(round_up(w.k, kLanes)), longest(0) {
  if (columns > kScreenMostColumns)
    throw std::invalid_argument("a screen of rows with " + std::to_string(w.k) +
                                " columns: " + std::to_string(kScreenMostColumns) + " are the most.");
  buffer_ = allocate_weights(static_cast<size_t>(row_groups() * row_group_bytes()));
  for (auto* each : {&scales_, &errors_, &norms_}) each->assign(static_cast<size_t>(row_groups() * kGroupRows), 0.0f);
  const Kernels& kernel = kernels();
  const int64_t step = std::max<int64_t>(1, (1 << 20) / row_group_bytes());
  parallel_for(ceil_div(row_groups(), step), [&](int64_t chunk) {
    std::vector<float> row(static_cast<size_t>(columns), 0.0f);
    const int64_t last = std::min(row_groups(), (chunk + 1) * step) * kGroupRows;
    for (int64_t r = chunk * step * kGroupRows; r < last; ++r) {
      if (r < n) {
        kernel.decode_row(w.rows() + r * w.row_bytes(), w.dtype, w.k, row.data());
      } else {
        std::fill(row.begin(), row.end(), 0.0f);
      }
      uint8_t* to = buffer_.data + r / kGroupRows * row_group_bytes() + kScreenColumns * (r % kGroupRows);
      kernel.screen_row(row.data(), columns, to, &scales_[r], &errors_[r], &norms_[r]);
    }
  });
  for (int64_t r = 0; r < n; ++r)
    if (std::isfinite(errors_[r])) longest = std::max(longest, (errors_[r] + norms_[r]) * 1.000001f);
}

void head(Matrix<const float> x, const DenseWeight& w, int64_t top, float* y) {
  if (!w.screen || top <= 0 || top >= w.n) {
    const Product product{nullptr, &w, y};
    return linear(x, &product, 1);
  }
  for (int64_t t = 0; t < x.rows; t += kTokens)
    screened({x.row(t), std::min(kTokens, x.rows - t), x.columns}, w, *w.screen, top, y + t * w.n);
}

}  // namespace bitnet
