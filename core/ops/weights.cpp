#include "ops/weights.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/registry.h"
#include "runtime/thread_pool.h"
#include "tensor.h"

namespace bitnet {
namespace {

// splitmix64: a bijection of counters, so that every thread can begin anywhere.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The 81 bytes whose four bit pairs are all below 3.
constexpr std::array<uint8_t, 81> kTernaryBytes = [] {
  std::array<uint8_t, 81> bytes{};
  for (int i = 0; i < 81; ++i) bytes[i] = static_cast<uint8_t>(i % 3 | i / 3 % 3 << 2 | i / 9 % 3 << 4 | i / 27 << 6);
  return bytes;
}();

// Bytes of k columns as they are given, without the scales of Q8_0.
int64_t given_bytes(DType dtype, int64_t k) {
  if (block_columns(dtype)) return k / block_columns(dtype) * block_bytes(dtype);
  return k * (dtype == DType::F32 ? 4 : dtype == DType::Q8_0 ? 1 : 2);
}

// Rows of one parallel chunk, so that it moves about 1 MB.
int64_t chunk_rows(int64_t row_bytes) { return std::max<int64_t>(1, (1 << 20) / std::max<int64_t>(1, row_bytes)); }

void check_shape(int64_t n, int64_t k) {
  if (n < 1 || k < 1 || n > INT64_C(1) << 32 || k > 524288)
    throw std::invalid_argument("a weight of shape (" + std::to_string(n) + ", " + std::to_string(k) +
                                "): both must be at least 1, and k at most 524288.");
}

}  // namespace

TernaryWeight::TernaryWeight(int64_t n, int64_t k, std::vector<float> given, int64_t group, bool per_row,
                             Packing packing)
    : n(n), k(k), group(group), per_row(per_row), scales(std::move(given)), packing(packing) {
  check_shape(n, k);
  if (group && !takes_groups(packing))
    throw std::invalid_argument(
        "a weight with scales for groups of columns: \"2bit\" and \"tl1\" take them; \"1.6bit\" and \"tl2\" take one "
        "scale or one for each row.");
  if (group && (group % kSumColumns || k % group))
    throw std::invalid_argument("a scale for every " + std::to_string(group) + " of " + std::to_string(k) +
                                " columns: a group must be a multiple of 16 that divides k.");
  buffer_ = allocate_weights(static_cast<size_t>(row_groups() * row_group_bytes()));
  if (group) {
    const int64_t groups = k / group;
    kernel_scales_.assign(static_cast<size_t>(row_groups() * groups * kGroupRows), 0.0f);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t g = 0; g < groups; ++g)
        kernel_scales_[(r / kGroupRows * groups + g) * kGroupRows + r % kGroupRows] = scales[r * groups + g];
  } else {
    kernel_scales_ = scales;
    if (per_row) kernel_scales_.resize(static_cast<size_t>(row_groups() * kGroupRows), 0.0f);
  }
}

TernaryWeight::TernaryWeight(const int8_t* codes, int64_t n, int64_t k, std::vector<float> given, int64_t group,
                             bool per_row, Packing packing)
    : TernaryWeight(n, k, std::move(given), group, per_row, packing) {
  const Kernels& kernel = kernels();
  const int64_t step = ceil_div(chunk_rows(k), kGroupRows);
  parallel_for(ceil_div(row_groups(), step), [&](int64_t chunk) {
    for (int64_t g = chunk * step; g < std::min(row_groups(), (chunk + 1) * step); ++g)
      pack_group(kernel, codes + g * kGroupRows * k, g, std::min<int64_t>(kGroupRows, n - g * kGroupRows));
  });
}

void TernaryWeight::pack_group(const Kernels& kernel, const int8_t* codes, int64_t group, int64_t rows) {
  if (!kernel.pack_rows(codes, packing, k, rows, buffer_.data + group * row_group_bytes()))
    throw std::invalid_argument("ternary codes must be -1, 0 or 1; found another value.");
}

