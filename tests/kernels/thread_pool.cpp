// What the thread pool promises, under the thread sanitizer where the compiler has it; run by test_thread_pool.py.
#include "runtime/thread_pool.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

using namespace bitnet;

namespace {

void expect(bool holds, const char* what, int64_t count) {
  if (holds) return;
  std::printf("%s (%d chunks, %d threads)\n", what, static_cast<int>(count), threads());
  std::exit(1);
}

// The plain counters are the point: a chunk that two threads take is a data race.
void every_chunk_runs_once(int64_t count, Deal deal) {
  std::vector<int> runs(static_cast<size_t>(count), 0);
  parallel_for(count, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; }, deal);
  for (const int n : runs) expect(n == 1, "a chunk did not run once", count);
}

void an_exception_comes_out_and_the_pool_goes_on(Deal deal) {
  bool caught = false;
  try {
    parallel_for(
        50,
        [](int64_t i) {
          if (i == 37) throw std::runtime_error("37");
        },
        deal);
  } catch (const std::runtime_error&) {
    caught = true;
  }
  expect(caught, "an exception was lost", 50);
  every_chunk_runs_once(50, deal);
}

void a_call_from_inside_runs_too() {
  std::atomic<int> runs{0};
  parallel_for(6, [&](int64_t) { parallel_for(7, [&](int64_t) { ++runs; }); });
  expect(runs == 42, "chunks of an inner call were lost", 6);
}

void two_callers_at_once() {
  std::vector<std::thread> callers;
  for (int c = 0; c < 2; ++c)
    callers.emplace_back([] {
      for (int i = 0; i < 200; ++i) every_chunk_runs_once(20, i % 2 ? Deal::Queue : Deal::Streams);
    });
  for (auto& caller : callers) caller.join();
}

}  // namespace

int main() {
  for (int n = 1; n <= 5; ++n) {
    set_threads(n);
    for (const Deal deal : {Deal::Streams, Deal::Queue}) {
      for (int64_t count = 0; count < 40; ++count)
        for (int repeat = 0; repeat < 20; ++repeat) every_chunk_runs_once(count, deal);
      an_exception_comes_out_and_the_pool_goes_on(deal);
    }
    a_call_from_inside_runs_too();
    two_callers_at_once();
  }
  std::puts("done");
}
