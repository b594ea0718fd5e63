// Operations of training on rows of bfloat16, forward and backward: what lies between the matrix products. Lengths of
// rows are multiples of 16, but those of attention and of logits, which may be any.

#if BITNET_VECTOR_BYTES == 64
typedef uint16_t NarrowU __attribute__((vector_size(32)));
#elif BITNET_VECTOR_BYTES == 32
typedef uint16_t NarrowU __attribute__((vector_size(16)));
#else
typedef uint16_t NarrowU __attribute__((vector_size(8)));
#endif

// Rounded half to even; a NaN stays one.
BITNET_INLINE void store_bf16(uint16_t* p, NativeF v) {
  const NativeU u = (NativeU)v;
  const NarrowU narrow = __builtin_convertvector((u + (0x7fffu + ((u >> 16) & 1u))) >> 16, NarrowU);
  __builtin_memcpy(p, &narrow, sizeof narrow);
}
template <class H>
BITNET_INLINE void store_bf16(uint16_t* p, Pair<H> v) {
  store_bf16(p, v.lo);
  store_bf16(p + Wide<H>::kLanes, v.hi);
}

BITNET_INLINE F32x16 load_bf16_part(const uint16_t* p, int64_t n) {
  uint16_t lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load_bf16(lanes);
}
BITNET_INLINE void store_bf16_part(uint16_t* p, F32x16 v, int64_t n) {
  uint16_t lanes[kLanes];
  store_bf16(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// act(g) and its derivative.
template <Activation activation>
BITNET_INLINE void activate_with_slope(F32x16 g, F32x16* value, F32x16* slope) {
  const F32x16 one = fill(1.0f), zero = fill(0.0f);
  if (activation == Activation::Relu2) {
    const F32x16 positive = larger(g, zero);
    *value = positive * positive;
    *slope = positive + positive;
    return;
  }
  F32x16 z = g, dz = one;
  if (activation == Activation::Gelu) {
    z = fill(1.5957691216057308f) * (g + fill(0.044715f) * (g * g * g));
    dz = fill(1.5957691216057308f) * (one + fill(3 * 0.044715f) * (g * g));
  }
  const F32x16 sigmoid = one / (one + exponential(zero - z));
  *value = g * sigmoid;
  *slope = sigmoid * (one + g * dz * (one - sigmoid));
}

template <Activation activation>
BITNET_INLINE void read_gated(const uint16_t* gate, const uint16_t* x, int64_t k, float* out) {
  for (int64_t i = 0; i < k; i += kLanes) store(out + i, activate<activation>(load_bf16(gate + i)) * load_bf16(x + i));
}

BITNET_INLINE void read_input(const InputTask& task, float* out) {
  if (!task.gate) {
    for (int64_t i = 0; i < task.columns; i += kLanes) store(out + i, load_bf16(task.x + i));
  } else if (task.activation == Activation::Silu) {
    read_gated<Activation::Silu>(task.gate, task.x, task.columns, out);
  } else if (task.activation == Activation::Relu2) {
    read_gated<Activation::Relu2>(task.gate, task.x, task.columns, out);
  } else {
    read_gated<Activation::Gelu>(task.gate, task.x, task.columns, out);
  }
}

// As the engine computes it: rms_norm and quantize_row are those of inference.
float training_input(const InputTask& task) {
  float* row = task.scratch;
  read_input(task, row);
  if (task.norm) rms_norm(row, task.norm, task.columns, task.eps, row);
  if (task.codes) return quantize_row(row, task.columns, task.columns, task.codes);
  for (int64_t i = 0; i < task.columns; i += kLanes) store_bf16(task.y + i, load(row + i));
  return 1.0f;
}

template <Activation activation>
BITNET_INLINE void gated_backward(const InputTask& task, const float* grad, uint16_t* gate_grad, uint16_t* x_grad) {
  for (int64_t i = 0; i < task.columns; i += kLanes) {
    F32x16 value, slope;
    activate_with_slope<activation>(load_bf16(task.gate + i), &value, &slope);
    const F32x16 d = load(grad + i);
    store_bf16(gate_grad + i, d * load_bf16(task.x + i) * slope);
    store_bf16(x_grad + i, d * value);
  }
}

// The gradient of training_input's row: `sums` / multiplier, or `grad`.
void training_input_backward(const InputBackwardTask& task) {
  const InputTask& input = task.input;
  const int64_t k = input.columns;
  float *row = input.scratch, *d = row + k;
  const F32x16 inverse_multiplier = fill(1.0f / task.multiplier);
  for (int64_t i = 0; i < k; i += kLanes)
    store(d + i, task.sums ? to_float(load(task.sums + i)) * inverse_multiplier : load_bf16(task.grad + i));
  if (input.norm) {
    read_input(input, row);
    F32x16 squares = fill(0.0f), along = fill(0.0f);
    for (int64_t i = 0; i < k; i += kLanes) {
      const F32x16 x = load(row + i);
      squares = squares + x * x;
      along = along + x * load(input.norm + i) * load(d + i);
    }
    const float inverse = 1.0f / __builtin_sqrtf(fold_sum(squares) / (float)k + input.eps);
    const F32x16 factor = fill(inverse), mean = fill(fold_sum(along) / (float)k * inverse * inverse * inverse);
    for (int64_t i = 0; i < k; i += kLanes) {
      const F32x16 x = load(row + i), g = load(d + i);
      store(task.norm_grad + i, load(task.norm_grad + i) + g * x * factor);
      store(d + i, g * load(input.norm + i) * factor - x * mean);
    }
  }
  if (!input.gate) {
    for (int64_t i = 0; i < k; i += kLanes) store_bf16(task.x_grad + i, load(d + i));
  } else if (input.activation == Activation::Silu) {
    gated_backward<Activation::Silu>(input, d, task.gate_grad, task.x_grad);
  } else if (input.activation == Activation::Relu2) {
    gated_backward<Activation::Relu2>(input, d, task.gate_grad, task.x_grad);
  } else {
    gated_backward<Activation::Gelu>(input, d, task.gate_grad, task.x_grad);
  }
}

// y = sums * (scale / multiplier)
void training_output(const int32_t* sums, const float* scales, float multiplier, int64_t n, uint16_t* y) {
  const F32x16 m = fill(multiplier);
  for (int64_t i = 0; i < n; i += kLanes) store_bf16(y + i, to_float(load(sums + i)) * (load(scales + i) / m));
}

// One output's gradient: scaled as the weight's codes were into `scaled`, and as the weight's gradient wants it into
// `divided`.
void training_output_backward(const uint16_t* grad, const float* scales, float multiplier, int64_t n, float* scaled,
                              uint16_t* divided) {
  const F32x16 inverse = fill(1.0f / multiplier);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32x16 g = load_bf16(grad + i);
    store(scaled + i, g * load(scales + i));
    store_bf16(divided + i, g * inverse);
  }
}

// As quantize_row, but however small the gradient is.
float quantize_gradient(const float* x, int64_t n, int8_t* codes) {
  F32x16 top = fill(1e-37f);
  for (int64_t i = 0; i < n; i += kLanes) top = larger(magnitude(load(x + i)), top);
  const float multiplier = 127.0f / fold_max(top);
  const F32x16 s = fill(multiplier), rounder = fill(kRounder);
  for (int64_t i = 0; i < n; i += kLanes) store_low_bytes(codes + i, bits(load(x + i) * s + rounder));
  return multiplier;
}

// Pairs (i, i + half) of each head; backward turns the other way.
void training_rope(const uint16_t* x, const float* cos, const float* sin, int64_t heads, int64_t head_dim,
                   bool backward, uint16_t* y) {
  const int64_t half = head_dim / 2;
  const F32x16 sign = fill(backward ? -1.0f : 1.0f);
  for (int64_t h = 0; h < heads; ++h, x += head_dim, y += head_dim) {
    for (int64_t i = 0; i < half; i += kLanes) {
      const F32x16 a = load_bf16(x + i), b = load_bf16(x + half + i), c = load(cos + i), s = load(sin + i) * sign;
      store_bf16(y + i, a * c - b * s);
      store_bf16(y + half + i, b * c + a * s);
    }
  }
}

// Over [first, last) of n scores, softmax(scale * score); 0 elsewhere. In place.
void training_softmax(uint16_t* scores, int64_t n, int64_t first, int64_t last, float scale, float* scratch) {
  float* row = scratch;
  F32x16 top = fill(-3e38f);
  for (int64_t i = first; i < last; i += kLanes) {
    const int64_t count = last - i < kLanes ? last - i : kLanes;
    F32x16 v = load_bf16_part(scores + i, count);
    if (count == kLanes) {
      v = load_bf16(scores + i);
    } else {
      float lanes[kLanes];
      store(lanes, v);
      for (int64_t j = count; j < kLanes; ++j) lanes[j] = -3e38f;
      v = load(lanes);
    }
    store(row + (i - first), v);
    top = larger(top, v);
  }
  const F32x16 most = fill(fold_max(top)), factor = fill(scale);
  F32x16 sum = fill(0.0f);
  for (int64_t i = first; i < last; i += kLanes) {
    const F32x16 e = exponential((load(row + (i - first)) - most) * factor);
    store(row + (i - first), e);
    sum = sum + e;
  }
  const F32x16 inverse = fill(1.0f / fold_sum(sum));
  for (int64_t i = 0; i < first; ++i) scores[i] = 0;
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes) store_bf16(scores + i, load(row + (i - first)) * inverse);
  if (i < last) store_bf16_part(scores + i, load(row + (i - first)) * inverse, last - i);
  for (i = last; i < n; ++i) scores[i] = 0;
}

