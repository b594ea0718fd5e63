// Around attention: queries and keys are turned, keys and values go into the cache; then the splits become one.
//
// Of a layer the cache has first the keys and then the values, each (kv_heads, slots, head_dim); as int8 beside them
// scales (kv_heads, slots).
#include "common.cuh"

constexpr int kPairs = 8;  // of a vector that a lane has: up to 512 numbers

struct Pairs {
  float a[kPairs], b[kPairs];
};

// The numbers i and i + half of a vector, or 2 i and 2 i + 1 where the style is interleaved, for lane i; turned, where
// there are angles.
__device__ inline Pairs load_pairs(const float* x, int half, bool interleaved, const float* cos, const float* sin) {
  Pairs p;
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    int i = lane_index() + 32 * n;
    p.a[n] = p.b[n] = 0.0f;
    if (i >= half) continue;
    float a = x[interleaved ? 2 * i : i], b = x[interleaved ? 2 * i + 1 : i + half];
    p.a[n] = cos ? a * cos[i] - b * sin[i] : a;
    p.b[n] = cos ? b * cos[i] + a * sin[i] : b;
  }
  return p;
}

__device__ inline bool all_finite(const Pairs& p) {
  bool finite = true;
#pragma unroll
  for (int n = 0; n < kPairs; ++n) finite = finite && is_finite(p.a[n]) && is_finite(p.b[n]);
  return __all_sync(0xffffffffu, finite);
}

__device__ inline void store_floats(float* to, const Pairs& p, int half, bool interleaved) {
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    int i = lane_index() + 32 * n;
    if (i >= half) continue;
    to[interleaved ? 2 * i : i] = p.a[n];
    to[interleaved ? 2 * i + 1 : i + half] = p.b[n];
  }
}

__device__ inline void store_halves(unsigned short* to, const Pairs& p, int half, bool interleaved) {
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    int i = lane_index() + 32 * n;
    if (i >= half) continue;
    to[interleaved ? 2 * i : i] = float_to_half(p.a[n]);
    to[interleaved ? 2 * i + 1 : i + half] = float_to_half(p.b[n]);
  }
}

// absmax / 127, which is written where `scale` is; a vector that is not finite becomes zeros.
__device__ inline void store_codes(signed char* to, float* scale, const Pairs& p, int half, bool interleaved,
                                   bool finite, bool valid) {
  float most = 0.0f;
#pragma unroll
  for (int n = 0; n < kPairs; ++n) most = fmaxf(most, fmaxf(fabsf(p.a[n]), fabsf(p.b[n])));
  most = reduce_warp(most, Largest());
  if (!finite || most < 1e-30f) most = 0.0f;
  float inverse = most > 0.0f ? 127.0f / most : 0.0f;
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    int i = lane_index() + 32 * n;
    if (i >= half) continue;
    to[interleaved ? 2 * i : i] = static_cast<signed char>(most > 0.0f ? __float2int_rn(p.a[n] * inverse) : 0);
    to[interleaved ? 2 * i + 1 : i + half] =
        static_cast<signed char>(most > 0.0f ? __float2int_rn(p.b[n] * inverse) : 0);
  }
  if (lane_index() == 0) *scale = valid ? most / 127.0f : __uint_as_float(0x7fc00000u);
}

// x (tokens, heads * head_dim) -> out. A warp for each head.
extern "C" __global__ void __launch_bounds__(kThreads)
    rope_rows(const float* x, const int* positions, const float* cos, const float* sin, int interleaved, int heads,
              int head_dim, float* out) {
  int half = head_dim / 2, token = blockIdx.x;
  size_t angles = size_t(positions[token]) * half;
  for (int head = warp_index(); head < heads; head += kWarps) {
    size_t at = (size_t(token) * heads + head) * head_dim;
    store_floats(out + at, load_pairs(x + at, half, interleaved, cos + angles, sin + angles), half, interleaved);
  }
}

// q is turned into `out`, k and v are stored; a warp for each head. cos: or none, where q and k are turned already.
// rows: the sequence of each token; tables (sequences, blocks).
extern "C" __global__ void __launch_bounds__(kThreads)
    store_rows(const float* q, const float* k, const float* v, const int* positions, const int* rows, const int* tables,
               int blocks, const float* cos, const float* sin, int interleaved, int heads, int kv_heads, int head_dim,
               void* keys, void* values, float* key_scales, float* value_scales, int type, int slots, float* out) {
  int half = head_dim / 2, token = blockIdx.x, position = positions[token];
  if (cos) cos += size_t(position) * half, sin += size_t(position) * half;
  size_t slot = size_t(tables[size_t(rows[token]) * blocks + position / kSlots]) * kSlots + position % kSlots;
  for (int head = warp_index(); head < heads + kv_heads; head += kWarps) {
    if (head < heads) {
      size_t at = (size_t(token) * heads + head) * head_dim;
      if (cos) store_floats(out + at, load_pairs(q + at, half, interleaved, cos, sin), half, interleaved);
      continue;
    }
    int kv = head - heads;
    size_t from = (size_t(token) * kv_heads + kv) * head_dim, vector = size_t(kv) * slots + slot;
    Pairs key = load_pairs(k + from, half, interleaved, cos, sin);
    Pairs value = load_pairs(v + from, half, interleaved, nullptr, nullptr);
    size_t to = vector * head_dim;
    if (type == kCacheF32) {
      store_floats(static_cast<float*>(keys) + to, key, half, interleaved);
      store_floats(static_cast<float*>(values) + to, value, half, interleaved);
    } else if (type == kCacheF16) {
      store_halves(static_cast<unsigned short*>(keys) + to, key, half, interleaved);
      store_halves(static_cast<unsigned short*>(values) + to, value, half, interleaved);
    } else {
      bool key_finite = all_finite(key), value_finite = all_finite(value);
      store_codes(static_cast<signed char*>(keys) + to, key_scales + vector, key, half, interleaved, key_finite, true);
      store_codes(static_cast<signed char*>(values) + to, value_scales + vector, value, half, interleaved, value_finite,
                  key_finite && value_finite);
    }
  }
}

// Splits (tokens, heads, splits, head_dim) with the largest score and the sum of the weights of each -> (tokens, heads
// * head_dim). A row has the splits of its first position to that of its own, added up in this order.
extern "C" __global__ void __launch_bounds__(kThreads)
    join_splits(const float* parts, const float* largest, const float* weights, const int* positions, int window,
                int width, int heads, int splits, int head_dim, float* out) {
  int token = blockIdx.x, position = positions[token];
  int first = window && position >= window ? (position - window + 1) / width : 0, last = position / width;
  for (int head = warp_index(); head < heads; head += kWarps) {
    size_t at = (size_t(token) * heads + head) * splits;
    float most = -1e30f, total = 0.0f;
    for (int s = first; s <= last; ++s) most = Largest()(largest[at + s], most);
    for (int s = first; s <= last; ++s) total += weights[at + s] * expf(largest[at + s] - most);
    for (int d = lane_index(); d < head_dim; d += 32) {
      float sum = 0.0f;
      for (int s = first; s <= last; ++s) sum += parts[(at + s) * head_dim + d] * expf(largest[at + s] - most);
      out[(size_t(token) * heads + head) * head_dim + d] = sum / total;
    }
  }
}
