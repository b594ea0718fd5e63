#include "plan/program.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace bitnet {
namespace {

constexpr const char* kNames[] = {"embed", "rms_norm", "linear",   "rope", "attention", "gate",
                                  "add",   "scale",    "hadamard", "take", "head"};

const char* name_of(Op op) { return kNames[static_cast<int>(op)]; }

std::string text_of(const Value& v) {
  return std::string(v.rows == Rows::Tokens ? "(T, " : "(S, ") + std::to_string(v.width) + ")";
}

std::string text_of(const Weight& w) {
  return std::string("(") + std::to_string(w.n) + ", " + std::to_string(w.k) + ")";
}

[[noreturn]] void fail(const char* operation, const std::string& message) {
  throw std::invalid_argument(std::string(operation) + ": " + message);
}

void check_equal(const char* operation, const Value& x, const Value& y) {
  if (x.rows != y.rows || x.width != y.width)
    fail(operation, text_of(x) + " and " + text_of(y) + " must have the same shape.");
}

void check_rows(const char* operation, const Value& x, Rows rows) {
  if (x.rows != rows)
    fail(operation, "x is " + text_of(x) +
                        (rows == Rows::Tokens ? "; it must have T rows." : "; it must have S rows: take comes first."));
}

void check_columns(const char* operation, const Value& x, const Weight& w) {
  if (x.width != w.k) fail(operation, "x is " + text_of(x) + " and the weight " + text_of(w) + ".");
}

void check_angles(int64_t head_dim, Matrix<const float> cos, Matrix<const float> sin) {
  if (cos.rows != sin.rows || cos.columns != sin.columns) fail("rope", "cos and sin must have the same shape.");
  if (head_dim < 1 || 2 * cos.columns > head_dim)
    fail("rope", "cos has " + std::to_string(cos.columns) + " columns; a head of " + std::to_string(head_dim) +
                     " has fewer pairs.");
}

// Operations that treat every row by itself, whatever its position.
bool is_rowwise(Op op) {
  return op == Op::RmsNorm || op == Op::Linear || op == Op::Gate || op == Op::Add || op == Op::Scale ||
         op == Op::Hadamard;
}

}  // namespace

const Value& Program::value(int32_t id, const char* operation) const {
  if (id < 0 || id >= static_cast<int32_t>(values.size()))
    fail(operation,
         "there is no value " + std::to_string(id) + "; " + std::to_string(values.size()) + " were written.");
  return values[id];
}

std::vector<int32_t> Program::append(Instruction instruction, const std::vector<Value>& results) {
  for (const Value& result : results) {
    instruction.outputs.push_back(static_cast<int32_t>(values.size()));
    values.push_back(result);
  }
  instructions.push_back(std::move(instruction));
  return instructions.back().outputs;
}

int32_t Program::keep(const Weight& weight) {
  const auto same = [&](const Weight& w) {
    return w.ternary == weight.ternary && w.dense == weight.dense && w.vector == weight.vector;
  };
  const auto found = std::find_if(weights.begin(), weights.end(), same);
  if (found != weights.end()) return static_cast<int32_t>(found - weights.begin());
  weights.push_back(weight);
  return static_cast<int32_t>(weights.size()) - 1;
}

int32_t Program::embed(const Weight& table) {
  return append({.op = Op::Embed, .weights = {keep(table)}}, {{Rows::Tokens, table.k}})[0];
}

int32_t Program::rms_norm(int32_t x, const Weight& weight, float eps) {
  const Value in = value(x, "rms_norm");
  if (weight.k < 1 || in.width % weight.k) check_columns("rms_norm", in, weight);
  return append({.op = Op::RmsNorm, .inputs = {x}, .weights = {keep(weight)}, .number = eps}, {in})[0];
}

std::vector<int32_t> Program::linear(int32_t x, const std::vector<Weight>& list) {
  const Value in = value(x, "linear");
  if (list.empty()) fail("linear", "there is no weight.");
  Instruction instruction{.op = Op::Linear, .inputs = {x}};
  std::vector<Value> results;
  for (const Weight& w : list) {
    check_columns("linear", in, w);
    instruction.weights.push_back(keep(w));
    results.push_back({in.rows, w.n});
  }
  return append(std::move(instruction), results);
}

int32_t Program::rope(int32_t x, int32_t index) {
  const Value in = value(x, "rope");
  check_rows("rope", in, Rows::Tokens);
  if (index < 0 || index >= static_cast<int32_t>(angles.size())) fail("rope", "there is no such table of angles.");
  if (in.width % angles[index].head_dim)
    fail("rope", "x is " + text_of(in) + "; it must be whole heads of " + std::to_string(angles[index].head_dim) + ".");
  return append({.op = Op::Rope, .inputs = {x}, .angles = index}, {in})[0];
}

int32_t Program::attention(int32_t q, int32_t k, int32_t v, int64_t layer, int64_t head_dim, float scale,
                           int64_t window) {
  const Value in = value(q, "attention");
  const int64_t width = cache->kv_heads * cache->head_dim;
  check_rows("attention", in, Rows::Tokens);
  if (head_dim != cache->head_dim)
    fail("attention", "head_dim is " + std::to_string(head_dim) + "; the cache was made for " +
                          std::to_string(cache->head_dim) + ".");
  if (in.width % width)
    fail("attention", "q is " + text_of(in) +
                          "; its columns must be a multiple of kv_heads * head_dim = " + std::to_string(width) + ".");
  check_equal("attention", value(k, "attention"), {Rows::Tokens, width});
  check_equal("attention", value(v, "attention"), {Rows::Tokens, width});
  if (window < 0) fail("attention", "window is " + std::to_string(window) + "; it must not be negative.");
  if (layer < 0 || layer >= cache->layers)
    fail("attention", "layer is " + std::to_string(layer) + "; the cache has " + std::to_string(cache->layers) + ".");
  return append(
      {.op = Op::Attention, .inputs = {q, k, v}, .layer = static_cast<int32_t>(layer), .number = scale, .size = window},
      {in})[0];
}

