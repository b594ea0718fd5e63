// The door for training: PyTorch's tensors come in by DLPack, and results are written into tensors that the caller
// made.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/training.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitnet::training {
namespace {

using Array = nb::ndarray<nb::c_contig, nb::device::cpu>;
using MaybeArray = std::optional<Array>;

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

template <class T>
constexpr nb::dlpack::dtype kType = nb::dtype<T>();
template <>
constexpr nb::dlpack::dtype kType<Bf16> = {static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};

template <class T>
T* data(const Array& array, int64_t rows, int64_t columns, const char* name) {
  if (array.dtype() != kType<T>) fail(std::string(name) + " has another dtype.");
  if (static_cast<int64_t>(array.size()) != rows * columns) {
    fail(std::string(name) + " has " + std::to_string(array.size()) + " elements; expected " + std::to_string(rows) +
         " x " + std::to_string(columns) + ".");
  }
  return static_cast<T*>(array.data());
}

template <class T>
T* data(const MaybeArray& array, int64_t rows, int64_t columns, const char* name) {
  return array ? data<T>(*array, rows, columns, name) : nullptr;
}

template <class T>
Matrix<T> matrix(const Array& array, const char* name) {
  if (array.ndim() != 2) fail(std::string(name) + " must have two dimensions.");
  const auto rows = static_cast<int64_t>(array.shape(0)), columns = static_cast<int64_t>(array.shape(1));
  return {data<T>(array, rows, columns, name), rows, columns};
}

void whole(int64_t columns, const char* name) {
  if (columns < 1 || columns % kLanes) fail(std::string(name) + " must have a multiple of 16 columns.");
}

Activation activation_of(const std::string& name) {
  if (name == "silu" || name.empty()) return Activation::Silu;
  if (name == "relu2") return Activation::Relu2;
  if (name == "gelu") return Activation::Gelu;
  fail("There is no activation " + name + ".");
}

Input input_of(const Array& x, const MaybeArray& gate, const std::string& act, const MaybeArray& norm, float eps) {
  const auto rows = matrix<Bf16>(x, "x");
  whole(rows.columns, "x");
  return {{rows.data, rows.rows, rows.columns},
          data<Bf16>(gate, rows.rows, rows.columns, "gate"),
          activation_of(act),
          data<float>(norm, 1, rows.columns, "norm"),
          eps};
}

void bind_quantize(const Array& x, const MaybeArray& gate, const std::string& act, const MaybeArray& norm, float eps,
                   const Array& codes, const Array& multipliers) {
  const Input input = input_of(x, gate, act, norm, eps);
  auto* to = data<int8_t>(codes, input.x.rows, input.x.columns, "codes");
  auto* by = data<float>(multipliers, input.x.rows, 1, "multipliers");
  const nb::gil_scoped_release free;
  quantize(input, to, by);
}

void bind_evaluate(const Array& x, const MaybeArray& gate, const std::string& act, const MaybeArray& norm, float eps,
                   const Array& y) {
  const Input input = input_of(x, gate, act, norm, eps);
  auto* to = data<Bf16>(y, input.x.rows, input.x.columns, "y");
  const nb::gil_scoped_release free;
  evaluate(input, to);
}

void bind_input_backward(const Array& x, const MaybeArray& gate, const std::string& act, const MaybeArray& norm,
                         float eps, const MaybeArray& sums, const MaybeArray& multipliers, const MaybeArray& grad,
                         const MaybeArray& norm_grads, const Array& x_grad, const MaybeArray& gate_grad) {
  const Input input = input_of(x, gate, act, norm, eps);
  const int64_t rows = input.x.rows, k = input.x.columns;
  if (sums.has_value() == grad.has_value() || sums.has_value() != multipliers.has_value())
    fail("Give sums and multipliers, or grad.");
  if (norm.has_value() != norm_grads.has_value() || gate.has_value() != gate_grad.has_value())
    fail("What is read has a gradient.");
  const auto* of_sums = data<int32_t>(sums, rows, k, "sums");
  const auto* by = data<float>(multipliers, rows, 1, "multipliers");
  const auto* of_grad = data<Bf16>(grad, rows, k, "grad");
  auto* to_norm = data<float>(norm_grads, ceil_div(rows, kNormRows), k, "norm_grads");
  auto* to_x = data<Bf16>(x_grad, rows, k, "x_grad");
  auto* to_gate = data<Bf16>(gate_grad, rows, k, "gate_grad");
  const nb::gil_scoped_release free;
  input_backward(input, of_sums, by, of_grad, to_norm, to_x, to_gate);
}

void bind_output(const Array& sums, int64_t first, const Array& scales, const Array& multipliers, const Array& y) {
  const auto from = matrix<int32_t>(sums, "sums");
  const auto to = matrix<Bf16>(y, "y");
  whole(to.columns, "y");
  if (first < 0 || first + to.columns > from.columns || to.rows != from.rows) fail("sums are too small for y.");
  const auto* by = data<float>(multipliers, to.rows, 1, "multipliers");
  const auto* scale = data<float>(scales, 1, to.columns, "scales");
  const nb::gil_scoped_release free;
  output(from.data + first, from.columns, scale, by, to);
}

void bind_output_backward(const std::vector<Array>& grads, const Array& scales, const Array& multipliers,
                          const Array& codes, const Array& grad_multipliers, const Array& divided) {
  std::vector<Part> parts;
  int64_t n = 0;
  const int64_t rows = grads.empty() ? 0 : matrix<Bf16>(grads[0], "grads").rows;
  for (const Array& grad : grads) {
    const auto part = matrix<Bf16>(grad, "grads");
    whole(part.columns, "grads");
    if (part.rows != rows) fail("grads must have as many rows.");
    parts.push_back({part.data, part.columns});
    n += part.columns;
  }
  const auto* scale = data<float>(scales, 1, n, "scales");
  const auto* by = data<float>(multipliers, rows, 1, "multipliers");
  auto* to = data<int8_t>(codes, rows, n, "codes");
  auto* to_multipliers = data<float>(grad_multipliers, rows, 1, "grad_multipliers");
  auto* to_divided = data<Bf16>(divided, rows, n, "divided");
  const nb::gil_scoped_release free;
  output_backward(parts.data(), static_cast<int64_t>(parts.size()), rows, n, scale, by, to, to_multipliers, to_divided);
}

void bind_rope(const Array& x, const Array& cos, const Array& sin, const Array& positions, bool backward,
               const Array& y) {
  const auto from = matrix<Bf16>(x, "x");
  const auto c = matrix<float>(cos, "cos"), s = matrix<float>(sin, "sin");
  whole(c.columns, "cos");
  if (from.columns % (2 * c.columns) || s.rows != c.rows || s.columns != c.columns) fail("cos and sin do not fit x.");
  const auto* at = data<int64_t>(positions, from.rows, 1, "positions");
  for (int64_t t = 0; t < from.rows; ++t)
    if (at[t] < 0 || at[t] >= c.rows) fail("positions leave the tables of cos and sin.");
  auto* to = data<Bf16>(y, from.rows, from.columns, "y");
  const nb::gil_scoped_release free;
  rope({from.data, from.rows, from.columns}, {c.data, c.rows, c.columns}, {s.data, s.rows, s.columns}, at,
       2 * c.columns, backward, to);
}

Visible visible_of(const Matrix<Bf16>& scores, const Array& first, int64_t heads, int64_t start, int64_t block,
                   int64_t window) {
  const auto seen = matrix<int32_t>(first, "first");
  if (start < 0 || block < 1 || heads < 1 || window < 0 || start + block > seen.columns ||
      start + block > scores.columns || scores.rows != seen.rows * heads * block)
    fail("scores do not fit the sequences.");
  for (int64_t i = 0; i < seen.size(); ++i)
    if (seen.data[i] < 0 || seen.data[i] > i % seen.columns) fail("A token looks at itself and from 0 on.");
  return {seen.data, seen.columns, heads, start, block, window};
}

void bind_softmax(const Array& scores, const Array& first, int64_t heads, int64_t start, int64_t block, int64_t window,
                  float scale) {
  const auto to = matrix<Bf16>(scores, "scores");
  const Visible visible = visible_of(to, first, heads, start, block, window);
  const nb::gil_scoped_release free;
  softmax(to, visible, scale);
}

void bind_softmax_backward(const Array& p, const Array& grad, const Array& first, int64_t heads, int64_t start,
                           int64_t block, int64_t window, float scale) {
  const auto from = matrix<Bf16>(p, "p");
  auto* to = data<Bf16>(grad, from.rows, from.columns, "grad");
  const Visible visible = visible_of(from, first, heads, start, block, window);
  const nb::gil_scoped_release free;
  softmax_backward({from.data, from.rows, from.columns}, visible, scale, to);
}

const int64_t* targets_of(const Array& targets, const Matrix<Bf16>& logits) {
  const auto* at = data<int64_t>(targets, logits.rows, 1, "targets");
  for (int64_t t = 0; t < logits.rows; ++t)
    if (at[t] >= logits.columns) fail("A target lies beyond the logits.");
  return at;
}

void bind_cross_entropy(const Array& logits, const Array& targets, const Array& log_sums, const Array& losses) {
  const auto from = matrix<Bf16>(logits, "logits");
  const int64_t* at = targets_of(targets, from);
  auto* sums = data<float>(log_sums, from.rows, 1, "log_sums");
  auto* to = data<float>(losses, from.rows, 1, "losses");
  const nb::gil_scoped_release free;
  cross_entropy({from.data, from.rows, from.columns}, at, sums, to);
}

void bind_cross_entropy_backward(const Array& logits, const Array& targets, const Array& log_sums, float factor,
                                 const Array& grad) {
  const auto from = matrix<Bf16>(logits, "logits");
  const int64_t* at = targets_of(targets, from);
  const auto* sums = data<float>(log_sums, from.rows, 1, "log_sums");
  auto* to = data<Bf16>(grad, from.rows, from.columns, "grad");
  const nb::gil_scoped_release free;
  cross_entropy_backward({from.data, from.rows, from.columns}, at, sums, factor, to);
}

}  // namespace
}  // namespace bitnet::training

