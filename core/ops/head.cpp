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
constexpr int64_t kTokens = 16;                // that share a pass over the screen
constexpr int64_t kGathered = 16;              // rows that are copied together for a pass over the weights
constexpr int64_t kRescoredRows = 8;           // of a chunk
constexpr int64_t kCoarseTokens = 4;           // together; fewer wait for the memory, not for products
constexpr int64_t kCoarseTop = 4;              // logits of a coarse token at most
constexpr int64_t kCoarseShare = 64;           // of the rows may be within a coarse token's reach, else it is made fine
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
  int64_t row = 0, top = 0;
  bool coarse = false, screened = false, done = false;
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
  if (!(length * (1.0 + screen.longest()) < 1e30) || most < 1e-25f) return false;  // also when it is not a number

  const float step = most / kLargestCode;
  const double inverse = kLargestCode / static_cast<double>(most);
  q.codes.assign(static_cast<size_t>(screen.columns), 0);
  q.planes.assign(static_cast<size_t>(2 * screen.columns), 0);
  double off = 0;
  int64_t sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    int code = static_cast<int>(std::lrint(x[i] * inverse));
    const int hi = (code + 128) >> 8;
    if (q.coarse) code = 256 * hi;
    const double difference = x[i] - static_cast<double>(step) * code;
    q.codes[i] = static_cast<int16_t>(code);
    int8_t* planes = q.planes.data() + i / kScreenColumns * (q.coarse ? 4 : 8) + i % kScreenColumns;
    planes[0] = static_cast<int8_t>(hi);
    if (!q.coarse) planes[4] = static_cast<int8_t>(code - 256 * hi);
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
      static_cast<float>((1e-25 + 1e-36 * static_cast<double>(w.columns()) * (1 + length + screen.longest())) * kSafe);
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

// The rows within reach. Too many of a coarse token: not done, and fine from now on.
void find_rows(Query& q, int64_t n) {
  const float least = threshold(q, n, q.top);
  q.rows.clear();
  for (int64_t g = 0; g * kGroupRows < n; ++g) {
    if (q.group_upper[g] < least) continue;
    for (int64_t r = g * kGroupRows; r < std::min(n, (g + 1) * kGroupRows); ++r)
      if (q.upper[r] >= least) q.rows.push_back(static_cast<int32_t>(r));
  }
  q.done = !q.coarse || static_cast<int64_t>(q.rows.size()) <= n / kCoarseShare;
  q.coarse = false;
}

// The rows of x in `rows`, ascending, with all of their logits.
void all_logits(Matrix<const float> x, const std::vector<int64_t>& rows, const DenseWeight& w, float* y) {
  const int64_t count = static_cast<int64_t>(rows.size());
  if (!count) return;
  if (rows.back() - rows.front() + 1 == count) {
    const Product product{nullptr, &w, y + rows.front() * w.n};
    return linear({x.row(rows.front()), count, x.columns}, &product, 1);
  }
  thread_local Scratch x_scratch, y_scratch;
  const int64_t most = std::min(count, kGathered);
  float* from = x_scratch.get<float>(static_cast<size_t>(most * x.columns));
  float* to = y_scratch.get<float>(static_cast<size_t>(most * w.n));
  for (int64_t first = 0; first < count; first += kGathered) {
    const int64_t some = std::min(kGathered, count - first);
    for (int64_t i = 0; i < some; ++i) std::copy_n(x.row(rows[first + i]), x.columns, from + i * x.columns);
    const Product product{nullptr, &w, to};
    linear({from, some, x.columns}, &product, 1);
    for (int64_t i = 0; i < some; ++i) std::copy_n(to + i * w.n, w.n, y + rows[first + i] * w.n);
  }
}

