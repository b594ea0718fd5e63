#include "ops/rows.h"

#include <algorithm>

#include "kernels/registry.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace bitnet {
namespace {

constexpr int64_t kSerialElements = 32768;  // below this a fork costs more than it saves
constexpr int64_t kChunkElements = 16384;

// body(first, last) over the rows of a matrix, in chunks.
template <class Body>
void for_rows(int64_t rows, int64_t columns, Body&& body) {
  if (rows * columns <= kSerialElements) return body(int64_t{0}, rows);
  const int64_t step = std::max<int64_t>(1, kChunkElements / columns);
  parallel_for(ceil_div(rows, step), [&](int64_t i) { body(i * step, std::min(rows, (i + 1) * step)); });
}

// body(first, count) over elements, in chunks of whole vectors.
template <class Body>
void for_elements(int64_t count, Body&& body) {
  for_rows(ceil_div(count, kLanes), kLanes,
           [&](int64_t first, int64_t last) { body(first * kLanes, std::min(count, last * kLanes) - first * kLanes); });
}

}  // namespace

void rms_norm(Matrix<const float> x, const float* weight, float eps, float* y) {
  const Kernels& kernel = kernels();
  for_rows(x.rows, x.columns, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) kernel.rms_norm(x.row(t), weight, x.columns, eps, y + t * x.columns);
  });
}

void rope(Matrix<const float> x, Matrix<const float> cos, Matrix<const float> sin, const int32_t* positions,
          int64_t head_dim, bool interleaved, float* y) {
  const Kernels& kernel = kernels();
  for_rows(x.rows, x.columns, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      kernel.rope({x.row(t), y + t * x.columns, x.columns / head_dim, head_dim, 2 * cos.columns, cos.row(positions[t]),
                   sin.row(positions[t]), interleaved});
    }
  });
}

void gate(Matrix<const float> g, const float* u, Activation activation, float* y) {
  const Kernels& kernel = kernels();
  for_elements(g.size(), [&](int64_t i, int64_t n) { kernel.gate(g.data + i, u + i, n, activation, y + i); });
}

void add(Matrix<const float> x, const float* y, float* out) {
  const Kernels& kernel = kernels();
  for_elements(x.size(), [&](int64_t i, int64_t n) { kernel.add(x.data + i, y + i, n, out + i); });
}

void scale(Matrix<const float> x, float c, float* y) {
  const Kernels& kernel = kernels();
  for_elements(x.size(), [&](int64_t i, int64_t n) { kernel.scale(x.data + i, c, n, y + i); });
}

void hadamard(Matrix<const float> x, const float* signs, int64_t block, bool inverse, float* y) {
  const Kernels& kernel = kernels();
  for_rows(x.rows, x.columns, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      kernel.hadamard(x.row(t), signs, x.columns, block, inverse, y + t * x.columns);
  });
}

void embed(const DenseWeight& table, const int32_t* ids, int64_t count, float* y) {
  const Kernels& kernel = kernels();
  for_rows(count, table.k, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      kernel.decode_row(table.rows() + ids[t] * table.row_bytes(), table.dtype, table.k, y + t * table.k);
  });
}

void embed(const TernaryWeight& table, const int32_t* ids, int64_t count, float* y) {
  const Kernels& kernel = kernels();
  for_rows(count, table.k, [&](int64_t first, int64_t last) {
    thread_local Scratch scratch;
    int8_t* codes = scratch.get<int8_t>(static_cast<size_t>(table.k));
    for (int64_t t = first; t < last; ++t) {
      const int64_t id = ids[t];
      const uint8_t* group = table.packed() + id / kGroupRows * table.row_group_bytes();
      kernel.unpack_rows(group, table.packing, table.k, id % kGroupRows, 1, codes);
      for (int64_t i = 0; i < table.k; ++i) y[t * table.k + i] = static_cast<float>(codes[i]) * table.scale_of(id, i);
    }
  });
}

}  // namespace bitnet
