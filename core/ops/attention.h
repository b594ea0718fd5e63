// Causal attention over a paged key-value cache.
#pragma once
#include <cstdint>
#include <memory>

#include "kernels/kernels.h"
#include "runtime/memory.h"
#include "tensor.h"

namespace bitnet {

// Keys and values of all layers. Physical memory is taken when a block is first written.
//
//   block: [layer][keys, values][block_size / 16][kv_head] pages of 16 positions, as kernels.h has them
class KVCache {
 public:
  KVCache(int64_t layers, int64_t blocks, int64_t block_size, int64_t kv_heads, int64_t head_dim, KVType type);

  // Over memory of somebody else, in blocks of one page: of F32 or F16, with a head_dim that is a multiple of 16.
  static KVCache view(uint8_t* memory, int64_t layers, int64_t blocks, int64_t kv_heads, int64_t head_dim, KVType type);

  void copy_block(int64_t source, int64_t target);  // in every layer
  // What is stored of a block's keys and values, each as floats [block_size][kv_heads][head_dim].
  void read(int64_t layer, int64_t block, float* k, float* v) const;

  int64_t layers, blocks, block_size, kv_heads, head_dim;
  KVType type;

  int64_t pages_per_block() const { return block_size / kPagePositions; }
  int64_t head_bytes() const { return bitnet::page_bytes(type, head_dim); }
  int64_t page_bytes() const { return kv_heads * head_bytes(); }
  int64_t part_bytes() const { return pages_per_block() * page_bytes(); }  // keys or values of a layer in a block
  int64_t block_bytes() const { return 2 * layers * part_bytes(); }
  int64_t nbytes() const { return blocks * block_bytes(); }
  // The first page of a block's keys; its values follow after part_bytes().
  uint8_t* keys(int64_t layer, int64_t block) const { return data_ + block * block_bytes() + 2 * layer * part_bytes(); }

 private:
  KVCache() = default;
  std::unique_ptr<Mapping> memory_;
  uint8_t* data_ = nullptr;
};

// Tokens of B sequences on one axis: sequence b owns tokens starts[b] .. starts[b + 1] and the blocks of row b of
// block_tables.
struct Batch {
  const int32_t* positions;
  const int32_t* starts;
  int64_t sequences;
  Matrix<const int32_t> block_tables;
};

// Writes k and v (T, kv_heads * head_dim) at their positions, then lets token t attend positions 0 .. positions[t] of
// its sequence. A sequence is cut at fixed positions, and its parts are folded in ascending order: neither batch nor
// threads change a bit.
//
// window: positions that a token attends, its own included; 0: all.
void attention(Matrix<const float> q, const float* k, const float* v, KVCache& cache, int64_t layer, const Batch& batch,
               float scale, int64_t window, float* y);

}  // namespace bitnet