TernaryWeight TernaryWeight::random(int64_t n, int64_t k, uint64_t seed, float scale, Packing packing) {
  TernaryWeight w(n, k, {scale}, 0, false, packing);
  const Kernels& kernel = kernels();
  constexpr int64_t columns = block_columns(Packing::T2);
  const int64_t blocks = ceil_div(k, columns), bytes = blocks * kBlockBytes;  // of a row group in T2
  const int64_t step = ceil_div(1 << 20, bytes);
  parallel_for(ceil_div(w.row_groups(), step), [&](int64_t chunk) {
    const int64_t last = std::min(w.row_groups(), (chunk + 1) * step);
    std::vector<uint8_t> drawn(static_cast<size_t>(packing == Packing::T2 ? 0 : bytes));
    std::vector<int8_t> codes(static_cast<size_t>(packing == Packing::T2 ? 0 : kGroupRows * k));
    for (int64_t g = chunk * step; g < last; ++g) {
      uint8_t* to = w.buffer_.data + g * w.row_group_bytes();
      uint8_t* block = packing == Packing::T2 ? to : drawn.data();
      for (int64_t i = 0; i < bytes; i += 4) {
        const uint64_t bits = mix(seed * 0xd1342543de82ef95u + static_cast<uint64_t>(g * bytes + i));
        for (int j = 0; j < 4; ++j) block[i + j] = kTernaryBytes[(bits >> (16 * j) & 0xffff) * 81 >> 16];
      }
      const int64_t rows = std::min<int64_t>(kGroupRows, n - g * kGroupRows);
      if (packing != Packing::T2) {
        kernel.unpack_rows(block, Packing::T2, k, 0, rows, codes.data());
        kernel.pack_rows(codes.data(), packing, k, rows, to);
        continue;
      }
      // What only pads holds the code of zero.
      std::array<uint8_t, 4> keep{}, zero{};  // of the last block, by j
      for (int64_t c = 0; c < columns; ++c) {
        const bool real = (blocks - 1) * columns + c < k;
        (real ? keep : zero)[c % 4] |= static_cast<uint8_t>((real ? 3 : 1) << 2 * (c / 4));
      }
      uint8_t* tail = block + (blocks - 1) * kBlockBytes;
      for (int i = 0; i < kBlockBytes; ++i) tail[i] = static_cast<uint8_t>((tail[i] & keep[i % 4]) | zero[i % 4]);
      for (int64_t b = 0; b < blocks && rows < kGroupRows; ++b)
        std::memset(block + b * kBlockBytes + 4 * rows, 0x55, static_cast<size_t>(4 * (kGroupRows - rows)));
    }
  });
  return w;
}

TernaryWeight TernaryWeight::zeros(int64_t n, int64_t k, Packing packing) {
  TernaryWeight w(n, k, {1.0f}, 0, false, packing);
  const std::vector<int8_t> codes(static_cast<size_t>(kGroupRows * k));
  std::vector<uint8_t> group(static_cast<size_t>(w.row_group_bytes()));
  kernels().pack_rows(codes.data(), packing, k, kGroupRows, group.data());
  parallel_for(w.row_groups(),
               [&](int64_t g) { std::memcpy(w.buffer_.data + g * w.row_group_bytes(), group.data(), group.size()); });
  return w;
}

TernaryWeight TernaryWeight::view(const uint8_t* packed, const float* kernel_scales, int64_t n, int64_t k,
                                  int64_t group, bool per_row) {
  TernaryWeight w(n, k);
  w.group = group, w.per_row = per_row, w.viewed_scales_ = kernel_scales;
  w.buffer_.data = const_cast<uint8_t*>(packed);  // which nothing writes to after construction
  return w;
}

void TernaryWeight::codes(int8_t* out) const {
  const Kernels& kernel = kernels();
  parallel_for(row_groups(), [&](int64_t g) {
    const int64_t rows = std::min<int64_t>(kGroupRows, n - g * kGroupRows);
    kernel.unpack_rows(packed() + g * row_group_bytes(), packing, k, 0, rows, out + g * kGroupRows * k);
  });
}

float TernaryWeight::scale_of(int64_t row, int64_t column) const {
  if (group) return scales[static_cast<size_t>(row * (k / group) + column / group)];
  return scales[per_row ? static_cast<size_t>(row) : 0];
}

