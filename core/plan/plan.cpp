#include "plan/plan.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "ops/attention.h"
#include "ops/batch.h"
#include "ops/head.h"
#include "ops/rows.h"

namespace bitnet {
namespace {

[[noreturn]] void outside(const char* name, int64_t index, int64_t found, const std::string& limit) {
  throw std::invalid_argument(std::string(name) + "[" + std::to_string(index) + "] is " + std::to_string(found) + "; " +
                              limit + ".");
}

void check_range(const char* name, const int32_t* numbers, int64_t count, int64_t limit, const char* owner) {
  for (int64_t i = 0; i < count; ++i)
    if (numbers[i] < 0 || numbers[i] >= limit)
      outside(name, i, numbers[i], std::string(owner) + std::to_string(limit) + " rows");
}

Matrix<const float> constant(Matrix<float> m) { return {m.data, m.rows, m.columns}; }

}  // namespace

Plan::Plan(const Program& program, int32_t result)
    : program_(narrowed(program)), layout_(lay_out(program_)), result_(result) {
  const std::vector<Instruction>& all = program_.instructions;
  if (all.empty() || all.back().op != Op::Head || all.back().outputs[0] != result)
    throw std::invalid_argument("a plan ends with the head that writes its logits.");
  rows_of_tables_ = std::numeric_limits<int64_t>::max();
  for (const Instruction& i : all)
    if (i.op == Op::Embed) rows_of_tables_ = std::min(rows_of_tables_, program_.weights[i.weights[0]].n);
}

void Plan::set_angles(int32_t index, Matrix<const float> cos, Matrix<const float> sin) {
  const std::lock_guard lock(busy_);
  program_.set_angles(index, cos, sin);
}

Step Plan::copied(const Step& step) {
  const int64_t counts[] = {step.tokens, step.tokens, step.sequences + 1,
                            step.wanted, step.wanted, step.block_tables.size()};
  const int32_t* sources[] = {step.ids, step.positions, step.starts, step.want, step.tops, step.block_tables.data};
  int64_t total = 0;
  for (const int64_t count : counts) total += count;
  if (static_cast<int64_t>(numbers_.size()) < total) numbers_.resize(static_cast<size_t>(total));
  const int32_t* copies[6];
  int32_t* to = numbers_.data();
  for (int i = 0; i < 6; ++i) {
    copies[i] = to;
    to = std::copy_n(sources[i], counts[i], to);
  }
  Step mine(step);
  mine.ids = copies[0], mine.positions = copies[1], mine.starts = copies[2], mine.want = copies[3],
  mine.tops = copies[4];
  mine.block_tables.data = copies[5];
  return mine;
}

void Plan::check(const Step& step) const {
  check_range("ids", step.ids, step.tokens, rows_of_tables_, "the table has ");
  check_range("want", step.want, step.wanted, step.tokens, "the step has ");
  for (const Angles& table : program_.angles)
    check_range("positions", step.positions, step.tokens, table.cos.rows, "cos and sin have ");
  check_batch({step.positions, step.starts, step.sequences, step.block_tables}, *program_.cache, step.tokens);
}

void Plan::reserve(int64_t floats) {
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  if (arena_ && arena_->bytes() >= bytes) return;
  arena_.reset();  // nothing in it outlives a step
  arena_bytes_ = 0;
  arena_ = std::make_unique<Mapping>(bytes);
  arena_bytes_ = static_cast<int64_t>(bytes);
}

Matrix<float> Plan::at(int32_t id, const Step& step) const {
  const Value& value = program_.values[id];
  float* arena = reinterpret_cast<float*>(arena_->data());
  if (value.rows == Rows::Tokens) return {arena + layout_.offsets[id] * step.tokens, step.tokens, value.width};
  arena += layout_.tokens_width * step.tokens;
  return {arena + layout_.offsets[id] * step.wanted, step.wanted, value.width};
}

void Plan::run(const Step& given, float* logits) {
  const std::lock_guard lock(busy_);
  const Step step = copied(given);
  check(step);
  reserve(layout_.floats(step.tokens, step.wanted));
  for (const Instruction& instruction : program_.instructions)
    if (step.wanted || program_.values[instruction.outputs[0]].rows == Rows::Tokens) execute(instruction, step, logits);
}

void Plan::execute(const Instruction& instruction, const Step& step, float* logits) {
  const auto in = [&](size_t i) { return constant(at(instruction.inputs[i], step)); };
  const auto out = [&](size_t i) { return at(instruction.outputs[i], step).data; };
  const auto weight = [&](size_t i) -> const Weight& { return program_.weights[instruction.weights[i]]; };
  switch (instruction.op) {
    case Op::Embed:
      return weight(0).ternary ? embed(*weight(0).ternary, step.ids, step.tokens, out(0))
                               : embed(*weight(0).dense, step.ids, step.tokens, out(0));
    case Op::RmsNorm: {
      const Matrix<const float> x = in(0);
      const int64_t width = weight(0).k;
      return rms_norm({x.data, x.size() / width, width}, weight(0).vector, instruction.number, out(0));
    }
    case Op::Linear:
      products_.clear();
      for (size_t i = 0; i < instruction.outputs.size(); ++i)
        products_.push_back({weight(i).ternary, weight(i).dense, out(i)});
      return linear(in(0), products_.data(), static_cast<int64_t>(products_.size()));
    case Op::Rope: {
      const Angles& table = program_.angles[instruction.angles];
      return rope(in(0), table.cos, table.sin, step.positions, table.head_dim, table.interleaved, out(0));
    }
    case Op::Attention: {
      const Batch batch{step.positions, step.starts, step.sequences, step.block_tables};
      return attention(in(0), in(1).data, in(2).data, *program_.cache, instruction.layer, batch, instruction.number,
                       instruction.size, out(0));
    }
    case Op::Gate:
      return gate(in(0), in(1).data, instruction.activation, out(0));
    case Op::Add:
      return add(in(0), in(1).data, out(0));
    case Op::Scale:
      return scale(in(0), instruction.number, out(0));
    case Op::Hadamard:
      return hadamard(in(0), weight(0).vector, instruction.size, instruction.inverse, out(0));
    case Op::Take: {
      const Matrix<const float> x = in(0);
      for (int64_t s = 0; s < step.wanted; ++s)
        std::memcpy(out(0) + s * x.columns, x.row(step.want[s]), static_cast<size_t>(x.columns) * sizeof(float));
      return;
    }
    case Op::Head: {
      if (const DenseWeight* w = weight(0).dense; w && w->screen) {
        head(in(0), *w, step.tops, logits);
        return;
      }
      const Product product{weight(0).ternary, weight(0).dense, logits};
      return linear(in(0), &product, 1);
    }
  }
}

}  // namespace bitnet
