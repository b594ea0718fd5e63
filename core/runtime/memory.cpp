#include "runtime/memory.h"

#include <mutex>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif
#include <cstdlib>
#include <cstring>

#include "runtime/numa.h"

namespace bitnet {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = 4096;
constexpr size_t kSlab = size_t{64} << 20;

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

Mapping::Mapping(size_t bytes, bool huge_pages) : bytes_(bytes) {
  base_bytes_ = round_up(bytes ? bytes : 1, kHugePage) + kHugePage;
  if (base_bytes_ < bytes) throw std::bad_alloc();
#if defined(__unix__) || defined(__APPLE__)
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
  flags |= MAP_NORESERVE;
#endif
  base_ = mmap(nullptr, base_bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (base_ == MAP_FAILED) throw std::bad_alloc();
  data_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(base_), kHugePage));
#ifdef MADV_HUGEPAGE
  if (huge_pages) madvise(data_, round_up(bytes ? bytes : 1, kHugePage), MADV_HUGEPAGE);  // a wish; failure is fine
#endif
  spread(data_, round_up(bytes ? bytes : 1, kHugePage));
#else
  base_ = std::calloc(base_bytes_, 1);
  if (!base_) throw std::bad_alloc();
  data_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(base_), kHugePage));
#endif
}

Mapping::~Mapping() {
#if defined(__unix__) || defined(__APPLE__)
  munmap(base_, base_bytes_);
#else
  std::free(base_);
#endif
}

// Tensors follow each other in slabs, so that a model of many small ones wastes no 2 MB page on each. A slab lives
// until the last of its tensors is gone.
Buffer allocate_weights(size_t bytes) {
  const size_t wanted = round_up(bytes, kPage) + kPage;
  if (wanted < bytes) throw std::bad_alloc();
  if (wanted > kSlab / 2) {
    auto owner = std::make_shared<Mapping>(wanted);
    return {owner, owner->data(), bytes};
  }
  static std::mutex mutex;
  static std::weak_ptr<Mapping> current;
  static size_t used = 0;
  const std::lock_guard lock(mutex);
  std::shared_ptr<Mapping> slab = current.lock();
  if (!slab || used + wanted > kSlab) {
    slab = std::make_shared<Mapping>(kSlab);
    current = slab;
    used = 0;
  }
  Buffer buffer{slab, slab->data() + used, bytes};
  used += wanted;
  return buffer;
}

}  // namespace bitnet
