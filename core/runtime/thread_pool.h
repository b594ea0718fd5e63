// One pool of threads for the process: fork and join in well under a microsecond while it is warm.
#pragma once
#include <cstdint>
#include <type_traits>

namespace bitnet {

int threads();                // in use now, the caller's included
void set_threads(int count);  // std::invalid_argument below 1

// Runs body(context, i) for i in [0, count) on the caller's thread and the pool's. Chunks are handed out one by one in
// ascending order. A call from inside a body, or while another thread's job runs, does its chunks on its own thread.
// The first exception of a body is rethrown here after all threads have left the job.
void parallel_for(int64_t count, void (*body)(void*, int64_t), void* context);

template <class Body>
void parallel_for(int64_t count, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  parallel_for(
      count, [](void* context, int64_t i) { (*static_cast<Plain*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace bitnet