// Bounds of all logits of the queries that are not done; fills their rows of y with -inf on the way.
void screen_rows(const Screen& screen, std::vector<Query>& queries, int64_t count, float* y) {
  const Kernels& kernel = kernels();
  const int64_t groups = screen.row_groups();
  const int64_t bytes = std::clamp<int64_t>(groups * screen.row_group_bytes() / (4 * threads()), 16 << 10, 1 << 20);
  int64_t step = std::clamp<int64_t>(bytes / screen.row_group_bytes(), 1, groups);
  if (step > 1) step &= ~int64_t{1};  // several tokens take two at a time
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
    for (const bool coarse : {true, false}) {
      task.coarse = coarse;
      task.count = 0;
      for (int64_t t = 0; t < count; ++t) {
        if (queries[t].done || queries[t].coarse != coarse) continue;
        ScreenToken& token = tokens[task.count++];
        token = queries[t].token;
        token.lower += row;
        token.upper += row;
        token.group_lower += first;
        token.group_upper += first;
        float* logits = y + queries[t].row * screen.n;
        std::fill(logits + row, logits + std::min(screen.n, row + task.row_groups * kGroupRows), kNothing);
      }
      if (task.count) kernel.screen(task);
    }
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

// Leaves the largest logits and those equal to the last of them, however many rows were within reach of the bounds, and
// what is not a number.
void keep_largest(Query& q, float* y) {
  std::vector<float>& largest = q.heap;
  largest.clear();
  for (const int32_t r : q.rows)
    if (!std::isnan(y[r])) largest.push_back(y[r]);
  if (static_cast<int64_t>(largest.size()) <= q.top) return;
  std::nth_element(largest.begin(), largest.begin() + q.top - 1, largest.end(), std::greater<>());
  const float least = largest[static_cast<size_t>(q.top - 1)];
  for (const int32_t r : q.rows)
    if (y[r] < least) y[r] = kNothing;
}

void prepare(const float* x, const DenseWeight& w, Query& q) {
  const Screen& screen = *w.screen;
  const size_t groups = static_cast<size_t>(screen.row_groups());
  q.screened = quantize(x, w.k, w, screen, q);
  q.done = !q.screened;
  for (auto* rows : {&q.lower, &q.upper}) rows->resize(groups * kGroupRows);
  for (auto* each : {&q.group_lower, &q.group_upper}) each->resize(groups);
  q.token.lower = q.lower.data(), q.token.upper = q.upper.data();
  q.token.group_lower = q.group_lower.data(), q.token.group_upper = q.group_upper.data();
  q.x.assign(static_cast<size_t>(w.columns()), 0.0f);
  std::copy_n(x, w.k, q.x.data());
}

// The rows of x that `queries` name. Adds to `whole` those of which all logits are needed after all; returns how many
// rows of w were read precisely for the others.
int64_t screened(Matrix<const float> x, const DenseWeight& w, std::vector<Query>& queries, int64_t count, float* y,
                 std::vector<int64_t>& whole) {
  for (int64_t t = 0; t < count; ++t) {
    Query& q = queries[t];
    q.coarse = kernels().coarse_screen && count >= kCoarseTokens && q.top <= kCoarseTop;
    q.done = false;
  }
  const auto all_done = [&] {
    return std::all_of(queries.begin(), queries.begin() + count, [](const Query& q) { return q.done; });
  };
  while (!all_done()) {
    parallel_for(count, [&](int64_t t) {
      if (!queries[t].done) prepare(x.row(queries[t].row), w, queries[t]);
    });
    screen_rows(*w.screen, queries, count, y);
    parallel_for(count, [&](int64_t t) {
      if (!queries[t].done) find_rows(queries[t], w.n);
    });
  }
  int64_t read = 0;
  for (int64_t t = 0; t < count; ++t) {
    Query& q = queries[t];
    if (q.screened && static_cast<int64_t>(q.rows.size()) <= w.n / 4) {
      rescore(q, w, y + q.row * w.n);
      keep_largest(q, y + q.row * w.n);
      read += static_cast<int64_t>(q.rows.size());
    } else {
      whole.push_back(q.row);
    }
  }
  return read;
}

}  // namespace

int64_t Screen::nbytes(int64_t n, int64_t k) {
  return ceil_div(n, kGroupRows) * kGroupRows * (round_up(k, kLanes) + 12) + 4;
}

Screen::Screen(const uint8_t* memory, int64_t n, int64_t k) : n(n), columns(round_up(k, kLanes)), codes_(memory) {}

Screen::Screen(const DenseWeight& w) : Screen(nullptr, w.n, w.k) {
  buffer_ = allocate_weights(static_cast<size_t>(nbytes()));
  codes_ = buffer_.data;
  make(w, buffer_.data);
}

void Screen::make(const DenseWeight& w, uint8_t* memory) {
  const Screen screen(memory, w.n, w.k);
  if (screen.columns > kScreenMostColumns)
    throw std::invalid_argument("a screen of rows with " + std::to_string(w.k) +
                                " columns: " + std::to_string(kScreenMostColumns) + " are the most.");
  const int64_t rows = screen.row_groups() * kGroupRows;
  float* scales = reinterpret_cast<float*>(memory + screen.row_groups() * screen.row_group_bytes());
  float *errors = scales + rows, *norms = errors + rows, *longest = norms + rows;
  const Kernels& kernel = kernels();
  const int64_t step = std::max<int64_t>(1, (1 << 20) / screen.row_group_bytes());
  parallel_for(ceil_div(screen.row_groups(), step), [&](int64_t chunk) {
    std::vector<float> row(static_cast<size_t>(screen.columns), 0.0f);
    const int64_t last = std::min(screen.row_groups(), (chunk + 1) * step) * kGroupRows;
    for (int64_t r = chunk * step * kGroupRows; r < last; ++r) {
      if (r < w.n) {
        kernel.decode_row(w.rows() + r * w.row_bytes(), w.dtype, w.k, row.data());
      } else {
        std::fill(row.begin(), row.end(), 0.0f);
      }
      uint8_t* to = memory + r / kGroupRows * screen.row_group_bytes() + kScreenColumns * (r % kGroupRows);
      kernel.screen_row(row.data(), screen.columns, to, scales + r, errors + r, norms + r);
    }
  });
  *longest = 0;
  for (int64_t r = 0; r < w.n; ++r)
    if (std::isfinite(errors[r])) *longest = std::max(*longest, (errors[r] + norms[r]) * 1.000001f);
}

int64_t head(Matrix<const float> x, const DenseWeight& w, const int32_t* tops, float* y) {
  thread_local std::vector<Query> kept(kTokens);
  thread_local std::vector<int64_t> whole_rows;
  std::vector<Query>& queries = kept;  // the same for all threads that help
  std::vector<int64_t>& whole = whole_rows;
  whole.clear();
  int64_t count = 0, read = 0;
  for (int64_t t = 0; t < x.rows; ++t) {
    if (w.screen && tops && tops[t] > 0 && tops[t] < w.n) {
      queries[count].row = t, queries[count].top = tops[t];
      ++count;
    } else {
      whole.push_back(t);
    }
    if (count && (count == kTokens || t + 1 == x.rows)) {
      read += screened(x, w, queries, count, y, whole);
      count = 0;
    }
  }
  std::sort(whole.begin(), whole.end());
  all_logits(x, whole, w, y);
  return read + static_cast<int64_t>(whole.size()) * w.n;
}

}  // namespace bitnet
