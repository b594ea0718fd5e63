// Attention over the paged cache in splits of positions, for cards that Triton does not compile for.
#include "common.cuh"

constexpr int kQueries = 32;  // rows and heads of a block
constexpr int kOfWarp = kQueries / kWarps;
constexpr int kStep = 32;           // positions at once: one for each lane
constexpr int kDims = 128;          // of a head, at once
constexpr int kChunks = 2;          // of these: a head has 256 at most
constexpr int kPitch = kDims + 4;   // lanes that read 16 bytes of a vector each fall into different banks
constexpr float kNothing = -1e30f;  // a score that weighs nothing

// Of kStep vectors the numbers from `first` on, `count` of them, as floats; zeros where there is no vector, or no such
// number.
template <class T>
__device__ inline void stage(float* to, const T* from, const long long* places, int head_dim, int first, int count) {
  for (int i = warp_index(); i < kStep; i += kWarps) {
    bool there = places[i] >= 0;
    const T* vector = from + (there ? places[i] : 0) * head_dim + first;
#pragma unroll
    for (int d = lane_index(); d < kDims; d += 32) {
      bool real = there && first + d < head_dim;
      float x = widened(vector[real ? d : 0]);
      if (d < count) to[i * kPitch + d] = real ? x : 0.0f;
    }
  }
}

__device__ inline void stage_any(float* to, const void* from, int type, const long long* places, int head_dim,
                                 int first, int count) {
  if (type == kCacheF32) stage(to, static_cast<const float*>(from), places, head_dim, first, count);
  if (type == kCacheF16) stage(to, static_cast<const Half*>(from), places, head_dim, first, count);
  if (type == kCacheInt8) stage(to, static_cast<const signed char*>(from), places, head_dim, first, count);
}

// The `count` first of the staged values, each times its position's weight, which is that lane's; seen: a bit for each.
__device__ inline void add_values(float (&total)[kOfWarp][4], const float (&weight)[kOfWarp],
                                  const unsigned (&seen)[kOfWarp], const float* values, int dims, int count) {
  int mine = 4 * lane_index() < dims ? 4 * lane_index() : 0;
  for (int s = 0; s < count; ++s) {
    Four value = *reinterpret_cast<const Four*>(values + s * kPitch + mine);
#pragma unroll
    for (int i = 0; i < kOfWarp; ++i) {
      float w = __shfl_sync(0xffffffffu, weight[i], s);
      if (!(seen[i] >> s & 1)) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) total[i][j] = fmaf(w, value.at[j], total[i][j]);
    }
  }
}