int32_t Program::gate(Activation activation, int32_t g, int32_t u) {
  const Value in = value(g, "gate");
  check_equal("gate", in, value(u, "gate"));
  return append({.op = Op::Gate, .inputs = {g, u}, .activation = activation}, {in})[0];
}

int32_t Program::add(int32_t x, int32_t y) {
  const Value in = value(x, "add");
  check_equal("add", in, value(y, "add"));
  return append({.op = Op::Add, .inputs = {x, y}}, {in})[0];
}

int32_t Program::scale(int32_t x, float c) {
  return append({.op = Op::Scale, .inputs = {x}, .number = c}, {value(x, "scale")})[0];
}

int32_t Program::hadamard(int32_t x, const Weight& signs, int64_t block, bool inverse) {
  const Value in = value(x, "hadamard");
  check_columns("hadamard", in, signs);
  if (block < 1 || block & (block - 1) || in.width % block)
    fail("hadamard", "block is " + std::to_string(block) + "; it must be a power of two that divides " +
                         std::to_string(in.width) + ".");
  return append({.op = Op::Hadamard, .inputs = {x}, .weights = {keep(signs)}, .size = block, .inverse = inverse},
                {in})[0];
}

int32_t Program::take(int32_t x) {
  const Value in = value(x, "take");
  check_rows("take", in, Rows::Tokens);
  return append({.op = Op::Take, .inputs = {x}}, {{Rows::Wanted, in.width}})[0];
}

int32_t Program::head(int32_t x, const Weight& weight) {
  const Value in = value(x, "head");
  check_rows("head", in, Rows::Wanted);
  check_columns("head", in, weight);
  return append({.op = Op::Head, .inputs = {x}, .weights = {keep(weight)}}, {{Rows::Wanted, weight.n}})[0];
}

int32_t Program::add_angles(const Angles& table) {
  check_angles(table.head_dim, table.cos, table.sin);
  angles.push_back(table);
  return static_cast<int32_t>(angles.size()) - 1;
}

void Program::set_angles(int32_t index, Matrix<const float> cos, Matrix<const float> sin) {
  if (index < 0 || index >= static_cast<int32_t>(angles.size())) fail("rope", "there is no such table of angles.");
  check_angles(angles[index].head_dim, cos, sin);
  if (cos.columns != angles[index].cos.columns) fail("rope", "the new angles are of another width.");
  angles[index].cos = cos;
  angles[index].sin = sin;
}

std::string Program::text() const {
  std::ostringstream lines;
  for (const Instruction& i : instructions) {
    const char* comma = "";
    for (const int32_t v : i.outputs) {
      lines << comma << 'v' << v << ' ' << text_of(values[v]);
      comma = ", ";
    }
    lines << " = " << name_of(i.op);
    for (const int32_t v : i.inputs) lines << " v" << v;
    for (const int32_t w : i.weights) lines << " w" << w << ' ' << text_of(weights[w]);
    if (i.op == Op::Attention) lines << " layer " << i.layer;
    lines << '\n';
  }
  return lines.str();
}

Program narrowed(const Program& program) {
  // Backwards, so that every use of a value is known before its origin: a value is narrow when only wanted rows of it
  // are read, and so is an instruction all of whose results are.
  std::vector<bool> read(program.values.size()), whole(program.values.size());
  std::vector<bool> narrow(program.instructions.size());
  for (size_t i = program.instructions.size(); i-- > 0;) {
    const Instruction& instruction = program.instructions[i];
    const auto is_narrow = [&](int32_t v) { return program.values[v].rows == Rows::Tokens && read[v] && !whole[v]; };
    narrow[i] =
        is_rowwise(instruction.op) && std::all_of(instruction.outputs.begin(), instruction.outputs.end(), is_narrow);
    for (const int32_t v : instruction.inputs) {
      read[v] = true;
      if (!narrow[i] && instruction.op != Op::Take) whole[v] = true;
    }
  }

  Program result(program);
  result.instructions.clear();
  std::vector<int32_t> wanted(program.values.size(), -1);  // the wanted rows of a value of T rows
  const auto take = [&](int32_t v) {
    if (wanted[v] < 0) wanted[v] = result.take(v);
    return wanted[v];
  };
  std::vector<int32_t> renamed(program.values.size());
  for (size_t v = 0; v < renamed.size(); ++v) renamed[v] = static_cast<int32_t>(v);
  for (size_t i = 0; i < program.instructions.size(); ++i) {
    Instruction instruction = program.instructions[i];
    if (instruction.op == Op::Take) {
      renamed[instruction.outputs[0]] = take(instruction.inputs[0]);
      continue;
    }
    for (int32_t& v : instruction.inputs) v = narrow[i] ? take(v) : renamed[v];
    if (narrow[i])
      for (const int32_t v : instruction.outputs) {
        wanted[v] = v;
        result.values[v].rows = Rows::Wanted;
      }
    result.instructions.push_back(std::move(instruction));
  }
  return result;
}

}  // namespace bitnet
