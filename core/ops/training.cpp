#include "ops/training.h"

#include <algorithm>
#include <bit>

#include "kernels/registry.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace bitnet::training {
namespace {

constexpr int64_t kChunkElements = 16384;

// body(first, last) over rows, `unit` of them at a time at least.
template <class Body>
void for_rows(int64_t rows, int64_t columns, Body&& body, int64_t unit = 1) {
  const int64_t step = round_up(std::max<int64_t>(1, kChunkElements / columns), unit);
  parallel_for(ceil_div(rows, step), [&](int64_t i) { body(i * step, std::min(rows, (i + 1) * step)); });
}

float* scratch(int64_t count) {
  thread_local Scratch memory;
  return memory.get<float>(static_cast<size_t>(count));
}

InputTask task_of(const Input& input, int64_t row, float* memory) {
  const int64_t k = input.x.columns;
  const Bf16* gate = input.gate ? input.gate + row * k : nullptr;
  return {input.x.row(row), gate, input.activation, input.norm, input.eps, k, memory, nullptr, nullptr};
}

// body(task, row) for every row.
template <class Body>
void for_inputs(const Input& input, Body&& body) {
  const int64_t k = input.x.columns;
  for_rows(input.x.rows, k, [&](int64_t begin, int64_t end) {
    float* memory = scratch(2 * k);
    for (int64_t t = begin; t < end; ++t) body(task_of(input, t, memory), t);
  });
}

// body(row, first, last): the keys that a row of scores sees.
template <class Body>
void for_scores(int64_t rows, int64_t columns, const Visible& v, Body&& body) {
  for_rows(rows, columns, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = v.start + row % v.block, sequence = row / (v.block * v.heads);
      int64_t first = v.first[sequence * v.length + at];
      if (v.window) first = std::max(first, at - v.window + 1);
      body(row, first, at + 1);
    }
  });
}

float value(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

}  // namespace

void quantize(const Input& input, int8_t* codes, float* multipliers) {
  for_inputs(input, [&](InputTask task, int64_t t) {
    task.codes = codes + t * input.x.columns;
    multipliers[t] = kernels().training.input(task);
  });
}

void evaluate(const Input& input, Bf16* y) {
  for_inputs(input, [&](InputTask task, int64_t t) {
    task.y = y + t * input.x.columns;
    kernels().training.input(task);
  });
}

void input_backward(const Input& input, const int32_t* sums, const float* multipliers, const Bf16* grad,
                    float* norm_grads, Bf16* x_grad, Bf16* gate_grad) {
  const int64_t k = input.x.columns;
  const auto body = [&](int64_t begin, int64_t end) {
    float* memory = scratch(2 * k);
    for (int64_t t = begin; t < end; ++t) {
      kernels().training.input_backward({task_of(input, t, memory), sums ? sums + t * k : nullptr,
                                         sums ? multipliers[t] : 1.0f, grad ? grad + t * k : nullptr,
                                         norm_grads ? norm_grads + t / kNormRows * k : nullptr, x_grad + t * k,
                                         gate_grad ? gate_grad + t * k : nullptr});
    }
  };
  for_rows(input.x.rows, k, body, kNormRows);
}

void output(const int32_t* sums, int64_t ld, const float* scales, const float* multipliers, Matrix<Bf16> y) {
  for_rows(y.rows, y.columns, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      kernels().training.output(sums + t * ld, scales, multipliers[t], y.columns, y.row(t));
  });
}

void output_backward(const Part* parts, int64_t count, int64_t rows, int64_t n, const float* scales,
                     const float* multipliers, int8_t* codes, float* grad_multipliers, Bf16* divided) {
  for_rows(rows, n, [&](int64_t begin, int64_t end) {
    float* scaled = scratch(n);
    for (int64_t t = begin; t < end; ++t) {
      int64_t at = 0;
      for (int64_t i = 0; i < count; at += parts[i++].columns) {
        kernels().training.output_backward(parts[i].grad + t * parts[i].columns, scales + at, multipliers[t],
                                           parts[i].columns, scaled + at, divided + t * n + at);
      }
      grad_multipliers[t] = kernels().training.quantize_gradient(scaled, n, codes + t * n);
    }
  });
}

void rope(Matrix<const Bf16> x, Matrix<const float> cos, Matrix<const float> sin, const int64_t* positions,
          int64_t head_dim, bool backward, Bf16* y) {
  for_rows(x.rows, x.columns, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernels().training.rope(x.row(t), cos.row(positions[t]), sin.row(positions[t]), x.columns / head_dim, head_dim,
                              backward, y + t * x.columns);
    }
  });
}

void softmax(Matrix<Bf16> scores, const Visible& visible, float scale) {
  for_scores(scores.rows, scores.columns, visible, [&](int64_t row, int64_t first, int64_t last) {
    float* memory = scratch(scores.columns + kLanes);
    kernels().training.softmax(scores.row(row), scores.columns, first, last, scale, memory);
  });
}

void softmax_backward(Matrix<const Bf16> p, const Visible& visible, float scale, Bf16* grad) {
  for_scores(p.rows, p.columns, visible, [&](int64_t row, int64_t first, int64_t last) {
    kernels().training.softmax_backward(p.row(row), grad + row * p.columns, p.columns, first, last, scale);
  });
}

void cross_entropy(Matrix<const Bf16> logits, const int64_t* targets, float* log_sums, float* losses) {
  for_rows(logits.rows, logits.columns, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      log_sums[t] = targets[t] < 0 ? 0.0f : kernels().training.log_sum(logits.row(t), logits.columns);
      losses[t] = targets[t] < 0 ? 0.0f : log_sums[t] - value(logits.row(t)[targets[t]]);
    }
  });
}

void cross_entropy_backward(Matrix<const Bf16> logits, const int64_t* targets, const float* log_sums, float factor,
                            Bf16* grad) {
  for_rows(logits.rows, logits.columns, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      Bf16* to = grad + t * logits.columns;
      if (targets[t] < 0) {
        std::fill(to, to + logits.columns, Bf16{0});
      } else {
        kernels().training.logits_backward(logits.row(t), logits.columns, targets[t], log_sums[t], factor, to);
      }
    }
  });
}

}  // namespace bitnet::training
