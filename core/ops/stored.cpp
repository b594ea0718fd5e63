// Weights straight from their files: every thread reads a piece, decodes it while it is in the cache and packs it.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "kernels/registry.h"
#include "ops/file_types.h"
#include "ops/weights.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"
#include "tensor.h"

namespace bitnet {
namespace {

constexpr int64_t kPieceBytes = 256 << 10;  // of the file at a time: stays in L2

void expect_bytes(const FileRange& file, int64_t bytes) {
  if (file.bytes != bytes)
    throw std::invalid_argument("the weight takes " + std::to_string(bytes) + " bytes of its file, not " +
                                std::to_string(file.bytes) + ".");
}

int64_t pieces_of(int64_t count, int64_t item_bytes, int64_t& step) {
  step = std::clamp<int64_t>(kPieceBytes / item_bytes, 1, count);
  return ceil_div(count, step);
}

bool same_scales(const FileType& type, const uint8_t* blocks, int64_t count, const uint8_t* scale) {
  for (int64_t b = 0; b < count; ++b)
    if (std::memcmp(blocks + b * type.block_bytes + type.scale_at, scale, 2)) return false;
  return true;
}

}  // namespace

void TernaryWeight::read_blocks(const FileRange& file, const FileType& type) {
  if (n * k % type.block || (type.scale_at >= 0 && k % type.block))
    throw std::invalid_argument(std::string(type.name) + " has no part of a block.");
  expect_bytes(file, n * k / type.block * type.block_bytes + type.trailer);
  uint8_t scale[2] = {};
  if (type.scale_at >= 0) file.read(type.scale_at, 2, scale);
  const Kernels& kernel = kernels();
  int64_t step;
  const int64_t pieces =
      pieces_of(row_groups(), std::max<int64_t>(1, kGroupRows * k / type.block * type.block_bytes), step);
  parallel_for(pieces, [&](int64_t piece) {
    thread_local Scratch bytes_scratch, codes_scratch;
    const int64_t first = piece * step, last = std::min(row_groups(), first + step);
    // Rows need not begin with a block.
    const auto block_of = [&](int64_t group) { return std::min(n, group * kGroupRows) * k / type.block; };
    const auto end_of = [&](int64_t group) { return ceil_div(std::min(n, group * kGroupRows) * k, type.block); };
    const int64_t from = block_of(first), count = end_of(last) - from;
    uint8_t* bytes = bytes_scratch.get<uint8_t>(static_cast<size_t>(count * type.block_bytes));
    file.read(from * type.block_bytes, count * type.block_bytes, bytes);
    if (type.scale_at >= 0 && !same_scales(type, bytes, count, scale))
      throw std::invalid_argument("a block has a scale of its own.");
    for (int64_t g = first; g < last; ++g) {
      const int64_t begin = block_of(g), rows = std::min<int64_t>(kGroupRows, n - g * kGroupRows);
      int8_t* codes = codes_scratch.get<int8_t>(static_cast<size_t>((end_of(g + 1) - begin) * type.block));
      type.decode(bytes + (begin - from) * type.block_bytes, end_of(g + 1) - begin, codes);
      codes += g * kGroupRows * k - begin * type.block;
      pack_group(kernel, codes, g, rows);
    }
  });
}

// Byte (r, c) of (n / 4, k) holds in its bits 2i, 2i + 1 the code at (r + i n / 4, c).
void TernaryWeight::read_quarters(const FileRange& file) {
  const int64_t quarter = n / 4;
  if (n % 4 || quarter % kGroupRows) throw std::invalid_argument("a row group spans two quarters of the rows.");
  expect_bytes(file, quarter * k);
  const Kernels& kernel = kernels();
  parallel_for(quarter / kGroupRows, [&](int64_t g) {
    thread_local Scratch bytes_scratch, codes_scratch;
    const int64_t count = kGroupRows * k;
    uint8_t* bytes = bytes_scratch.get<uint8_t>(static_cast<size_t>(count));
    int8_t* codes = codes_scratch.get<int8_t>(static_cast<size_t>(count));
    file.read(g * count, count, bytes);
    for (int i = 0; i < 4; ++i) {
      for (int64_t c = 0; c < count; ++c) codes[c] = static_cast<int8_t>((bytes[c] >> 2 * i & 3) - 1);
      pack_group(kernel, codes, i * (quarter / kGroupRows) + g, kGroupRows);
    }
  });
}

TernaryWeight TernaryWeight::read(const FileRange& file, const std::string& type, int64_t n, int64_t k, float scale,
                                  Packing packing) {
  TernaryWeight w(n, k, {scale}, 0, false, packing);
  if (const FileType* blocks = file_type(type)) {
    w.read_blocks(file, *blocks);
  } else if (type == "packed") {
    w.read_quarters(file);
  } else {
    throw std::invalid_argument("\"" + type + "\" is not decoded here.");
  }
  return w;
}

DenseWeight DenseWeight::read(const FileRange& file, int64_t n, int64_t k, DType dtype) {
  if (block_columns(dtype)) throw std::invalid_argument("rows of blocks are left to the codec.");  // it checks scales
  DenseWeight w(n, k, dtype);
  const int64_t blocks = k / kQ8Block,
                stored = dtype == DType::Q8_0 ? blocks * (kQ8Block + 2) : k * (dtype == DType::F32 ? 4 : 2);
  expect_bytes(file, n * stored);
  int64_t step;
  const int64_t pieces = pieces_of(n, stored, step);
  parallel_for(pieces, [&](int64_t piece) {
    const int64_t first = piece * step, count = std::min(step, n - first);
    uint8_t* rows = w.buffer_.data + first * w.row_bytes_;
    if (dtype != DType::Q8_0 && stored == w.row_bytes_) return file.read(first * stored, count * stored, rows);
    thread_local Scratch scratch;
    const uint8_t* from = scratch.get<uint8_t>(static_cast<size_t>(count * stored));
    file.read(first * stored, count * stored, const_cast<uint8_t*>(from));
    for (int64_t r = 0; r < count; ++r, from += stored, rows += w.row_bytes_) {
      if (dtype != DType::Q8_0) {
        std::memcpy(rows, from, static_cast<size_t>(stored));
        continue;
      }
      for (int64_t b = 0; b < blocks; ++b) {  // of a float16 scale and 32 codes
        const uint8_t* block = from + b * (kQ8Block + 2);
        if ((block[1] & 0x7c) == 0x7c) throw std::invalid_argument("a scale is not a finite number.");
        std::memcpy(rows + k + 2 * b, block, 2);
        std::memcpy(rows + b * kQ8Block, block + 2, kQ8Block);
      }
    }
  });
  return w;
}

}  // namespace bitnet
