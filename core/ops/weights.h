// Matrices (n outputs, k inputs) in the form that the kernels read, each in memory of its own.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/file_range.h"
#include "runtime/memory.h"

namespace bitnet {

class Screen;     // ops/head.h
struct FileType;  // ops/file_types.h

class TernaryWeight {
 public:
  // codes (n, k) of -1, 0, 1; scales: one, n (per_row) or n * (k / group) values. std::invalid_argument for other codes
  // or a group that is no multiple of 16 (0: no groups), or groups in a packing that takes none.
  TernaryWeight(const int8_t* codes, int64_t n, int64_t k, std::vector<float> scales, int64_t group, bool per_row,
                Packing packing = Packing::T2);

  // Uniform -1, 0, 1 with one scale: the same bytes for the same seed on every machine.
  static TernaryWeight random(int64_t n, int64_t k, uint64_t seed, float scale, Packing packing = Packing::T2);

  // Nothing but zeros: what a speed is measured on.
  static TernaryWeight zeros(int64_t n, int64_t k, Packing packing);

  // From the bytes of a tensor in its file (ops/stored.cpp), with one scale. type: "I2_S", "TQ1_0", "TQ2_0", or
  // "packed" (Hugging Face). std::exception where that is not possible, for whatever reason.
  static TernaryWeight read(const FileRange& file, const std::string& type, int64_t n, int64_t k, float scale,
                            Packing packing);

  // What others hold, packed in T2, with scales as kernel_scales() has them; `scales` stays empty.
  static TernaryWeight view(const uint8_t* packed, const float* kernel_scales, int64_t n, int64_t k, int64_t group,
                            bool per_row);

  void codes(int8_t* out) const;  // (n, k)

  int64_t n, k;
  int64_t group = 0;          // columns that share a scale; 0 where one scale serves the whole row
  bool per_row = false;       // one scale for each row
  std::vector<float> scales;  // as given
  Packing packing = Packing::T2;

  int64_t row_groups() const { return (n + kGroupRows - 1) / kGroupRows; }
  int64_t blocks() const { return (k + block_columns(packing) - 1) / block_columns(packing); }
  int64_t row_group_bytes() const { return blocks() * block_bytes(packing); }
  int64_t nbytes() const { return row_groups() * row_group_bytes() + static_cast<int64_t>(scales.size()) * 4; }
  float scale_of(int64_t row, int64_t column) const;

  const uint8_t* packed() const { return buffer_.data; }
  const float* kernel_scales() const { return viewed_scales_ ? viewed_scales_ : kernel_scales_.data(); }

 private:
  TernaryWeight(int64_t n, int64_t k) : n(n), k(k) {}
  TernaryWeight(int64_t n, int64_t k, std::vector<float> scales, int64_t group, bool per_row, Packing packing);
  void read_blocks(const FileRange& file, const FileType& type);
  void read_quarters(const FileRange& file);
  void pack_group(const Kernels& kernel, const int8_t* codes, int64_t group, int64_t rows);
  Buffer buffer_;
  std::vector<float> kernel_scales_;  // one; [padded n]; or [row_group][group][16]
  const float* viewed_scales_ = nullptr;
};

class DenseWeight {
 public:
  // data (n, k): float, uint16_t bits of f16 or bf16, or int8_t codes of Q8_0 with f16 scales (n, k / 32); or rows of
  // blocks as files store them.
  DenseWeight(const void* data, int64_t n, int64_t k, DType dtype, const uint16_t* scales);

  // Uniform in [-scale, scale): the same values for the same seed on every machine. Not for types of blocks.
  static DenseWeight random(int64_t n, int64_t k, DType dtype, uint64_t seed, float scale);

  // From the bytes of a tensor in its file (ops/stored.cpp). std::exception where that is not possible.
  static DenseWeight read(const FileRange& file, int64_t n, int64_t k, DType dtype);

  // What others hold: F32, F16 or BF16, with k a multiple of 16.
  static DenseWeight view(const void* data, int64_t n, int64_t k, DType dtype);

  int64_t n, k;
  DType dtype;
  std::shared_ptr<const Screen> screen;  // where the matrix serves as an output head

  int64_t columns() const;  // k padded to what the kernels read at once
  int64_t row_bytes() const { return row_bytes_; }
  int64_t nbytes() const { return n * row_bytes_; }
  const uint8_t* rows() const { return buffer_.data; }

 private:
  struct Viewed {};
  DenseWeight(int64_t n, int64_t k, DType dtype, Viewed) : n(n), k(k), dtype(dtype) {}
  DenseWeight(int64_t n, int64_t k, DType dtype);
  int64_t row_bytes_ = 0;
  Buffer buffer_;
};

}  // namespace bitnet
