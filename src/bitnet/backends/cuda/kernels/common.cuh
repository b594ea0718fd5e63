// What the kernels share: the machine's words, reductions of a fixed order, the integer matrix unit.
//
// Compiled by NVRTC without any header, and by g++ for tests, where emulation.h gives the same words a meaning.
// Compiled without contraction of a * b + c, so that a sum has the same bits in every kernel that has it.
#pragma once

#ifdef BITNET_EMULATED
#include "emulation.h"
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

constexpr int kThreads = 256;  // of a block, in all kernels: it decides the order of sums
constexpr int kWarps = kThreads / 32;
constexpr int kSlots = 16;  // positions in a block of the cache
constexpr int kRows = 64;   // of weights in a tile
constexpr int kColumns = 64;
constexpr int kTileBytes = kRows * kColumns / 4;
constexpr int kTokens = 8;  // columns of the matrix unit

// 16 bytes, which are read at once.
struct alignas(16) Words {
  unsigned at[4];
};
struct alignas(16) Four {
  float at[4];
};

__device__ inline int lane_index() { return threadIdx.x % 32; }
__device__ inline int warp_index() { return threadIdx.x / 32; }
__device__ inline int minimum(int a, int b) { return a < b ? a : b; }

#ifdef BITNET_EMULATED
inline Words load_once(const void* from) {
  if (reinterpret_cast<size_t>(from) % 16) emulation::fail("a load of 16 bytes at an address that is no multiple");
  return *static_cast<const Words*>(from);
}
#else
// Weights are read once: they pass the first cache by.
__device__ inline Words load_once(const void* from) {
  Words w;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.at[0]), "=r"(w.at[1]), "=r"(w.at[2]), "=r"(w.at[3])
               : "l"(from));
  return w;
}

template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;

// c (8 x 8, int32) += a (8 x 16, bytes of type A) * b (16 x 8, int8). PTX ISA, "Matrix Fragments for mma.m8n8k16": lane
// l has of a the row l / 4 and of b the column l / 4, both at k = 4 (l % 4); of c the columns 2 (l % 4) and one on.
#define PRODUCT(kinds)                                                                              \
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." kinds ".s32 {%0, %1}, {%2}, {%3}, {%0, %1};" \
               : "+r"(c0), "+r"(c1)                                                                 \
               : "r"(a), "r"(b))
template <class A>
__device__ inline void small_product(int& c0, int& c1, unsigned a, unsigned b) {
  if constexpr (kSame<A, signed char>)
    PRODUCT("s8.s8");
  else
    PRODUCT("u8.s8");
}
#undef PRODUCT

// c (16 x 8) += a (16 x 32) * b (32 x 8), likewise. "Matrix Fragments for mma.m16n8k32": lane l has of a the rows l / 4
// and l / 4 + 8 at k = 4 (l % 4) and, in a2 and a3, 16 further.
#define PRODUCT(kinds)                                                                \
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." kinds                         \
               ".s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                       \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
template <class A>
__device__ inline void large_product(int (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                     unsigned b1) {
  if constexpr (kSame<A, signed char>)
    PRODUCT("s8.s8");
  else
    PRODUCT("u8.s8");
}
#undef PRODUCT

__device__ inline float half_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
__device__ inline unsigned short float_to_half(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#endif

// The larger product, on every card: before 8.0 the matrix unit takes a quarter of it at once, in the same fragments.
template <class A>
__device__ inline void mma(int (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  large_product<A>(c, a0, a1, a2, a3, b0, b1);
#else
  small_product<A>(c[0], c[1], a0, b0);
  small_product<A>(c[2], c[3], a1, b0);
  small_product<A>(c[0], c[1], a2, b1);
  small_product<A>(c[2], c[3], a3, b1);
#endif
}

__device__ inline float bfloat_to_float(unsigned short bits) { return __uint_as_float(unsigned(bits) << 16); }

enum Dense { kF32, kF16, kBF16 };  // types of float matrices
enum CacheType { kCacheF32, kCacheF16, kCacheInt8 };

struct Half {
  unsigned short bits;
};
struct BFloat {
  unsigned short bits;
};
__device__ inline float widened(float x) { return x; }
__device__ inline float widened(Half x) { return half_to_float(x.bits); }
__device__ inline float widened(BFloat x) { return bfloat_to_float(x.bits); }
__device__ inline float widened(signed char x) { return float(x); }

__device__ inline float dense_at(const void* table, int type, size_t at) {
  const unsigned short* halves = static_cast<const unsigned short*>(table);
  return type == kF32   ? static_cast<const float*>(table)[at]
         : type == kF16 ? half_to_float(halves[at])
                        : bfloat_to_float(halves[at]);
}

__device__ inline bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {  // a number that is not one stays
  __device__ float operator()(float a, float b) const { return a > b || a != a ? a : b; }
};

template <class T, class Combine>
__device__ T reduce_warp(T value, Combine combine) {
  for (int step = 16; step; step /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

// Of all threads, to all threads: within warps as a tree, then warp after warp.
template <class T, class Combine>
__device__ T reduce_block(T value, Combine combine) {
  __shared__ T parts[kWarps];
  value = reduce_warp(value, combine);
  __syncthreads();  // the parts of the reduction before may still be read
  if (lane_index() == 0) parts[warp_index()] = value;
  __syncthreads();
  T total = parts[0];
  for (int warp = 1; warp < kWarps; ++warp) total = combine(total, parts[warp]);
  return total;
}
