// Operations on one row of floats: norm, rotation, gates, quantisation, Hadamard.

// x with s = 127 / max(max|x|, 1e-5) as round_half_even(x * s); bitnet.quant.rules.quantize_activations to the bit.
float quantize_row(const float* x, int64_t k, int64_t padded, int8_t* codes) {
  const int64_t whole = k & ~int64_t{15};
  F32x16 top = fill(0.0f);
  for (int64_t i = 0; i < whole; i += kLanes) top = larger(magnitude(load(x + i)), top);
  if (whole < k) top = larger(magnitude(load_part(x + whole, k - whole)), top);
  const float absmax = fold_max(top);
  const float multiplier = 127.0f / (absmax > 1e-5f ? absmax : 1e-5f);
  const F32x16 s = fill(multiplier), most = fill(127.0f), least = fill(-128.0f), rounder = fill(kRounder);
  for (int64_t i = 0; i < whole; i += kLanes) {
    store_low_bytes(codes + i, bits(larger(smaller(load(x + i) * s, most), least) + rounder));
  }
  for (int64_t i = whole; i < padded; i += kLanes) {
    const F32x16 v = i < k ? load_part(x + i, k - i) : fill(0.0f);
    store_low_bytes(codes + i, bits(larger(smaller(v * s, most), least) + rounder));
  }
  return multiplier;
}

void rms_norm(const float* x, const float* weight, int64_t d, float eps, float* y) {
  const int64_t whole = d & ~int64_t{15};
  F32x16 squares = fill(0.0f);
  for (int64_t i = 0; i < whole; i += kLanes) {
    const F32x16 v = load(x + i);
    squares = squares + v * v;
  }
  if (whole < d) {
    const F32x16 v = load_part(x + whole, d - whole);
    squares = squares + v * v;
  }
  const float inverse = 1.0f / __builtin_sqrtf(fold_sum(squares) / (float)d + eps);
  const F32x16 factor = fill(inverse);
  for (int64_t i = 0; i < whole; i += kLanes) store(y + i, load(x + i) * factor * load(weight + i));
  for (int64_t i = whole; i < d; ++i) y[i] = x[i] * inverse * weight[i];
}

// y = (a cos - b sin, b cos + a sin) for each pair (a, b); columns beyond `rotary` pass through.
void rope(const RopeTask& task) {
  const int64_t half = task.rotary / 2;
  for (int64_t h = 0; h < task.heads; ++h) {
    const float* x = task.x + h * task.head_dim;
    float* y = task.y + h * task.head_dim;
    int64_t i = 0;
    if (task.interleaved) {
      for (; i < half; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1], c = task.cos[i], s = task.sin[i];
        y[2 * i] = a * c - b * s;
        y[2 * i + 1] = b * c + a * s;
      }
    } else {
      for (; i + kLanes <= half; i += kLanes) {
        const F32x16 a = load(x + i), b = load(x + half + i), c = load(task.cos + i), s = load(task.sin + i);
        store(y + i, a * c - b * s);
        store(y + half + i, b * c + a * s);
      }
      for (; i < half; ++i) {
        const float a = x[i], b = x[half + i], c = task.cos[i], s = task.sin[i];
        y[i] = a * c - b * s;
        y[half + i] = b * c + a * s;
      }
    }
    for (int64_t j = 2 * half; j < task.head_dim; ++j) y[j] = x[j];
  }
}

// silu: g / (1 + e^-g). relu2: max(g, 0)^2. gelu: the tanh form, g * sigmoid(2 sqrt(2/pi) (g + 0.044715 g^3)).
template <Activation activation>
BITNET_INLINE F32x16 activate(F32x16 g) {
  const F32x16 zero = fill(0.0f), one = fill(1.0f);
  if (activation == Activation::Relu2) {
    const F32x16 positive = larger(g, zero);
    return positive * positive;
  }
  F32x16 z = g;
  if (activation == Activation::Gelu) z = fill(1.5957691216057308f) * (g + fill(0.044715f) * (g * g * g));
  return g / (one + exponential(zero - z));
}

template <Activation activation>
BITNET_INLINE void gate_all(const float* g, const float* u, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, activate<activation>(load(g + i)) * load(u + i));
  if (i < count) {
    const int64_t n = count - i;
    store_part(y + i, activate<activation>(load_part(g + i, n)) * load_part(u + i, n), n);
  }
}

void gate(const float* g, const float* u, int64_t count, Activation activation, float* y) {
  switch (activation) {
    case Activation::Silu:
      return gate_all<Activation::Silu>(g, u, count, y);
    case Activation::Relu2:
      return gate_all<Activation::Relu2>(g, u, count, y);
    case Activation::Gelu:
      return gate_all<Activation::Gelu>(g, u, count, y);
  }
}

void add(const float* x, const float* y, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(x + i) + load(y + i));
  for (; i < count; ++i) out[i] = x[i] + y[i];
}

void scale(const float* x, float c, int64_t count, float* out) {
  const F32x16 factor = fill(c);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(x + i) * factor);
  for (; i < count; ++i) out[i] = x[i] * c;
}

// y = H(signs * x) / sqrt(block), block by block, with Sylvester's H: butterflies of width 1, 2, 4, ...
// Inverse: y = signs * H(x) / sqrt(block).
void hadamard(const float* x, const float* signs, int64_t d, int64_t block, bool inverse, float* y) {
  const float norm = 1.0f / __builtin_sqrtf((float)block);
  for (int64_t start = 0; start < d; start += block) {
    float* v = y + start;
    for (int64_t i = 0; i < block; ++i) v[i] = inverse ? x[start + i] : x[start + i] * signs[start + i];
    for (int64_t width = 1; width < block; width *= 2) {
      for (int64_t base = 0; base < block; base += 2 * width) {
        for (int64_t i = base; i < base + width; ++i) {
          const float a = v[i], b = v[i + width];
          v[i] = a + b;
          v[i + width] = a - b;
        }
      }
    }
    for (int64_t i = 0; i < block; ++i) v[i] = inverse ? v[i] * norm * signs[start + i] : v[i] * norm;
  }
}
