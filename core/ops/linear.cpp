#include "ops/linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/registry.h"
#include "ops/tiles.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace bitnet {
namespace {

constexpr int64_t kSerialElements = 32768;       // below this a fork costs more than it saves
constexpr int64_t kTokenBlockBytes = 512 << 10;  // activations that stay in L2 while the weights of a chunk pass
constexpr int64_t kMostRowGroups = 64;           // of a chunk: bounds the buffer of sums on the stack
constexpr int64_t kTableTokens = 64;             // tokens whose tables are made at a time: they are large

template <class Body>
void for_each(int64_t count, int64_t elements, Body&& body) {
  if (elements <= kSerialElements) {
    for (int64_t i = 0; i < count; ++i) body(i);
  } else {
    parallel_for(count, body);
  }
}

// Quantised tokens as panels of up to kPanelTokens: panel p begins at p * kPanelTokens * padded.
struct Activations {
  const int8_t* panels;
  const float* multipliers;
  int64_t tokens, padded;
  const uint8_t* tables[2] = {};  // for TL1 and TL2, where there are such weights

  int64_t panel_tokens(int64_t p) const { return std::min<int64_t>(kPanelTokens, tokens - p * kPanelTokens); }
  const int8_t* panel(int64_t p) const { return panels + p * kPanelTokens * padded; }
};

int64_t panels_of(int64_t tokens) { return ceil_div(tokens, kPanelTokens); }

// Fills panels with the codes that `fill(t, to)` writes for token t, padded with zeros.
template <class Fill>
void make_panels(int64_t tokens, int64_t padded, int8_t* panels, Fill&& fill) {
  const Kernels& kernel = kernels();
  for_each(panels_of(tokens), tokens * padded, [&](int64_t p) {
    const int64_t first = p * kPanelTokens, m = std::min<int64_t>(kPanelTokens, tokens - first);
    int8_t* panel = panels + first * padded;
    if (m == 1) return fill(first, panel);
    thread_local Scratch scratch;
    int8_t* codes = scratch.get<int8_t>(static_cast<size_t>(m * padded));
    for (int64_t t = 0; t < m; ++t) fill(first + t, codes + t * padded);
    kernel.pack_panel(codes, padded, m, panel);
  });
}

// Sums of the codes, [panel][group][token], for weights with a scale for each `group` columns.
struct Sums {
  int64_t group;
  std::vector<int32_t> values;
  int64_t groups;

