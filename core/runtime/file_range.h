// A part of an open file.
#pragma once
#include <cstdint>

namespace bitnet {

struct FileRange {
  int fd;
  int64_t offset, bytes;

  // Copies bytes [at, at + count) of the range, from any thread. A mapping would save the copy, and kill the process
  // where another one cuts the file short; here that is a std::runtime_error.
  void read(int64_t at, int64_t count, void* to) const;
};

}  // namespace bitnet
