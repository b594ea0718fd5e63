#include "runtime/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/registry.h"
#include "runtime/memory.h"

namespace bitnet {

double read_bandwidth(int64_t bytes, int threads) {
  const Mapping memory(static_cast<size_t>(bytes));
  std::memset(memory.data(), 1, memory.bytes());
  const Kernels& k = kernels();
  const int64_t share = bytes / threads / 4096 * 4096;
  std::atomic<uint64_t> sink{0};
  const auto pass = [&](int i) { sink += k.read(memory.data() + i * share, share); };
  double best = 0;
  // A pass starts when all its threads are there, so that starting them is not measured.
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::atomic<int> waiting{threads}, running{threads};
    std::chrono::steady_clock::time_point begin, end;
    std::vector<std::thread> helpers;
    const auto body = [&](int i) {
      if (waiting.fetch_sub(1) == 1) begin = std::chrono::steady_clock::now();
      while (waiting.load() > 0) std::this_thread::yield();
      pass(i);
      if (running.fetch_sub(1) == 1) end = std::chrono::steady_clock::now();
    };
    for (int i = 1; i < threads; ++i) helpers.emplace_back(body, i);
    body(0);
    for (auto& helper : helpers) helper.join();
    best =
        std::max(best, static_cast<double>(share) * threads / std::chrono::duration<double>(end - begin).count() / 1e9);
  }
  return best;
}

}  // namespace bitnet