  const int32_t* panel(int64_t p) const { return values.data() + p * groups * kPanelTokens; }
};

Sums sum_panels(const Activations& a, int64_t group) {
  const int64_t groups = ceil_div(a.padded, group);
  Sums sums{group, std::vector<int32_t>(static_cast<size_t>(panels_of(a.tokens) * groups * kPanelTokens)), groups};
  for_each(panels_of(a.tokens), a.tokens * a.padded, [&](int64_t p) {
    kernels().sum_panel(a.panel(p), a.padded, group, a.panel_tokens(p), sums.values.data() + p * groups * kPanelTokens);
  });
  return sums;
}

int64_t group_of(const TernaryWeight& w, const Activations& a) { return w.group ? w.group : a.padded; }

// Zeros beyond the last block of another packing do no harm.
int64_t padded_columns(const TernaryWeight& w) { return round_up(w.blocks() * block_columns(w.packing), kSumColumns); }

int table_index(Packing packing) { return packing == Packing::TL2; }

// The tables of all tokens for weights like w, [token][block], unless they are there already.
void make_tables(Activations& a, const TernaryWeight& w, Scratch& scratch) {
  const uint8_t*& made = a.tables[table_index(w.packing)];
  if (made) return;
  const Kernels& kernel = kernels();
  const int64_t bytes = w.blocks() * table_bytes(w.packing);
  uint8_t* tables = scratch.get<uint8_t>(static_cast<size_t>(a.tokens * bytes));
  for_each(a.tokens, a.tokens * a.padded, [&](int64_t t) {
    const int64_t p = t / kPanelTokens, m = a.panel_tokens(p);
    const int8_t* codes = a.panel(p);
    if (m > 1) {
      thread_local Scratch row;
      int8_t* own = row.get<int8_t>(static_cast<size_t>(a.padded));
      for (int64_t i = 0; i < a.padded / 4; ++i) std::memcpy(own + 4 * i, codes + (i * m + t % kPanelTokens) * 4, 4);
      codes = own;
    }
    kernel.make_tables(codes, w.packing, w.blocks(), tables + t * bytes);
  });
  made = tables;
}

// Row groups [first, first + count) of w times the panels [panel, last): `emit(sums, row group, groups, panel)` takes
// the results of each tile.
template <class Emit>
void ternary_chunk(const TernaryWeight& w, const Activations& a, const Sums& sums, bool scaled, int64_t first,
                   int64_t count, int64_t panel, int64_t last, Emit&& emit) {
  alignas(64) int32_t out[kMostRowGroups * kGroupRows];
  const Kernels& kernel = kernels();
  TernaryTask task{};
  task.packing = w.packing;
  task.blocks = w.blocks();
  task.group_blocks = w.group ? w.group / block_columns(w.packing) : w.blocks();
  task.out = out;
  // One token takes the whole chunk in a stream; several take it two row groups at a time, which then stay in the
  // cache, or as many as make use of a piece of their tables.
  const int64_t step = a.tokens == 1 ? count : looks_up(w.packing) ? kMostRowGroups / kPanelTokens : 2;
  for (int64_t g = first; g < first + count; g += step) {
    task.row_groups = std::min(step, first + count - g);
    task.weights = w.packed() + g * w.row_group_bytes();
    task.group_scales = scaled ? w.kernel_scales() + g * (w.blocks() / task.group_blocks) * kGroupRows : nullptr;
    for (int64_t p = panel; p < last; ++p) {
      task.panel = a.panel(p);
      task.sums = sums.panel(p);
      if (looks_up(w.packing))
        task.tables = a.tables[table_index(w.packing)] + p * kPanelTokens * w.blocks() * table_bytes(w.packing);
      task.tokens = a.panel_tokens(p);
      kernel.ternary(task);
      emit(out, g, task.row_groups, p);
    }
  }
}

void ternary_product(const TernaryWeight& w, const Activations& a, const Sums& sums, int64_t first, int64_t count,
                     int64_t panel, int64_t last, float* y) {
  const Kernels& kernel = kernels();
  ternary_chunk(w, a, sums, w.group != 0, first, count, panel, last,
                [&](const int32_t* out, int64_t g, int64_t groups, int64_t p) {
                  const int64_t row = g * kGroupRows, rows = std::min(groups * kGroupRows, w.n - row),
                                token = p * kPanelTokens;
                  float* to = y + token * w.n + row;
                  const float* multipliers = a.multipliers + token;
                  if (w.group) {
                    kernel.divide_rows(reinterpret_cast<const float*>(out), groups, a.panel_tokens(p), multipliers, to,
                                       w.n, rows);
                  } else {
                    const int64_t step = w.per_row ? 1 : 0;
                    kernel.scale_rows(out, groups, a.panel_tokens(p), w.kernel_scales() + step * row, step, multipliers,
                                      to, w.n, rows);
                  }
                });
}

void dense_product(const DenseWeight& w, const float* x, int64_t ldx, int64_t first, int64_t count, int64_t token,
                   int64_t last, float* y) {
  DenseTask task{};
  task.rows = w.rows() + first * w.row_bytes();
  task.row_bytes = w.row_bytes();
  task.count = count;
  task.columns = w.columns();
  task.dtype = w.dtype;
  task.x = x + token * ldx;
  task.ldx = ldx;
  task.tokens = last - token;
  task.y = y + token * w.n + first;
  task.ldy = w.n;
  kernels().dense(task);
}

// How the rows of one weight are dealt out: chunks of `step` row groups of 16.
struct Share {
  int64_t row_groups, step, first_chunk;
};

// Chunks of at most 256 KB of weights and at least 16 KB, eight or more a thread where there is enough: small ones at
// the end of a job keep the threads from waiting for each other.
int64_t row_groups_per_chunk(int64_t row_group_bytes, int64_t total_bytes) {
  const int64_t bytes = std::clamp<int64_t>(total_bytes / (8 * threads()), 16 << 10, 256 << 10);
  const int64_t groups = std::clamp<int64_t>(bytes / row_group_bytes, 1, kMostRowGroups);
  return groups > 1 ? groups & ~int64_t{1} : 1;
}

// Tokens kTableTokens at a time.
void linear_in_parts(Matrix<const float> x, const Product* products, int64_t count) {
  std::vector<Product> part(products, products + count);
  for (int64_t t = 0; t < x.rows; t += kTableTokens) {
    linear({x.row(t), std::min(kTableTokens, x.rows - t), x.columns}, part.data(), count);
    for (Product& p : part) p.y += kTableTokens * (p.ternary ? p.ternary->n : p.dense->n);
  }
}

}  // namespace