// q (tokens, heads * head_dim) and a layer's keys and values (kv_heads, slots, head_dim) -> parts (tokens, heads,
// splits, head_dim): of each split, whose positions are `width`, the softmax not yet divided by its weights' sum; and
// the largest score and that sum, (tokens, heads, splits).
// queries (programs, 3): a sequence, its first row here, and how many rows; tables (sequences, blocks).
// Blocks: programs; kv heads, times the runs of kQueries heads that a group has; splits.
// Shared memory: q (kQueries, head_dim in fours), then keys or values (kStep, kPitch).
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    attend_splits(const float* q, const void* keys, const void* values, const float* key_scales,
                  const float* value_scales, const int* queries, const int* positions, const int* tables, int blocks,
                  int slots, int heads, int splits, float scale, int window, float* parts, float* largest,
                  float* weights, int head_dim, int group, int width, int type) {
  DYNAMIC_SHARED(memory);
  __shared__ long long places[kStep];  // vectors of the cache; -1: none
  int lane = lane_index(), runs = (group + kQueries - 1) / kQueries, kv = int(blockIdx.y) / runs;
  int first_head = int(blockIdx.y) % runs * kQueries, each = minimum(group - first_head, kQueries);
  int sequence = queries[3 * blockIdx.x], first = queries[3 * blockIdx.x + 1], count = queries[3 * blockIdx.x + 2];
  int start = int(blockIdx.z) * width, lowest = positions[first], highest = positions[first + count - 1];
  if (start > highest || (window && start + width <= lowest - window + 1)) return;

  int padded = (head_dim + 3) / 4 * 4;
  float* shared_q = reinterpret_cast<float*>(memory);
  float* shared_kv = shared_q + kQueries * padded;
  // The vector of a query, or where one of its split's results goes.
  auto vector_of = [&](int query) {
    return size_t(first + query / each) * heads + kv * group + first_head + query % each;
  };
  for (int i = threadIdx.x; i < kQueries * padded; i += kThreads) {
    int query = i / padded, d = i % padded;
    shared_q[i] = query < count * each && d < head_dim ? q[vector_of(query) * head_dim + d] : 0.0f;
  }

  int mine = warp_index() * kOfWarp, position[kOfWarp];
  bool idle = mine >= count * each;  // but it takes part in what all do
  float most[kOfWarp], sum[kOfWarp], total[kChunks][kOfWarp][4] = {};
#pragma unroll
  for (int i = 0; i < kOfWarp; ++i) {
    position[i] = mine + i < count * each ? positions[first + (mine + i) / each] : -1;
    most[i] = kNothing, sum[i] = 0.0f;
  }

  for (int begin = start; begin < start + width && begin <= highest; begin += kStep) {
    int p = begin + lane;
    if (threadIdx.x < kStep)
      places[lane] = p > highest ? -1
                                 : (long long)kv * slots +
                                       (long long)tables[size_t(sequence) * blocks + p / kSlots] * kSlots + p % kSlots;
    float score[kOfWarp] = {};
    for (int from = 0; from < padded; from += kDims) {
      int dims = minimum(padded - from, kDims);
      __syncthreads();  // the places are written, what was staged before is read
      stage_any(shared_kv, keys, type, places, head_dim, from, dims);
      __syncthreads();
      for (int d = 0; d < (idle ? 0 : dims); d += 4) {
        Four key = *reinterpret_cast<const Four*>(shared_kv + lane * kPitch + d);
#pragma unroll
        for (int i = 0; i < kOfWarp; ++i) {
          Four query = *reinterpret_cast<const Four*>(shared_q + (mine + i) * padded + from + d);
#pragma unroll
          for (int j = 0; j < 4; ++j) score[i] = fmaf(query.at[j], key.at[j], score[i]);
        }
      }
    }
    float weight[kOfWarp];
    unsigned seen[kOfWarp];  // what a row does not see must not reach it, not even as 0 * NaN
    if (!idle) {
      bool coded = type == kCacheInt8 && p <= highest;
      float key_scale = coded ? key_scales[places[lane]] : 1.0f,
            value_scale = coded ? value_scales[places[lane]] : 1.0f;
#pragma unroll
      for (int i = 0; i < kOfWarp; ++i) {
        bool sees = p <= position[i] && (!window || p > position[i] - window);
        float logit = score[i] * key_scale * scale;
        float before = most[i];
        float larger = reduce_warp(sees ? logit : kNothing, [](float a, float b) { return fmaxf(a, b); });
        most[i] = fmaxf(before, larger);  // which passes NaN by: its weight is NaN all the same
        weight[i] = sees ? expf(logit - most[i]) : 0.0f;
        float shrink = expf(before - most[i]);
        sum[i] = sum[i] * shrink + weight[i];  // of this lane's positions
        weight[i] = weight[i] * value_scale;
        seen[i] = __ballot_sync(0xffffffffu, sees);
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk)
#pragma unroll
          for (int j = 0; j < 4; ++j) total[chunk][i][j] *= shrink;
      }
    }
    for (int chunk = 0; chunk * kDims < padded; ++chunk) {
      int dims = minimum(padded - chunk * kDims, kDims), last = minimum(kStep, highest - begin + 1);
      __syncthreads();
      stage_any(shared_kv, values, type, places, head_dim, chunk * kDims, dims);
      __syncthreads();
      if (idle) continue;
      if (chunk == 0)
        add_values(total[0], weight, seen, shared_kv, dims, last);
      else
        add_values(total[1], weight, seen, shared_kv, dims, last);
    }
  }

  if (idle) return;
#pragma unroll
  for (int i = 0; i < kOfWarp; ++i) {
    float whole = reduce_warp(sum[i], Sum());
    if (position[i] < 0) continue;
    size_t at = vector_of(mine + i) * splits + blockIdx.z;
    if (lane == 0) largest[at] = most[i], weights[at] = whole;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int d = chunk * kDims + 4 * lane + j;
        if (d < head_dim) parts[at * head_dim + d] = total[chunk][i][j];
      }
  }
}
