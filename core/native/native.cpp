#include "native/native.h"

#include <sys/mman.h>

#include <array>
#include <cmath>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "ops/attention.h"
#include "ops/head.h"
#include "ops/linear.h"
#include "ops/rows.h"
#include "runtime/thread_pool.h"

using namespace bitnet;

namespace {

constexpr uintptr_t kHugePage = 2 << 20;
constexpr int kCollapse = 25;  // MADV_COLLAPSE, since Linux 6.1; older ones refuse it

}  // namespace

extern "C" {

int32_t bitnet_ternary(const float* x, int64_t tokens, int64_t k, int64_t group, int64_t per_row, int64_t matrices,
                       const uint8_t* w0, const float* scales0, int64_t n0, float* y0, const uint8_t* w1,
                       const float* scales1, int64_t n1, float* y1, const uint8_t* w2, const float* scales2, int64_t n2,
                       float* y2) {
  const auto view = [&](const uint8_t* w, const float* scales, int64_t n) {
    return TernaryWeight::view(w, scales, n, k, group, per_row != 0);
  };
  // Those that are not there repeat the first, and are not read.
  const std::array<TernaryWeight, 3> weights{view(w0, scales0, n0),
                                             matrices > 1 ? view(w1, scales1, n1) : view(w0, scales0, n0),
                                             matrices > 2 ? view(w2, scales2, n2) : view(w0, scales0, n0)};
  const Product products[] = {{&weights[0], nullptr, y0}, {&weights[1], nullptr, y1}, {&weights[2], nullptr, y2}};
  linear({x, tokens, k}, products, matrices);
  return 0;
}

int32_t bitnet_dense(const float* x, int64_t tokens, int64_t k, const void* w, int64_t n, int64_t dtype, float* y) {
  const DenseWeight weight = DenseWeight::view(w, n, k, static_cast<DType>(dtype));
  const Product product{nullptr, &weight, y};
  linear({x, tokens, k}, &product, 1);
  return 0;
}

int32_t bitnet_head(const float* x, int64_t rows, int64_t k, const void* w, int64_t n, int64_t dtype,
                    const uint8_t* screen, const int32_t* top, float* y) {
  DenseWeight weight = DenseWeight::view(w, n, k, static_cast<DType>(dtype));
  weight.screen = std::make_shared<const Screen>(screen, n, k);
  head({x, rows, k}, weight, top, y);
  return 0;
}

int32_t bitnet_screen(const void* w, int64_t n, int64_t k, int64_t dtype, uint8_t* screen) {
  Screen::make(DenseWeight::view(w, n, k, static_cast<DType>(dtype)), screen);
  return 0;
}

int64_t bitnet_screen_bytes(int64_t n, int64_t k) { return Screen::nbytes(n, k); }

int32_t bitnet_attention(const float* q, int64_t tokens, const float* k, const float* v, const int32_t* positions,
                         const int32_t* sequences, const int32_t* tables, int64_t rows, int64_t columns,
                         const int32_t* layer, uint8_t* cache, int64_t blocks, int64_t layers, int64_t heads,
                         int64_t kv_heads, int64_t head_dim, int64_t window, int64_t f16, float* y) {
  thread_local std::vector<int32_t> starts;
  starts.assign(static_cast<size_t>(rows + 1), static_cast<int32_t>(tokens));
  for (int64_t t = tokens; t-- > 0;) starts[static_cast<size_t>(sequences[t])] = static_cast<int32_t>(t);
  for (int64_t b = rows; b-- > 0;) {  // a sequence without tokens ends where it begins
    const bool has_tokens = starts[b] < tokens && sequences[starts[b]] == b;
    if (!has_tokens) starts[b] = starts[b + 1];
  }
  KVCache pages = KVCache::view(cache, layers, blocks, kv_heads, head_dim, f16 ? KVType::F16 : KVType::F32);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  attention({q, tokens, heads * head_dim}, k, v, pages, *layer,
            {positions, starts.data(), rows, {tables, rows, columns}}, scale, window, y);
  return 0;
}

int32_t bitnet_rms_norm(const float* x, int64_t tokens, int64_t width, const float* weight, int64_t d, float eps,
                        float* y) {
  rms_norm({x, tokens * width / d, d}, weight, eps, y);
  return 0;
}

int32_t bitnet_rope(const float* x, int64_t tokens, int64_t width, const int32_t* at, const float* cos,
                    const float* sin, int64_t positions, int64_t half, int64_t head_dim, int64_t interleaved,
                    float* y) {
  rope({x, tokens, width}, {cos, positions, half}, {sin, positions, half}, at, head_dim, interleaved != 0, y);
  return 0;
}

int32_t bitnet_gate(const float* g, int64_t tokens, int64_t width, const float* u, int64_t activation, float* y) {
  gate({g, tokens, width}, u, static_cast<Activation>(activation), y);
  return 0;
}

int32_t bitnet_add(const float* x, int64_t tokens, int64_t width, const float* y, float* out) {
  add({x, tokens, width}, y, out);
  return 0;
}

// Memory of others lies on small pages, and a stream through those is up to a third slower. No byte changes, so that it
// does no harm where the memory has become something else since, or is not theirs alone.
int32_t bitnet_on_huge_pages(const void* data, int64_t bytes) {
  static std::mutex busy;
  static std::unordered_set<uintptr_t> seen;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), end = begin + static_cast<uintptr_t>(bytes);
  const std::lock_guard lock(busy);
  if (seen.insert(begin).second)
    for (uintptr_t page = begin & ~(kHugePage - 1); page < end; page += kHugePage)
      madvise(reinterpret_cast<void*>(page), kHugePage, kCollapse);
  return 0;
}

void bitnet_set_threads(int64_t count) {
  if (count > 0) set_threads(static_cast<int>(count));
}

}  // extern "C"