void quantize(Matrix<const float> x, int8_t* codes, float* multipliers) {
  const Kernels& kernel = kernels();
  const int64_t whole = x.columns / kLanes * kLanes;
  for_each(x.rows, x.size(), [&](int64_t t) {
    int8_t* to = codes + t * x.columns;
    if (whole == x.columns) {
      multipliers[t] = kernel.quantize_row(x.row(t), x.columns, x.columns, to);
      return;
    }
    thread_local Scratch scratch;
    int8_t* padded = scratch.get<int8_t>(static_cast<size_t>(whole + kLanes));
    multipliers[t] = kernel.quantize_row(x.row(t), x.columns, whole + kLanes, padded);
    std::memcpy(to, padded, static_cast<size_t>(x.columns));
  });
}

void ternary_matmul(Matrix<const int8_t> q, const TernaryWeight& w, int32_t* out) {
  if (looks_up(w.packing) && q.rows > kTableTokens) {
    for (int64_t t = 0; t < q.rows; t += kTableTokens)
      ternary_matmul({q.row(t), std::min(kTableTokens, q.rows - t), q.columns}, w, out + t * w.n);
    return;
  }
  if (!q.rows) return;
  const Product product{&w, nullptr, nullptr};
  if (tiles_serve(&product, 1, q.rows)) return ternary_matmul_on_tiles(q, w, out);
  const int64_t padded = padded_columns(w);
  thread_local Scratch scratch, table_scratch;
  int8_t* panels = scratch.get<int8_t>(static_cast<size_t>(q.rows * padded));
  make_panels(q.rows, padded, panels, [&](int64_t t, int8_t* to) {
    std::memcpy(to, q.row(t), static_cast<size_t>(q.columns));
    std::memset(to + q.columns, 0, static_cast<size_t>(padded - q.columns));
  });
  Activations a{panels, nullptr, q.rows, padded};
  if (looks_up(w.packing)) make_tables(a, w, table_scratch);
  const Sums sums = sum_panels(a, padded);  // over the whole row, whatever its scales are
  const int64_t step = row_groups_per_chunk(w.row_group_bytes(), w.nbytes());
  parallel_for(ceil_div(w.row_groups(), step), [&](int64_t chunk) {
    const int64_t first = chunk * step, count = std::min(step, w.row_groups() - first);
    ternary_chunk(w, a, sums, false, first, count, 0, panels_of(q.rows),
                  [&](const int32_t* sum, int64_t g, int64_t groups, int64_t p) {
                    const int64_t m = a.panel_tokens(p);
                    for (int64_t i = 0; i < groups; ++i)
                      for (int64_t t = 0; t < m; ++t) {
                        const int64_t row = (g + i) * kGroupRows, n = std::min<int64_t>(kGroupRows, w.n - row);
                        std::memcpy(out + (p * kPanelTokens + t) * w.n + row, sum + (i * m + t) * kGroupRows,
                                    static_cast<size_t>(n) * 4);
                      }
                  });
  });
}

