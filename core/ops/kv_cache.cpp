// Memory of the key-value cache; ops/attention.h has its layout.
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/registry.h"
#include "ops/attention.h"

namespace bitnet {
namespace {

constexpr int64_t kSlack = 64;  // a last vector of values may be read past the end

float element(const std::vector<float>& floats, int64_t head_dim, bool keys, int64_t position, int64_t d) {
  return floats[static_cast<size_t>(keys ? d * kPagePositions + position : position * head_dim + d)];
}

float coded(const uint8_t* page, int64_t head_dim, bool keys, int64_t position, int64_t d) {
  const int64_t lane = keys ? position : d % kLanes, factor = keys ? d % kLanes : position;
  const uint8_t byte = page[d / kLanes * kCellBytes + factor / 4 * 64 + lane * 4 + factor % 4];
  float scale;
  std::memcpy(&scale, page + cells(head_dim) * kCellBytes + 4 * position, 4);
  return static_cast<float>(byte - 128) * scale;
}

}  // namespace

KVCache::KVCache(int64_t layers, int64_t blocks, int64_t block_size, int64_t kv_heads, int64_t head_dim, KVType type)
    : layers(layers), blocks(blocks), block_size(block_size), kv_heads(kv_heads), head_dim(head_dim), type(type) {
  if (layers < 1 || blocks < 1 || kv_heads < 1 || head_dim < 1)
    throw std::invalid_argument(
        "a key-value cache needs at least one layer, block, key-value head and head dimension.");
  if (block_size < kPagePositions || block_size % kPagePositions)
    throw std::invalid_argument("block_size is " + std::to_string(block_size) + "; it must be a multiple of 16.");
  if (type == KVType::I8 && head_dim > kMostI8Columns)
    throw std::invalid_argument("head_dim is " + std::to_string(head_dim) + "; an int8 key-value cache takes " +
                                std::to_string(kMostI8Columns) + " at most.");
  // At most 20 bytes an element, of I8 with one column.
  const double bytes = 2.0 * static_cast<double>(layers) * static_cast<double>(blocks) *
                       static_cast<double>(block_size) * static_cast<double>(kv_heads) * static_cast<double>(head_dim) *
                       (type == KVType::I8 ? 20 : 4);
  if (bytes > 1e15) throw std::invalid_argument("a key-value cache of this size has no address space.");
  memory_ = std::make_unique<Mapping>(static_cast<size_t>(nbytes() + kSlack));
  data_ = memory_->data();
}

KVCache KVCache::view(uint8_t* memory, int64_t layers, int64_t blocks, int64_t kv_heads, int64_t head_dim,
                      KVType type) {
  KVCache cache;
  cache.layers = layers, cache.blocks = blocks, cache.block_size = kPagePositions, cache.kv_heads = kv_heads;
  cache.head_dim = head_dim, cache.type = type, cache.data_ = memory;
  return cache;
}

void KVCache::copy_block(int64_t source, int64_t target) {
  std::memmove(keys(0, target), keys(0, source), static_cast<size_t>(block_bytes()));
}

void KVCache::read(int64_t layer, int64_t block, float* k, float* v) const {
  std::vector<float> floats(static_cast<size_t>(kPagePositions * head_dim));
  for (const bool of_keys : {true, false}) {
    float* to = of_keys ? k : v;
    const uint8_t* page = keys(layer, block) + (of_keys ? 0 : part_bytes());
    for (int64_t p = 0; p < block_size; p += kPagePositions)
      for (int64_t h = 0; h < kv_heads; ++h, page += head_bytes()) {
        if (type != KVType::I8)
          kernels().decode_row(page, type == KVType::F16 ? DType::F16 : DType::F32, kPagePositions * head_dim,
                               floats.data());
        for (int64_t i = 0; i < kPagePositions; ++i)
          for (int64_t d = 0; d < head_dim; ++d)
            to[((p + i) * kv_heads + h) * head_dim + d] =
                type == KVType::I8 ? coded(page, head_dim, of_keys, i, d) : element(floats, head_dim, of_keys, i, d);
      }
  }
}

}  // namespace bitnet