// grad = p * (grad - sum(p * grad)) * scale, over [first, last); 0 elsewhere. In place.
void training_softmax_backward(const uint16_t* p, uint16_t* grad, int64_t n, int64_t first, int64_t last, float scale) {
  F32x16 sum = fill(0.0f);
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes) sum = sum + load_bf16(p + i) * load_bf16(grad + i);
  if (i < last) sum = sum + load_bf16_part(p + i, last - i) * load_bf16_part(grad + i, last - i);
  const F32x16 mean = fill(fold_sum(sum)), factor = fill(scale);
  for (i = 0; i < first; ++i) grad[i] = 0;
  for (; i + kLanes <= last; i += kLanes)
    store_bf16(grad + i, load_bf16(p + i) * (load_bf16(grad + i) - mean) * factor);
  if (i < last) {
    const int64_t rest = last - i;
    store_bf16_part(grad + i, load_bf16_part(p + i, rest) * (load_bf16_part(grad + i, rest) - mean) * factor, rest);
  }
  for (i = last; i < n; ++i) grad[i] = 0;
}

// log(sum(exp(logits)))
float training_log_sum(const uint16_t* logits, int64_t n) {
  const int64_t whole = n & ~int64_t{15};
  F32x16 top = fill(-3e38f);
  for (int64_t i = 0; i < whole; i += kLanes) top = larger(top, load_bf16(logits + i));
  float most = fold_max(top);
  for (int64_t i = whole; i < n; ++i) {
    float lanes[kLanes];
    store(lanes, load_bf16_part(logits + i, 1));
    most = lanes[0] > most ? lanes[0] : most;
  }
  const F32x16 offset = fill(most);
  F32x16 sum = fill(0.0f);
  for (int64_t i = 0; i < whole; i += kLanes) sum = sum + exponential(load_bf16(logits + i) - offset);
  float total = fold_sum(sum);
  for (int64_t i = whole; i < n; ++i) {
    float lanes[kLanes];
    store(lanes, exponential(load_bf16_part(logits + i, 1) - offset));
    total += lanes[0];
  }
  return most + __builtin_logf(total);
}

// grad = (exp(logit - log_sum) - [i = target]) * factor, which may be where the logits are.
void training_logits_backward(const uint16_t* logits, int64_t n, int64_t target, float log_sum, float factor,
                              uint16_t* grad) {
  const F32x16 offset = fill(log_sum), f = fill(factor);
  const F32x16 of_target = (exponential(load_bf16_part(logits + target, 1) - offset) - fill(1.0f)) * f;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_bf16(grad + i, exponential(load_bf16(logits + i) - offset) * f);
  if (i < n) store_bf16_part(grad + i, exponential(load_bf16_part(logits + i, n - i) - offset) * f, n - i);
  store_bf16_part(grad + target, of_target, 1);
}