void linear(Matrix<const float> x, const Product* products, int64_t count) {
  if (!x.rows) return;
  if (tiles_serve(products, count, x.rows)) return linear_on_tiles(x, products, count);
  const bool any_tables = std::any_of(products, products + count,
                                      [](const Product& p) { return p.ternary && looks_up(p.ternary->packing); });
  if (any_tables && x.rows > kTableTokens) return linear_in_parts(x, products, count);
  thread_local Scratch panel_scratch, multiplier_scratch, x_scratch, table_scratch[2];
  Activations a{nullptr, nullptr, x.rows, 0};
  for (int64_t i = 0; i < count; ++i)
    if (products[i].ternary) a.padded = std::max(a.padded, padded_columns(*products[i].ternary));
  std::vector<Sums> sums;          // one for each way of grouping
  const Sums no_sums{};            // of weights that are looked up
  const float* padded_x = x.data;  // dense kernels read whole vectors
  int64_t ldx = x.columns;

  for (int64_t i = 0; i < count; ++i) {
    if (const TernaryWeight* w = products[i].ternary) {
      if (!a.panels) {
        int8_t* panels = panel_scratch.get<int8_t>(static_cast<size_t>(x.rows * a.padded));
        float* multipliers = multiplier_scratch.get<float>(static_cast<size_t>(x.rows));
        const Kernels& kernel = kernels();
        make_panels(x.rows, a.padded, panels, [&](int64_t t, int8_t* to) {
          multipliers[t] = kernel.quantize_row(x.row(t), x.columns, a.padded, to);
        });
        a.panels = panels;
        a.multipliers = multipliers;
      }
      if (looks_up(w->packing)) {
        make_tables(a, *w, table_scratch[table_index(w->packing)]);
        continue;
      }
      const int64_t group = group_of(*w, a);
      if (std::none_of(sums.begin(), sums.end(), [&](const Sums& s) { return s.group == group; }))
        sums.push_back(sum_panels(a, group));
    } else if (const int64_t columns = products[i].dense->columns(); columns > ldx) {
      float* copy = x_scratch.get<float>(static_cast<size_t>(x.rows * columns));
      for (int64_t t = 0; t < x.rows; ++t) {
        std::memcpy(copy + t * columns, x.row(t), static_cast<size_t>(x.columns) * 4);
        std::memset(copy + t * columns + x.columns, 0, static_cast<size_t>(columns - x.columns) * 4);
      }
      padded_x = copy;
      ldx = columns;
    }
  }

  int64_t bytes = 0;
  for (int64_t i = 0; i < count; ++i)
    bytes += products[i].ternary ? products[i].ternary->nbytes() : products[i].dense->nbytes();
  std::vector<Share> shares(static_cast<size_t>(count));
  int64_t chunks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const TernaryWeight* w = products[i].ternary;
    const int64_t row_groups = w ? w->row_groups() : ceil_div(products[i].dense->n, kGroupRows);
    const int64_t step =
        row_groups_per_chunk(w ? w->row_group_bytes() : products[i].dense->row_bytes() * kGroupRows, bytes);
    shares[i] = {row_groups, step, chunks};
    chunks += ceil_div(row_groups, step);
  }

  // Tokens in blocks that stay in L2: all weights pass once for each block.
  const int64_t token_bytes =
      any_tables ? kPieceTableBytes / kPieceTuples / 2 * a.padded : std::max<int64_t>(1, a.padded);
  const int64_t block_panels = std::max<int64_t>(1, kTokenBlockBytes / (kPanelTokens * token_bytes));
  const int64_t panels = panels_of(x.rows);
  parallel_for(ceil_div(panels, block_panels) * chunks, [&](int64_t index) {
    const int64_t panel = index / chunks * block_panels, last = std::min(panels, panel + block_panels);
    const int64_t chunk = index % chunks;
    int64_t i = count - 1;
    while (shares[i].first_chunk > chunk) --i;
    const int64_t first = (chunk - shares[i].first_chunk) * shares[i].step,
                  groups = std::min(shares[i].step, shares[i].row_groups - first);
    if (const TernaryWeight* w = products[i].ternary) {
      const auto s = std::find_if(sums.begin(), sums.end(), [&](const Sums& s) { return s.group == group_of(*w, a); });
      ternary_product(*w, a, s == sums.end() ? no_sums : *s, first, groups, panel, last, products[i].y);
    } else {
      const DenseWeight& d = *products[i].dense;
      const int64_t row = first * kGroupRows;
      dense_product(d, padded_x, ldx, row, std::min(groups * kGroupRows, d.n - row), panel * kPanelTokens,
                    std::min(x.rows, last * kPanelTokens), products[i].y);
    }
  });
}

}  // namespace bitnet
