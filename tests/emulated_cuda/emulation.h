// CUDA's words for g++, one thread of a block after the other: each is a fibre that runs to the next barrier of its
// block or its warp. Shared memory is poisoned before each block. Blocks run one after the other.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

using std::size_t;
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __restrict__
#define DYNAMIC_SHARED(name) unsigned char* name = emulation::shared_memory

struct Index {
  unsigned x, y, z;
};
inline Index threadIdx, blockIdx, gridDim, blockDim;

// Leaves a stack, whose end it notes, for another; ucontext.h would ask the kernel each time.
extern "C" void switch_stack(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl switch_stack
switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
#error "The emulation switches stacks of x86-64 only."
#endif

namespace emulation {

constexpr int kLanes = 32, kMost = 1024, kShared = 232448;
alignas(16) inline unsigned char shared_memory[kShared];
inline bool backwards = false;  // the order in which threads take turns: no result may depend on it

// What stops a fibre: a barrier of the block, or of a warp with something to exchange.
enum class Wait { kNothing, kBlock, kWarp, kDone };

struct Fibre {
  void* stack;
  Wait wait;
};
inline Fibre fibres[kMost];
inline void* scheduler;
inline int current, threads;
inline uint64_t mailbox[kMost][16];  // what a lane shows its warp
inline void (*body)(void*);
inline void* body_argument;
constexpr size_t kStack = 1 << 16;
inline std::vector<unsigned char> stacks;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s (block %u, %u; thread %d)\n", what, blockIdx.x, blockIdx.y, current);
  std::abort();
}

inline void pause(Wait wait) {
  fibres[current].wait = wait;
  switch_stack(&fibres[current].stack, scheduler);
}

inline void enter() {
  body(body_argument);
  pause(Wait::kDone);
}

inline void resume(int thread) {
  current = thread;
  threadIdx = {unsigned(thread), 0, 0};
  fibres[thread].wait = Wait::kNothing;
  switch_stack(&scheduler, fibres[thread].stack);
}

inline void run_warp(int warp) {
  int first = warp * kLanes, last = std::min(first + kLanes, threads);
  for (;;) {
    for (int i = 0; i < last - first; ++i) {
      int thread = backwards ? last - 1 - i : first + i;
      if (fibres[thread].wait != Wait::kDone) resume(thread);
    }
    Wait all = fibres[first].wait;
    for (int thread = first; thread < last; ++thread)
      if (fibres[thread].wait != all) fail("the threads of a warp wait for different things");
    if (all != Wait::kWarp) return;
  }
}

inline void run_block() {
  stacks.resize(kStack * kMost);
  std::memset(shared_memory, 0xa5, kShared);
  for (int thread = 0; thread < threads; ++thread) {
    Fibre& fibre = fibres[thread];
    // Six registers, and where to go on: as if it had just left.
    auto end = reinterpret_cast<uintptr_t>(stacks.data() + size_t(thread + 1) * kStack) & ~uintptr_t(15);
    void** frame = reinterpret_cast<void**>(end - 64);
    frame[6] = reinterpret_cast<void*>(enter);
    fibre = {frame, Wait::kNothing};
  }
  int warps = (threads + kLanes - 1) / kLanes;
  for (;;) {
    for (int i = 0; i < warps; ++i) run_warp(backwards ? warps - 1 - i : i);
    bool done = false, waiting = false;
    for (int warp = 0; warp < warps; ++warp) {
      done |= fibres[warp * kLanes].wait == Wait::kDone;
      waiting |= fibres[warp * kLanes].wait == Wait::kBlock;
    }
    if (done && waiting) fail("a warp has ended while another waits at a barrier");
    if (done) return;
  }
}

// What every lane shows is seen by all of its warp, until their next exchange but one.
template <class T>
const T& of_lane(int lane) {
  return *reinterpret_cast<const T*>(mailbox[current / kLanes * kLanes + lane]);
}
template <class T>
void show(const T& value) {
  static_assert(sizeof(T) <= sizeof mailbox[0]);
  std::memcpy(mailbox[current], &value, sizeof value);
  pause(Wait::kWarp);
}
inline void seen() { pause(Wait::kWarp); }

template <class... Args, size_t... I>
void call(void (*kernel)(Args...), void** values, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<Args>*>(values[I])...);
}

template <class... Args>
void launch(void (*kernel)(Args...), const unsigned* grid, unsigned block, void** values) {
  struct Call {
    void (*kernel)(Args...);
    void** values;
  } it{kernel, values};
  body = [](void* argument) {
    auto* it = static_cast<Call*>(argument);
    call(it->kernel, it->values, std::index_sequence_for<Args...>());
  };
  body_argument = &it;
  threads = int(block);
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block, 1, 1};
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        run_block();
      }
}

}  // namespace emulation

inline void __syncthreads() { emulation::pause(emulation::Wait::kBlock); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulation::seen(); }
inline void __threadfence() {}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  emulation::show(value);
  T other = emulation::of_lane<T>((emulation::current % 32) ^ mask);
  emulation::seen();
  return other;
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  emulation::show(value);
  T other = emulation::of_lane<T>(lane);
  emulation::seen();
  return other;
}
inline unsigned __ballot_sync(unsigned, bool value) {
  emulation::show(value);
  unsigned all = 0;
  for (int lane = 0; lane < 32; ++lane) all |= unsigned(emulation::of_lane<bool>(lane)) << lane;
  emulation::seen();
  return all;
}
inline bool __all_sync(unsigned, bool value) {
  emulation::show(value);
  bool all = true;
  for (int lane = 0; lane < 32; ++lane) all = all && emulation::of_lane<bool>(lane);
  emulation::seen();
  return all;
}