DenseWeight::DenseWeight(int64_t n, int64_t k, DType dtype) : n(n), k(k), dtype(dtype) {
  check_shape(n, k);
  const int block = dtype == DType::Q8_0 ? kQ8Block : block_columns(dtype);
  if (block && k % block)
    throw std::invalid_argument("a matrix with rows of " + std::to_string(k) + " columns in blocks of " +
                                std::to_string(block) + ": they must be a multiple of it.");
  // A row of Q8_0 is its codes and then its scales, so that one stream carries both.
  row_bytes_ = dtype == DType::Q8_0 ? round_up(k + k / kQ8Block * 2, 64) : given_bytes(dtype, columns());
  buffer_ = allocate_weights(static_cast<size_t>(n * row_bytes_));
}

DenseWeight DenseWeight::view(const void* data, int64_t n, int64_t k, DType dtype) {
  DenseWeight w(n, k, dtype, Viewed{});
  w.row_bytes_ = given_bytes(dtype, k);
  w.buffer_.data = static_cast<uint8_t*>(const_cast<void*>(data));  // as above
  return w;
}

int64_t DenseWeight::columns() const { return round_up(k, dtype == DType::Q8_0 ? kQ8Block : kLanes); }  // blocks: k

DenseWeight::DenseWeight(const void* data, int64_t n, int64_t k, DType dtype, const uint16_t* scales)
    : DenseWeight(n, k, dtype) {
  const size_t bytes = static_cast<size_t>(given_bytes(dtype, k));
  const int64_t step = chunk_rows(row_bytes_);
  parallel_for(ceil_div(n, step), [&](int64_t chunk) {
    for (int64_t r = chunk * step; r < std::min(n, (chunk + 1) * step); ++r) {
      uint8_t* row = buffer_.data + r * row_bytes_;
      std::memcpy(row, static_cast<const uint8_t*>(data) + static_cast<size_t>(r) * bytes, bytes);
      if (dtype == DType::Q8_0)
        std::memcpy(row + k, scales + r * (k / kQ8Block), static_cast<size_t>(k / kQ8Block * 2));
    }
  });
}

DenseWeight DenseWeight::random(int64_t n, int64_t k, DType dtype, uint64_t seed, float scale) {
  if (block_columns(dtype)) throw std::invalid_argument("random weights are F32, F16, BF16 or Q8_0.");
  DenseWeight w(n, k, dtype);
  const Kernels& kernel = kernels();
  const int64_t step = chunk_rows(w.row_bytes_);
  uint16_t step_of_code = 0;  // Q8_0: codes of the whole range times this
  const float code_scale = scale / 128;
  kernel.encode_f16(&code_scale, 1, &step_of_code);
  parallel_for(ceil_div(n, step), [&](int64_t chunk) {
    std::vector<float> values(static_cast<size_t>(k));
    for (int64_t r = chunk * step; r < std::min(n, (chunk + 1) * step); ++r) {
      uint8_t* row = w.buffer_.data + r * w.row_bytes_;
      for (int64_t i = 0; i < k; ++i) {
        const uint64_t bits = mix(seed * 0xd1342543de82ef95u + static_cast<uint64_t>(r * k + i));
        values[i] = (static_cast<float>(bits >> 40) * 0x1p-23f - 1.0f) * scale;
        if (dtype == DType::Q8_0) row[i] = static_cast<uint8_t>(bits >> 56);
        if (dtype == DType::BF16)
          reinterpret_cast<uint16_t*>(row)[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(values[i]) >> 16);
      }
      if (dtype == DType::F32) std::memcpy(row, values.data(), static_cast<size_t>(k) * 4);
      if (dtype == DType::F16) kernel.encode_f16(values.data(), k, reinterpret_cast<uint16_t*>(row));
      if (dtype == DType::Q8_0)
        for (int64_t b = 0; b < k / kQ8Block; ++b) std::memcpy(row + k + 2 * b, &step_of_code, 2);
    }
  });
  return w;
}

}  // namespace bitnet