// As ops/training.h says; what lies between the matrix products of a training step.
void bind_training(nb::module_& m) {
  using namespace bitnet::training;
  m.attr("TRAIN_NORM_ROWS") = kNormRows;
  m.def("train_quantize", &bind_quantize, "x"_a, "gate"_a.none(), "act"_a, "norm"_a.none(), "eps"_a, "codes"_a,
        "multipliers"_a);
  m.def("train_evaluate", &bind_evaluate, "x"_a, "gate"_a.none(), "act"_a, "norm"_a.none(), "eps"_a, "y"_a);
  m.def("train_input_backward", &bind_input_backward, "x"_a, "gate"_a.none(), "act"_a, "norm"_a.none(), "eps"_a,
        "sums"_a.none(), "multipliers"_a.none(), "grad"_a.none(), "norm_grads"_a.none(), "x_grad"_a,
        "gate_grad"_a.none());
  m.def("train_output", &bind_output, "sums"_a, "first"_a, "scales"_a, "multipliers"_a, "y"_a);
  m.def("train_output_backward", &bind_output_backward, "grads"_a, "scales"_a, "multipliers"_a, "codes"_a,
        "grad_multipliers"_a, "divided"_a);
  m.def("train_rope", &bind_rope, "x"_a, "cos"_a, "sin"_a, "positions"_a, "backward"_a, "y"_a);
  m.def("train_softmax", &bind_softmax, "scores"_a, "first"_a, "heads"_a, "start"_a, "block"_a, "window"_a, "scale"_a);
  m.def("train_softmax_backward", &bind_softmax_backward, "p"_a, "grad"_a, "first"_a, "heads"_a, "start"_a, "block"_a,
        "window"_a, "scale"_a);
  m.def("train_cross_entropy", &bind_cross_entropy, "logits"_a, "targets"_a, "log_sums"_a, "losses"_a);
  m.def("train_cross_entropy_backward", &bind_cross_entropy_backward, "logits"_a, "targets"_a, "log_sums"_a, "factor"_a,
        "grad"_a);
}