template <class T>
T atomicAdd(T* to, T value) {
  T before = *to;
  *to = before + value;
  return before;
}
template <class T>
T atomicExch(T* to, T value) {
  return std::exchange(*to, value);
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline int __float2int_rn(float x) { return x != x ? 0 : int(std::nearbyint(x)); }

// A card's exp in float64 is good to a unit in the last place (CUDA Programming Guide, "Mathematical Functions"), as a
// host's is, but not to the same bits.
inline double exp_of_a_card(double x) {
  double y = std::exp(x);
  uint64_t bits;
  std::memcpy(&bits, &y, 8);
  return x == 0.0 || y == 0.0 ? y : std::nextafter(y, bits % 3 == 0 ? 0.0 : 2.0);
}
#define exp exp_of_a_card

inline float half_to_float(unsigned short h) {
  unsigned sign = unsigned(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  float magnitude = exponent == 31  ? __uint_as_float(0x7f800000u | fraction << 13)
                    : exponent == 0 ? std::ldexp(float(fraction), -24)
                                    : std::ldexp(float(1024 + fraction), int(exponent) - 25);
  return __uint_as_float(__float_as_uint(magnitude) | sign);
}
inline unsigned short float_to_half(float x) {
  unsigned short sign = __float_as_uint(x) >> 16 & 0x8000;
  float size = std::fabs(x);
  if (x != x) return sign | 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent = size < 6.103515625e-05f ? -14 : std::ilogb(size);
  float units = std::nearbyint(std::ldexp(size, 10 - exponent));  // of the last place, ties to even
  return sign | static_cast<unsigned short>(units < 1024 ? units : (exponent + 14) * 1024 + units);
}

// Every lane puts its elements into the matrices, which are then multiplied as matrices are: a (rows, k) and, by
// columns, b (8, k).
template <int kMostRows, int kMostK>
struct Matrices {
  int a[kMostRows][kMostK], b[8][kMostK];

  void multiply(int& c, int row, int column) const {
    for (int k = 0; k < kMostK; ++k) c += a[row][k] * b[column][k];
  }
};
template <class T>
int byte_of(unsigned word, int i) {
  return static_cast<T>(word >> 8 * i);
}

// PTX ISA 9.2, 9.7.14.5, "Matrix Fragments for mma.m16n8k32" (.u8/.s8, .s32). A lane has, with group = lane / 4 and
// member = lane % 4, element i of a fragment in byte i % 4 of its register i / 4 (of C: in register i) at
//   A (a0 .. a15)  row group for i < 4 or 8 <= i < 12, else group + 8;  k 4 member + i % 4, and 16 more for i >= 8
//   B (b0 .. b7)   k 4 member + i % 4, and 16 more for i >= 4;  column group
//   C (c0 .. c3)   row group for i < 2, else group + 8;  column 2 member + i % 2
template <class A>
void large_product(int (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  using namespace emulation;
  static Matrices<16, 32> of_warps[kMost / kLanes];
  auto& it = of_warps[current / kLanes];
  int group = current % kLanes / 4, member = current % 4;
  unsigned registers[] = {a0, a1, a2, a3}, others[] = {b0, b1};
  for (int i = 0; i < 16; ++i) {
    int row = i < 4 || (8 <= i && i < 12) ? group : group + 8, k = 4 * member + i % 4 + (i < 8 ? 0 : 16);
    it.a[row][k] = byte_of<A>(registers[i / 4], i % 4);
  }
  for (int i = 0; i < 8; ++i)
    it.b[group][4 * member + i % 4 + (i < 4 ? 0 : 16)] = byte_of<int8_t>(others[i / 4], i % 4);
  seen();
  for (int i = 0; i < 4; ++i) it.multiply(c[i], i < 2 ? group : group + 8, 2 * member + i % 2);
  seen();
}

// The same section, "Matrix Fragments for mma.m8n8k16": A row group, B column group, both at k 4 member + i; C row
// group, column 2 member + i.
template <class A>
void small_product(int& c0, int& c1, unsigned a, unsigned b) {
  using namespace emulation;
  static Matrices<8, 16> of_warps[kMost / kLanes];
  auto& it = of_warps[current / kLanes];
  int group = current % kLanes / 4, member = current % 4;
  for (int i = 0; i < 4; ++i) {
    it.a[group][4 * member + i] = byte_of<A>(a, i);
    it.b[group][4 * member + i] = byte_of<int8_t>(b, i);
  }
  seen();
  it.multiply(c0, group, 2 * member);
  it.multiply(c1, group, 2 * member + 1);
  seen();
}

extern "C" void set_backwards(bool on) { emulation::backwards = on; }
// A kernel by its name, as the driver launches it: values are pointers to the arguments.
#define EMULATE(kernel)                                                                  \
  extern "C" void launch_##kernel(const unsigned* grid, unsigned block, void** values) { \
    emulation::launch(kernel, grid, block, values);                                      \
  }
