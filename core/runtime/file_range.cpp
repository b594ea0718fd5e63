#include "runtime/file_range.h"

#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>

#include <cerrno>
#endif

namespace bitnet {

void FileRange::read(int64_t at, int64_t count, void* to) const {
  if (at < 0 || count < 0 || at + count > bytes) throw std::runtime_error("read beyond a part of a file.");
#if defined(__unix__) || defined(__APPLE__)
  for (int64_t done = 0; done < count;) {
    const ssize_t got = ::pread(fd, static_cast<char*>(to) + done, static_cast<size_t>(count - done),
                                static_cast<off_t>(offset + at + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw std::runtime_error("the file cannot be read.");
    done += got;
  }
#else
  (void)to;
  throw std::runtime_error("files are not read here on this system.");
#endif
}

}  // namespace bitnet
