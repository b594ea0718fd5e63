// From the likeliest logits of a row to its token, as engine/sampling.py draws it.
//
// In float64 and by the same steps, but exp and long sums may differ from the host's in their last bits. So sides of a
// comparison that are nearly equal decide nothing: there is no token then, and the host draws from the same logits.
#pragma once
#include "common.cuh"

constexpr int kLikeliest = 512;   // of a row, with those equal to the last of them
constexpr double kClose = 1e-12;  // of what is compared: two machines' sums are less than 1e-13 of it apart

struct Draw {
  double temperature, top_p, min_p, number;  // the last uniform in [0, 1)
};

__device__ inline bool close(double a, double b, double size) { return fabs(a - b) < kClose * size; }

// One after the other, as NumPy's cumsum; each thread for itself.
__device__ inline double sum_of(const double* weights, int count) {
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += weights[i];
  return sum;
}

// One of the `top` likeliest, no more than there are threads, out of `count` in any order; -1 where that cannot be
// said. values: the bits of their logits. For all threads of a block.
__device__ inline int draw_token(const int* likeliest, const int* values, int count, int top, const Draw& draw) {
  __shared__ double exponents[kLikeliest], ranked[kThreads + 1], weights[kThreads];
  __shared__ int ids[kLikeliest], ranked_ids[kThreads + 1], placed_ids[kThreads];
  __shared__ bool doubt;
  __shared__ int token;
  if (count > kLikeliest || top > kThreads) return -1;
  float most = __uint_as_float(values[0]);
  for (int i = threadIdx.x; i < count; i += kThreads) most = Largest()(__uint_as_float(values[i]), most);
  most = reduce_block(most, Largest());
  if (!is_finite(most)) return -1;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    double below = double(__uint_as_float(values[i])) - double(most);
    exponents[i] = draw.temperature == 0.0 ? 0.0 : below / draw.temperature;
    ids[i] = likeliest[i];
  }
  if (threadIdx.x == 0) doubt = false, token = -1;
  __syncthreads();
  // Heaviest first, equals by id; also the first that is out.
  int kept = minimum(top, count), seen = minimum(top + 1, count), rank = threadIdx.x;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    int before = 0;
    for (int j = 0; j < count; ++j)
      before += exponents[j] > exponents[i] || (exponents[j] == exponents[i] && ids[j] < ids[i]);
    if (before < seen) ranked[before] = exponents[i], ranked_ids[before] = ids[i];
  }
  __syncthreads();
  bool mine = rank < kept;
  double exponent = mine ? ranked[rank] : 0.0, weight = mine ? exp(exponent) : 0.0;
  if (mine) weights[rank] = weight;
  if (mine && rank + 1 < seen && exponent > ranked[rank + 1] && close(exponent, ranked[rank + 1], 1.0)) doubt = true;
  __syncthreads();
  if (mine && rank > 0 && draw.top_p < 1.0) {
    double goal = draw.top_p * sum_of(weights, kept), before = sum_of(weights, rank);
    if (close(before, goal, goal)) doubt = true;
    if (before >= goal) weight = 0.0;
  }
  if (exponent < 0.0 && close(weight, draw.min_p, draw.min_p)) doubt = true;
  if (weight < draw.min_p) weight = 0.0;
  // Where nothing was ranked on the host they lie by id, those equal to the last that top_k kept behind the others.
  int place = rank;
  if (mine && draw.top_p >= 1.0) {
    double last = top <= count ? ranked[kept - 1] : 1.0;  // or none of them
    place = 0;
    for (int i = 0; i < kept; ++i)
      place += (ranked[i] == last) == (exponent == last) ? ranked_ids[i] < ranked_ids[rank] : exponent == last;
  }
  __syncthreads();
  if (mine) weights[place] = weight, placed_ids[place] = ranked_ids[rank];
  __syncthreads();
  if (mine) {
    double total = sum_of(weights, kept), goal = draw.number * total, before = sum_of(weights, rank);
    double upto = before + weights[rank];
    if (rank < kept - 1 && close(upto, goal, total)) doubt = true;
    if (upto > goal && (rank == 0 || before <= goal)) token = placed_ids[rank];
  }
  __syncthreads();
  return doubt ? -1 : token;
}
