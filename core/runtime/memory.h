// Memory for weights: large mappings on 2 MB pages, shared by many tensors.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace bitnet {

// A mapping of its own, zero-filled and touched lazily.
class Mapping {
 public:
  explicit Mapping(size_t bytes, bool huge_pages = true);  // std::bad_alloc when the system refuses
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
  void* base_ = nullptr;
  size_t base_bytes_ = 0;
};

// A piece of weight memory, 4 KB aligned, with at least 4 KB of readable bytes after it.
struct Buffer {
  std::shared_ptr<Mapping> owner;
  uint8_t* data = nullptr;
  size_t bytes = 0;
};

Buffer allocate_weights(size_t bytes);

}  // namespace bitnet
