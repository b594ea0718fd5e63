// What the Python tests check, for machines where no Python runs: built for any machine type, run by test_parity.py.
//
// Ternary sums must equal 64-bit loops on every instruction set. Of every float operation the hash of its bits is
// printed, so that runs on different machines can be compared: "<instruction set> <case> <hash>".
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/registry.h"
#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/rows.h"
#include "ops/weights.h"
#include "runtime/thread_pool.h"

using namespace bitnet;

namespace {

using Floats = std::vector<float>;
using Codes = std::vector<int8_t>;

uint64_t state = 0;

uint64_t draw() {  // splitmix64
  uint64_t x = state += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

template <class T, class Value>
std::vector<T> many(int64_t count, Value&& value) {
  std::vector<T> all(static_cast<size_t>(count));
  for (T& each : all) each = static_cast<T>(value());
  return all;
}

Floats floats(int64_t count, float range = 3) {
  return many<float>(count, [&] { return (static_cast<float>(draw() >> 40) * 0x1p-23f - 1) * range; });
}
Codes trits(int64_t count) {
  return many<int8_t>(count, [] { return static_cast<int>(draw() % 3) - 1; });
}
Codes bytes(int64_t count) {
  return many<int8_t>(count, [] { return draw() & 0xff; });
}
Matrix<const float> rows_of(const Floats& x, int64_t rows) {
  return {x.data(), rows, static_cast<int64_t>(x.size()) / rows};
}

const char* isa = "";

template <class T>
void print(const std::string& name, const std::vector<T>& values) {
  uint64_t hash = 1469598103934665603u;  // FNV-1a
  const auto* p = reinterpret_cast<const uint8_t*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) hash = (hash ^ p[i]) * 1099511628211u;
  std::printf("%s %s %016llx\n", isa, name.c_str(), static_cast<unsigned long long>(hash));
}

std::vector<int64_t> exact(const Codes& codes, const Codes& q, int64_t n, int64_t k) {
  std::vector<int64_t> sums;
  for (size_t t = 0; t < q.size() / k; ++t)
    for (int64_t r = 0; r < n; ++r) {
      int64_t sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += int64_t{codes[r * k + i]} * q[t * k + i];
      sums.push_back(sum);
    }
  return sums;
}

constexpr Packing kPackings[] = {Packing::T2, Packing::T5, Packing::TL1, Packing::TL2};

void check_sums(const Codes& codes, const Codes& q, int64_t n, int64_t k) {
  const auto want = exact(codes, q, n, k);
  std::vector<int32_t> got(want.size());
  for (const Packing packing : kPackings) {
    const TernaryWeight w(codes.data(), n, k, {1}, 0, false, packing);
    ternary_matmul({q.data(), static_cast<int64_t>(q.size()) / k, k}, w, got.data());
    for (size_t i = 0; i < want.size(); ++i) {
      if (got[i] == want[i]) continue;
      std::printf("%s: (%lld, %lld), element %zu is %d, not %lld\n", isa, static_cast<long long>(n),
                  static_cast<long long>(k), i, got[i], static_cast<long long>(want[i]));
      std::exit(1);
    }
  }
}

void ternary_sums() {
  constexpr int64_t shapes[][2] = {{1, 1}, {16, 16}, {17, 17}, {33, 100}, {15, 8640}, {48, 6912}, {100, 2560}};
  for (const auto& [n, k] : shapes) {
    const Codes codes = trits(n * k);
    for (const int64_t tokens : {1, 2, 3, 8, 17}) check_sums(codes, bytes(tokens * k), n, k);
    for (const Packing packing : kPackings) {
      Codes back(codes.size());
      TernaryWeight(codes.data(), n, k, {1}, 0, false, packing).codes(back.data());
      if (back != codes) std::printf("%s: packing lost codes\n", isa), std::exit(1);
    }
  }
  const Codes codes = trits(50 * 336);
  for (int64_t tokens = 1; tokens <= 17; ++tokens) check_sums(codes, bytes(tokens * 336), 50, 336);
  // More than tiles take at once: tokens, rows, and columns of both densities.
  for (const int64_t tokens : {31, 32, 33, 48, 49, 70}) check_sums(codes, bytes(tokens * 336), 50, 336);
  for (const int64_t k : {64, 321, 512, 513, 640, 700, 1344}) {
    const Codes tall = trits(70 * k);
    check_sums(tall, bytes(20 * k), 70, k);
  }
  const Codes wide = trits(5 * 8640);
  check_sums(wide, bytes(100 * 8640), 5, 8640);
  check_sums(Codes(18 * 8640, 1), Codes(16 * 8640, -128), 18, 8640);
  for (const int code : {-1, 0, 1})
    for (const int value : {-128, 127})
      for (const int64_t tokens : {1, 5})
        check_sums(Codes(18 * 45568, static_cast<int8_t>(code)), Codes(tokens * 45568, static_cast<int8_t>(value)), 18,
                   45568);
}

void products() {
  const int64_t n = 37, k = 384, group = 128;
  const Codes codes = trits(n * k);
  for (const int64_t scales : {int64_t{1}, n, n * k / group})
    for (const int64_t tokens : {1, 2, 9}) {
      const Floats s = floats(scales), x = floats(tokens * k);
      for (const Packing packing : kPackings) {
        if (scales > n && !takes_groups(packing)) continue;
        const TernaryWeight w(codes.data(), n, k, s, scales > n ? group : 0, scales == n, packing);
        Floats y(static_cast<size_t>(tokens * n));
        const Product product{&w, nullptr, y.data()};
        linear(rows_of(x, tokens), &product, 1);
        print("ternary linear " + std::to_string(scales) + " " + std::to_string(tokens), y);
      }
    }
  const Codes grouped = trits(40 * 960), whole = trits(20 * 960);
  for (const int64_t size : {16, 64, 96, 192, 960})
    for (const int64_t tokens : {5, 34}) {
      const TernaryWeight w(grouped.data(), 40, 960, floats(40 * 960 / size), size, false),
          plain(whole.data(), 20, 960, {0.5f}, 0, false, Packing::T5);
      const Floats x = floats(tokens * 960);
      Floats y(static_cast<size_t>(tokens * 40)), z(static_cast<size_t>(tokens * 20));
      const Product both[] = {{&w, nullptr, y.data()}, {&plain, nullptr, z.data()}};
      linear(rows_of(x, tokens), both, 2);
      const std::string name = std::to_string(size) + " " + std::to_string(tokens);
      print("grouped linear " + name, y), print("beside it " + name, z);
    }
  for (int d = 0; d < 4; ++d)
    for (const int64_t tokens : {1, 3, 9}) {
      const DenseWeight w = DenseWeight::random(n, k, static_cast<DType>(d), 5, 2);
      const Floats x = floats(tokens * k);
      Floats y(static_cast<size_t>(tokens * n)), row(static_cast<size_t>(k));
      const Product product{nullptr, &w, y.data()};
      linear(rows_of(x, tokens), &product, 1);
      const int32_t id = 36;
      embed(w, &id, 1, row.data());
      print("dense linear " + std::to_string(d) + " " + std::to_string(tokens), y);
      print("embed " + std::to_string(d), row);
    }
  for (int d = 4; d < kDTypes; ++d) {
    const DType dtype = static_cast<DType>(d);
    const int64_t columns = 512, bytes = columns / block_columns(dtype) * block_bytes(dtype);
    std::vector<uint8_t> blocks(static_cast<size_t>(n * bytes));
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = (i * i + 7 * i) >> 3 & 0x3b;  // no half is infinite
    const DenseWeight w(blocks.data(), n, columns, dtype, nullptr);
    for (const int64_t tokens : {1, 9}) {
      const Floats x = floats(tokens * columns);
      Floats y(static_cast<size_t>(tokens * n));
      const Product product{nullptr, &w, y.data()};
      linear(rows_of(x, tokens), &product, 1);
      print("blocks linear " + std::to_string(d) + " " + std::to_string(tokens), y);
    }
  }
}

void half_floats() {
  const Kernels& kernel = kernels();
  std::vector<uint16_t> every(65536), back(65536);
  for (int i = 0; i < 65536; ++i) every[i] = static_cast<uint16_t>(i);
  Floats decoded(65536), any(65536);
  kernel.decode_row(reinterpret_cast<const uint8_t*>(every.data()), DType::F16, 65536, decoded.data());
  print("decode every half float", decoded);
  for (uint32_t i = 0; i < 65536; ++i) {
    const uint32_t pattern = i * 65537;
    std::memcpy(&any[i], &pattern, 4);
  }
  kernel.encode_f16(any.data(), 65536, back.data());
  print("encode floats of every exponent", back);
}

void rows() {
  const int64_t tokens = 9;
  for (const int64_t d : {1, 15, 64, 100, 2560}) {
    const Floats x = floats(tokens * d), u = floats(tokens * d), weight = floats(d);
    const auto m = rows_of(x, tokens);
    Floats y(x.size()), multipliers(tokens);
    Codes codes(x.size());
    rms_norm(m, weight.data(), 1e-5f, y.data()), print("rms_norm " + std::to_string(d), y);
    for (int a = 0; a < 3; ++a)
      gate(m, u.data(), static_cast<Activation>(a), y.data()), print("gate " + std::to_string(a), y);
    add(m, u.data(), y.data()), print("add", y);
    scale(m, 0.3f, y.data()), print("scale", y);
    quantize(m, codes.data(), multipliers.data()), print("codes", codes), print("multipliers", multipliers);
  }
  const Floats wild = floats(1000, 200), ones(1000, 1);
  Floats y(1000);
  gate(rows_of(wild, 1), ones.data(), Activation::Silu, y.data()), print("gate of large numbers", y);
  const Floats x = floats(9 * 300), cos = floats(50 * 50, 1), sin = floats(50 * 50, 1), signs = floats(384, 1);
  Floats turned(x.size());
  const int32_t positions[] = {0, 5, 49, 1, 2, 3, 4, 7, 6};
  for (const bool interleaved : {false, true})
    rope(rows_of(x, 9), rows_of(cos, 50), rows_of(sin, 50), positions, 100, interleaved, turned.data()),
        print("rope " + std::to_string(interleaved), turned);
  const Floats flat = floats(2 * 384);
  Floats spread(flat.size());
  hadamard(rows_of(flat, 2), signs.data(), 128, false, spread.data()), print("hadamard", spread);
}

// A sequence of 300 tokens in chunks, its blocks in no order.
void attention_of(KVType type, int64_t heads, int64_t kv_heads, int64_t head_dim, const std::vector<int>& chunks,
                  int64_t window = 0) {
  state = 7;  // chunks must not matter
  const Floats q = floats(300 * heads * head_dim, 1), k = floats(300 * kv_heads * head_dim, 1),
               v = floats(300 * kv_heads * head_dim, 1);
  KVCache cache(2, 20, 16, kv_heads, head_dim, type);
  std::vector<int32_t> table(20), positions(300);
  for (int i = 0; i < 20; ++i) table[i] = i * 7 % 20;
  for (int i = 0; i < 300; ++i) positions[i] = i;
  Floats y(q.size());
  int64_t first = 0;
  for (const int count : chunks) {
    const int32_t starts[] = {0, count};
    const Batch batch{positions.data() + first, starts, 1, {table.data(), 1, 20}};
    attention({q.data() + first * heads * head_dim, count, heads * head_dim}, k.data() + first * kv_heads * head_dim,
              v.data() + first * kv_heads * head_dim, cache, 1, batch, 0.125f, window,
              y.data() + first * heads * head_dim);
    first += count;
  }
  print("attention " + std::to_string(static_cast<int>(type)) + " " + std::to_string(heads) + "/" +
            std::to_string(kv_heads) + " of " + std::to_string(head_dim) + " within " + std::to_string(window),
        y);
}

void attentions() {
  for (const KVType type : {KVType::F32, KVType::F16, KVType::I8})
    for (const auto& chunks : {std::vector<int>{300}, std::vector<int>{1, 260, 3, 36}}) {
      attention_of(type, 8, 2, 64, chunks);
      attention_of(type, 3, 3, 40, chunks);
      attention_of(type, 5, 1, 7, chunks);
      attention_of(type, 8, 2, 64, chunks, 100);
    }
}

}  // namespace

int main() {
  set_threads(2);
  for (const std::string& name : usable_isas()) {
    set_isa(name);
    isa = name.c_str();
    state = 1;
    for (const auto& part : {ternary_sums, products, half_floats, rows, attentions}) part();
    std::fflush(stdout);
  }
}
