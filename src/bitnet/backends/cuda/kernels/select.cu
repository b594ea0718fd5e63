// The largest logits of each row, those that decide its next token, and the token: the others do not go to the host.
#include "draw.cuh"

constexpr int kDigits = 256;

// A float's bits, in an order in which they compare like the floats, both zeros alike; what is not a number is above
// all.
__device__ inline unsigned sortable(float x) {
  unsigned bits = x == 0.0f ? 0 : __float_as_uint(x);
  if (x != x) return 0xffffffffu;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The key of the k-th largest of `count` values of a row, digit after digit from the highest; for all threads.
template <class Key>
__device__ unsigned kth_largest(int count, int k, Key key) {
  __shared__ int seen[kDigits];
  __shared__ unsigned prefix;
  __shared__ int left;
  if (threadIdx.x == 0) prefix = 0, left = k;
  for (int shift = 24; shift >= 0; shift -= 8) {
    seen[threadIdx.x] = 0;  // kDigits == kThreads
    __syncthreads();
    unsigned above = shift == 24 ? 0 : ~0u << (shift + 8);
    for (int i = threadIdx.x; i < count; i += kThreads) {
      unsigned value = key(i);
      if ((value & above) == prefix) atomicAdd(seen + (value >> shift & 255), 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = kDigits - 1;
      while (digit > 0 && seen[digit] < left) left -= seen[digit--];
      prefix |= unsigned(digit) << shift;
    }
    __syncthreads();
  }
  return prefix;
}

// logits (rows, width) -> found (rows, 1 + 2 * room): how many there are of the `tops[row]` largest and those equal to
// them, which may be more than there is room for; their ids, in any order; and the bits of their values. A block for
// each row. names: the ids of the logits, of which there are counts[row], or more than are here; or none, and all are.
// draws (rows,): how the token of each row is drawn from these, or none; tokens (rows,): it, or -1.
extern "C" __global__ void __launch_bounds__(kThreads)
    select_largest(const float* logits, const int* tops, int width, const int* names, const int* counts, int room,
                   int* found, const Draw* draws, int* tokens) {
  const float* row = logits + size_t(blockIdx.x) * width;
  int* to = found + size_t(blockIdx.x) * (1 + 2 * room);
  int length = names ? counts[blockIdx.x] : width;
  if (length > width) {
    if (threadIdx.x == 0) to[0] = room + 1, tokens[blockIdx.x] = -1;
    return;
  }
  __shared__ int count;
  unsigned least = kth_largest(length, minimum(tops[blockIdx.x], length), [&](int i) { return sortable(row[i]); });
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < length; i += kThreads) {
    if (sortable(row[i]) < least) continue;
    int at = atomicAdd(&count, 1);
    if (at >= room) continue;
    to[1 + at] = names ? names[size_t(blockIdx.x) * width + i] : i;
    to[1 + room + at] = int(__float_as_uint(row[i]));
  }
  __syncthreads();
  int token = -1;
  if (draws && count <= room) token = draw_token(to + 1, to + 1 + room, count, tops[blockIdx.x], draws[blockIdx.x]);
  if (threadIdx.x == 0) to[0] = count, tokens[blockIdx.x] = token;
}

// Bounds (rows, vocab) of logits -> the ids whose upper bound reaches the `tops[row]`-th largest lower one, (rows,
// room), and how many there are, which may be more. A block for each row.
extern "C" __global__ void __launch_bounds__(kThreads)
    select_possible(const float* least, const float* most, const int* tops, int vocab, int room, int* counts,
                    int* ids) {
  const float* low = least + size_t(blockIdx.x) * vocab;
  const float* high = most + size_t(blockIdx.x) * vocab;
  __shared__ int count;
  unsigned bar = kth_largest(vocab, minimum(tops[blockIdx.x], vocab), [&](int i) { return sortable(low[i]); });
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < vocab; i += kThreads) {
    if (sortable(high[i]) < bar) continue;
    int at = atomicAdd(&count, 1);
    if (at < room) ids[size_t(blockIdx.x) * room + at] = i;
  }
  __syncthreads();
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}
