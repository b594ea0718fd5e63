#include "ops/tiles.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/registry.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace bitnet {
namespace {

constexpr int64_t kBlockColumns = 80;            // whole blocks of T2 and of T5
constexpr int64_t kTokenBlockBytes = 900 << 10;  // activations that stay in an L2 of 2 MB while the weights pass

// Quantised tokens as rows, and as many more as fill the last tile.
struct Rows {
  const int8_t* codes;
  int64_t tokens, columns, stride;

  const int8_t* row(int64_t t) const { return codes + t * stride; }
};

// Whole blocks of T2 and of T5, and an odd multiple of 64 bytes, so that the 16 rows of a tile lie in different sets
// of the first cache.
int64_t stride_of(int64_t columns) {
  return (ceil_div(round_up(columns, kBlockColumns), kTileColumns) | 1) * kTileColumns;
}

// `fill(t, to, stride)` writes the codes of token t and zeros up to the stride.
template <class Fill>
Rows make_rows(Scratch& scratch, int64_t tokens, int64_t columns, Fill&& fill) {
  const int64_t stride = stride_of(columns), padded = round_up(tokens, kTile);
  int8_t* codes = scratch.get<int8_t>(static_cast<size_t>(padded * stride + kTileColumns));
  parallel_for(tokens, [&](int64_t t) { fill(t, codes + t * stride, stride); });
  std::memset(codes + tokens * stride, 0, static_cast<size_t>((padded - tokens) * stride + kTileColumns));
  return {codes, tokens, columns, stride};
}

// Sums of the codes of each `group` columns, [token][group]; 0: of whole rows.
std::vector<int32_t> sum_rows(const Rows& a, int64_t group) {
  const int64_t columns = group ? a.columns : a.stride, step = group ? group : a.stride, groups = columns / step;
  std::vector<int32_t> sums(static_cast<size_t>(a.tokens * groups));
  const Kernels& kernel = kernels();
  parallel_for(a.tokens, [&](int64_t t) { kernel.sum_panel(a.row(t), columns, step, 1, sums.data() + t * groups); });
  return sums;
}

// Row groups [first, first + count) of w, at most kTileRowGroups, times the tokens [token, last): `emit(acc, total, row
// group)` takes the results [token][16] of each row group, of which one is meant.
template <class Emit>
void tile_product(const TernaryWeight& w, const Rows& a, const std::vector<int32_t>& sums, bool scaled, int64_t first,
                  int64_t count, int64_t token, int64_t last, Emit&& emit) {
  thread_local Scratch unpacked, acc, total;
  const int64_t padded = round_up(last - token, kTile);
  const auto size = static_cast<size_t>(count * padded * kTile);
  TileTask task{};
  task.weights = w.packed() + first * w.row_group_bytes();
  task.packing = w.packing;
  task.row_groups = count;
  task.blocks = w.blocks();
  task.group_blocks = scaled ? w.group / block_columns(w.packing) : w.blocks();
  const int64_t groups = w.blocks() / task.group_blocks;
  task.group_scales = scaled ? w.kernel_scales() + first * groups * kGroupRows : nullptr;
  task.codes = a.row(token);
  task.stride = a.stride;
  task.sums = sums.data() + token * groups;
  task.tokens = last - token;
  task.unpacked = unpacked.get<uint8_t>(static_cast<size_t>(kUnpackedBytes));
  task.acc = acc.get<int32_t>(size);
  if (scaled) task.total = total.get<float>(size);
  kernels().ternary_tiles(task);
  for (int64_t g = 0; g < count; ++g)
    emit(task.acc + g * padded * kTile, scaled ? task.total + g * padded * kTile : nullptr, first + g);
}

// Calls body(unit, token, last) for all units of work and all blocks of tokens: blocks that stay in L2, of equal size.
template <class Body>
void for_each_block(int64_t units, const Rows& a, Body&& body) {
  const int64_t most = std::max<int64_t>(1, kTokenBlockBytes / (a.stride * 2 * kTile)) * 2 * kTile;
  const int64_t block = round_up(ceil_div(a.tokens, ceil_div(a.tokens, most)), 2 * kTile);
  parallel_for(units * ceil_div(a.tokens, block), [&](int64_t index) {
    const int64_t token = index / units * block;
    body(index % units, token, std::min(a.tokens, token + block));
  });
}

int64_t units_of(const TernaryWeight& w) { return ceil_div(w.row_groups(), kTileRowGroups); }

}  // namespace

