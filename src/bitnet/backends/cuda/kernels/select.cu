// The largest logits of each row, those that decide its next token, and the token: the others do not go to the host.
#include "draw.cuh"

constexpr int kDigits = 256;
constexpr int kChunk = 128;  // numbers that share an entry of what says where to look

struct Larger {
  __device__ unsigned operator()(unsigned a, unsigned b) const { return a > b ? a : b; }
};

// A float's bits, in an order in which they compare like the floats, both zeros alike; what is not a number is above
// all.
__device__ inline unsigned sortable(float x) {
  unsigned bits = x == 0.0f ? 0 : __float_as_uint(x);
  if (x != x) return 0xffffffffu;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// values (rows, width) -> the largest key of each kChunk of them, (rows, chunks). A warp for each.
extern "C" __global__ void __launch_bounds__(kThreads)
    largest_of_chunks(const float* values, int width, unsigned* keys) {
  int chunk = int(blockIdx.y) * kWarps + warp_index(), chunks = (width + kChunk - 1) / kChunk;
  if (chunk >= chunks) return;
  unsigned most = 0;
  for (int i = chunk * kChunk + lane_index(); i < minimum((chunk + 1) * kChunk, width); i += 32)
    most = Larger()(sortable(values[size_t(blockIdx.x) * width + i]), most);
  most = reduce_warp(most, Larger());
  if (lane_index() == 0) keys[size_t(blockIdx.x) * chunks + chunk] = most;
}

// Numbers that are gone over by their keys: all of them, or only where the largest of a chunk reaches a bar.
struct All {
  int count;
  unsigned bar = 0;

  template <class Act>
  __device__ void each(Act act) const {
    for (int i = threadIdx.x; i < count; i += kThreads) act(i);
  }
};
struct Open {
  const unsigned* chunks;
  int count;
  unsigned bar;

  template <class Act>
  __device__ void each(Act act) const {
    int all = (count + kChunk - 1) / kChunk;
    for (int first = warp_index() * 32; first < all; first += kThreads) {
      int mine = first + lane_index();
      unsigned open = __ballot_sync(0xffffffffu, mine < all && chunks[mine] >= bar);
      for (; open; open &= open - 1) {
        int begin = (first + __ffs(int(open)) - 1) * kChunk, end = minimum(begin + kChunk, count);
        for (int i = begin + lane_index(); i < end; i += 32) act(i);
      }
    }
  }
};

// The k-th largest key of what `numbers` goes over, digit after digit from the highest; for all threads.
template <class Numbers, class Key>
__device__ unsigned kth_largest(int k, Numbers numbers, Key key) {
  __shared__ int seen[kDigits], of_warps[kWarps], digit, left;
  unsigned prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    seen[threadIdx.x] = 0;  // kDigits == kThreads
    __syncthreads();
    unsigned known = shift == 24 ? 0 : ~0u << (shift + 8);
    numbers.each([&](int i) {
      unsigned value = key(i);
      if (value >= numbers.bar && (value & known) == prefix) atomicAdd(seen + (value >> shift & 255), 1);
    });
    __syncthreads();
    // A thread has a digit: how many have a larger one?
    int mine = seen[threadIdx.x], of_warp = reduce_warp(mine, Sum()), larger = 0;
    if (lane_index() == 0) of_warps[warp_index()] = of_warp;
    __syncthreads();
    for (int i = warp_index() + 1; i < kWarps; ++i) larger += of_warps[i];
    for (int i = threadIdx.x + 1; i % 32; ++i) larger += seen[i];
    if (larger < k && k <= larger + mine) digit = threadIdx.x, left = k - larger;
    __syncthreads();
    prefix |= unsigned(digit) << shift;
    k = left;
  }
  return prefix;
}

// What is not open cannot be among the k largest of `count`: the k-th largest of the chunks' largest is no larger.
__device__ inline Open open_for(const unsigned* chunks, int count, int k) {
  int all = (count + kChunk - 1) / kChunk;
  unsigned bar = k <= all ? kth_largest(k, All{all}, [&](int i) { return chunks[i]; }) : 0;
  return Open{chunks, count, bar};
}

// logits (rows, width) -> found (rows, 1 + 2 * room): how many there are of the `tops[row]` largest and those equal to
// them, which may be more than there is room for; their ids, in any order; and the bits of their values. A block for
// each row. Of all logits: chunks, as above. Else names: their ids, of which there are counts[row], or more than are
// here. draws (rows,): how the token of each row is drawn from these, or none; tokens (rows,): it, or -1.
extern "C" __global__ void __launch_bounds__(kThreads)
    select_largest(const float* logits, const int* tops, int width, const unsigned* chunks, const int* names,
                   const int* counts, int room, int* found, const Draw* draws, int* tokens) {
  const float* row = logits + size_t(blockIdx.x) * width;
  int* to = found + size_t(blockIdx.x) * (1 + 2 * room);
  int length = names ? counts[blockIdx.x] : width, top = tops[blockIdx.x];
  if (length > width) {
    if (threadIdx.x == 0) to[0] = room + 1, tokens[blockIdx.x] = -1;
    return;
  }
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  auto take = [&](auto numbers) {
    unsigned least = kth_largest(minimum(top, length), numbers, [&](int i) { return sortable(row[i]); });
    numbers.each([&](int i) {
      if (sortable(row[i]) < least) return;
      int at = atomicAdd(&count, 1);
      if (at >= room) return;
      to[1 + at] = names ? names[size_t(blockIdx.x) * width + i] : i;
      to[1 + room + at] = int(__float_as_uint(row[i]));
    });
  };
  if (names)
    take(All{length});
  else
    take(open_for(chunks + size_t(blockIdx.x) * ((width + kChunk - 1) / kChunk), width, top));
  __syncthreads();
  int token = -1;
  if (draws && count <= room) token = draw_token(to + 1, to + 1 + room, count, top, draws[blockIdx.x]);
  if (threadIdx.x == 0) to[0] = count, tokens[blockIdx.x] = token;
}

// Bounds (2, rows, vocab) of logits, the lower ones first -> the ids whose upper bound reaches the `tops[row]`-th
// largest lower one, (rows, room), and how many there are, which may be more. A block for each row. chunks: of bounds.
extern "C" __global__ void __launch_bounds__(kThreads)
    select_possible(const float* bounds, const unsigned* chunks, const int* tops, int vocab, int room, int* counts,
                    int* ids) {
  int all = (vocab + kChunk - 1) / kChunk, upper = gridDim.x + blockIdx.x;
  const float* low = bounds + size_t(blockIdx.x) * vocab;
  const float* high = bounds + size_t(upper) * vocab;
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  Open open = open_for(chunks + size_t(blockIdx.x) * all, vocab, tops[blockIdx.x]);
  unsigned bar = kth_largest(minimum(tops[blockIdx.x], vocab), open, [&](int i) { return sortable(low[i]); });
  Open{chunks + size_t(upper) * all, vocab, bar}.each([&](int i) {
    if (sortable(high[i]) < bar) return;
    int at = atomicAdd(&count, 1);
    if (at < room) ids[size_t(blockIdx.x) * room + at] = i;
  });
  __syncthreads();
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}
