#include "runtime/thread_pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "runtime/processors.h"

namespace bitnet {
namespace {

constexpr auto kSpin = std::chrono::microseconds(100);  // an idle thread looks for work this long before it sleeps
constexpr int kMostThreads = 1024;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

thread_local bool inside_job = false;

// The caller publishes a job by making `open` non-zero and takes chunks itself; workers that are awake join. A worker
// counts itself in `active` before it looks at `open`, and the caller closes the job before it waits for `active` to
// reach 0 (both sequentially consistent), so nobody touches a job that is over, and a worker that sleeps or is
// preempted never holds up the caller.
class Pool {
 public:
  explicit Pool(int threads) {
    workers_.reserve(static_cast<size_t>(threads - 1));
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  // Ends the workers, after the job that runs. The object stays usable (its callers do all chunks themselves) and is
  // never freed, because another thread may be about to call run().
  void retire() {
    const std::lock_guard lock(busy_);
    {
      const std::lock_guard sleep_lock(sleep_mutex_);
      stop_.store(true);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
  }

  void run(int64_t count, void (*body)(void*, int64_t), void* context) {
    if (count <= 1 || inside_job || !busy_.try_lock()) {
      for (int64_t i = 0; i < count; ++i) body(context, i);
      return;
    }
    const std::lock_guard lock(busy_, std::adopt_lock);
    body_ = body, context_ = context, count_ = count;
    next_.store(0, std::memory_order_relaxed);
    open_.store(++generation_);
    if (sleepers_.load() > 0) {
      const std::lock_guard sleep_lock(sleep_mutex_);
      wake_.notify_all();
    }
    take_chunks();
    open_.store(0);
    for (int spins = 0; active_.load() != 0; ++spins) {
      pause();
      if (spins > 20000) std::this_thread::yield();  // more threads than CPUs: let the last worker finish
    }
    if (failed_.load(std::memory_order_relaxed)) rethrow();
  }

 private:
  void take_chunks() {
    inside_job = true;
    try {
      for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) body_(context_, i);
    } catch (...) {
      const std::lock_guard lock(failure_mutex_);
      if (!failure_) failure_ = std::current_exception();
      failed_.store(true);
      next_.store(count_, std::memory_order_relaxed);
    }
    inside_job = false;
  }

  void rethrow() {
    std::exception_ptr failure;
    std::swap(failure, failure_);
    failed_.store(false);
    std::rethrow_exception(failure);
  }

  void work() {
    uint64_t seen = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
      active_.fetch_add(1);
      const uint64_t job = open_.load();
      if (job && job != seen) {
        seen = job;
        take_chunks();
      }
      active_.fetch_sub(1);
      wait(seen);
    }
  }

  // Until a job opens that this thread has not seen: first spinning, then asleep.
  void wait(uint64_t seen) {
    const auto news = [&] {
      const uint64_t job = open_.load();
      return (job && job != seen) || stop_.load(std::memory_order_relaxed);
    };
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 64; ++i) {
        if (news()) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < deadline);
    std::unique_lock lock(sleep_mutex_);
    sleepers_.fetch_add(1);  // before the last look, so that a caller either is seen or sees a sleeper
    while (!news()) wake_.wait(lock);
    sleepers_.fetch_sub(1);
  }

  std::vector<std::thread> workers_;
  void (*body_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  uint64_t generation_ = 0;
  std::mutex busy_;
  std::exception_ptr failure_;
  std::mutex failure_mutex_;
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  alignas(128) std::atomic<uint64_t> open_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> failed_{false};
  alignas(128) std::atomic<int64_t> next_{0};
  alignas(128) std::atomic<int> active_{0};
};

std::mutex pool_mutex;
std::atomic<Pool*> pool{nullptr};
std::atomic<int> wanted{0};  // 0: the default

Pool& current_pool() {
  Pool* p = pool.load(std::memory_order_acquire);
  if (p) return *p;
  const std::lock_guard lock(pool_mutex);
  p = pool.load();
  if (!p) {
#if defined(__unix__) || defined(__APPLE__)
    // A forked child has no workers: it forgets the parent's pool and makes its own when it first needs one.
    static const int registered = pthread_atfork(nullptr, nullptr, [] {
      pool.store(nullptr);
      new (&pool_mutex) std::mutex;
      inside_job = false;
    });
    (void)registered;
#endif
    p = new Pool(threads());
    pool.store(p, std::memory_order_release);
  }
  return *p;
}

}  // namespace

int threads() {
  int n = wanted.load();
  if (n == 0) wanted.store(n = default_threads());
  return n;
}

void set_threads(int count) {
  if (count < 1 || count > kMostThreads)
    throw std::invalid_argument("threads must be 1 to " + std::to_string(kMostThreads) + ", not " +
                                std::to_string(count) + ".");
  const std::lock_guard lock(pool_mutex);
  Pool* old = pool.load();
  if (wanted.exchange(count) == count) return;
  pool.store(nullptr);
  if (old) old->retire();
}

void parallel_for(int64_t count, void (*body)(void*, int64_t), void* context) {
  if (count == 1) return body(context, 0);
  if (count > 0) current_pool().run(count, body, context);
}

}  // namespace bitnet