bool tiles_serve(const Product* products, int64_t count, int64_t tokens) {
  const Kernels& kernel = kernels();
  if (!kernel.ternary_tiles || tokens < kernel.tile_tokens) return false;
  return std::all_of(products, products + count, [](const Product& p) {
    if (!p.ternary || looks_up(p.ternary->packing)) return false;
    return !p.ternary->group || p.ternary->group >= kTileColumns;  // smaller groups waste most of a tile
  });
}

void linear_on_tiles(Matrix<const float> x, const Product* products, int64_t count) {
  thread_local Scratch row_scratch, multiplier_scratch;
  const Kernels& kernel = kernels();
  float* multipliers = multiplier_scratch.get<float>(static_cast<size_t>(x.rows));
  const Rows a = make_rows(row_scratch, x.rows, x.columns, [&](int64_t t, int8_t* to, int64_t stride) {
    multipliers[t] = kernel.quantize_row(x.row(t), x.columns, stride, to);
  });
  std::vector<std::vector<int32_t>> sums;  // by the group of each product
  int64_t units = 0;
  for (int64_t i = 0; i < count; ++i) {
    sums.push_back(sum_rows(a, products[i].ternary->group));
    units += units_of(*products[i].ternary);
  }
  for_each_block(units, a, [&](int64_t unit, int64_t token, int64_t last) {
    int64_t i = 0;
    for (; unit >= units_of(*products[i].ternary); ++i) unit -= units_of(*products[i].ternary);
    const TernaryWeight& w = *products[i].ternary;
    const int64_t first = unit * kTileRowGroups, groups = std::min<int64_t>(kTileRowGroups, w.row_groups() - first);
    tile_product(w, a, sums[i], w.group != 0, first, groups, token, last,
                 [&](const int32_t* acc, const float* total, int64_t g) {
                   const int64_t row = g * kGroupRows, rows = std::min<int64_t>(kGroupRows, w.n - row);
                   float* to = products[i].y + token * w.n + row;
                   if (w.group) {
                     kernel.divide_rows(total, 1, last - token, multipliers + token, to, w.n, rows);
                   } else {
                     const int64_t step = w.per_row ? 1 : 0;
                     kernel.scale_rows(acc, 1, last - token, w.kernel_scales() + step * row, step, multipliers + token,
                                       to, w.n, rows);
                   }
                 });
  });
}

void ternary_matmul_on_tiles(Matrix<const int8_t> q, const TernaryWeight& w, int32_t* out) {
  thread_local Scratch scratch;
  const Rows a = make_rows(scratch, q.rows, q.columns, [&](int64_t t, int8_t* to, int64_t stride) {
    std::memcpy(to, q.row(t), static_cast<size_t>(q.columns));
    std::memset(to + q.columns, 0, static_cast<size_t>(stride - q.columns));
  });
  const std::vector<int32_t> sums = sum_rows(a, 0);
  for_each_block(units_of(w), a, [&](int64_t unit, int64_t token, int64_t last) {
    const int64_t first = unit * kTileRowGroups, groups = std::min<int64_t>(kTileRowGroups, w.row_groups() - first);
    tile_product(w, a, sums, false, first, groups, token, last, [&](const int32_t* acc, const float*, int64_t g) {
      const int64_t row = g * kGroupRows, rows = std::min<int64_t>(kGroupRows, w.n - row);
      for (int64_t t = token; t < last; ++t)
        std::memcpy(out + t * w.n + row, acc + (t - token) * kTile, static_cast<size_t>(rows) * 4);
    });
  });
}

}  // namespace bitnet
