// A model as data: the flat list of its operations, written down once by running it on symbols. plan.h replays it.
//
// Nothing here is an address but the weights, the tables of angles and the cache, which a file would name.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "ops/attention.h"
#include "ops/weights.h"
#include "tensor.h"

namespace bitnet {

enum class Op : int32_t { Embed, RmsNorm, Linear, Rope, Attention, Gate, Add, Scale, Hadamard, Take, Head };
enum class Rows : int32_t { Tokens, Wanted };  // the T or the S of a step

// An activation: `width` floats for every row. Each is written by one instruction, and read only by later ones.
struct Value {
  Rows rows;
  int64_t width;
};

struct Weight {  // exactly one of the three pointers
  const TernaryWeight* ternary = nullptr;
  const DenseWeight* dense = nullptr;
  const float* vector = nullptr;
  int64_t n = 0, k = 0;  // a vector is (1, k)
};

// Cosines and sines (positions, rotary / 2); a replay may be given longer ones.
struct Angles {
  int64_t head_dim;
  bool interleaved;
  Matrix<const float> cos, sin;
};

struct Instruction {
  Op op;
  std::vector<int32_t> inputs{}, outputs{};  // values
  std::vector<int32_t> weights{};
  int32_t angles = 0;                        // of rope
  int32_t layer = 0;                         // of attention
  float number = 0;                          // rms_norm: eps; attention: the scale of scores; scale: the factor
  int64_t size = 0;                          // hadamard: columns of a block; attention: the window
  bool inverse = false;                      // of hadamard
  Activation activation = Activation::Silu;  // of gate
};

// Every call checks its shapes, appends an instruction and returns the values that it writes; std::invalid_argument.
class Program {
 public:
  explicit Program(KVCache& cache) : cache(&cache) {}

  int32_t embed(const Weight& table);
  int32_t rms_norm(int32_t x, const Weight& weight, float eps);  // each run of weight.k columns by itself
  std::vector<int32_t> linear(int32_t x, const std::vector<Weight>& list);
  int32_t rope(int32_t x, int32_t index);
  int32_t attention(int32_t q, int32_t k, int32_t v, int64_t layer, int64_t head_dim, float scale, int64_t window);
  int32_t gate(Activation activation, int32_t g, int32_t u);
  int32_t add(int32_t x, int32_t y);
  int32_t scale(int32_t x, float c);
  int32_t hadamard(int32_t x, const Weight& signs, int64_t block, bool inverse);
  int32_t take(int32_t x);  // the wanted rows
  int32_t head(int32_t x, const Weight& weight);

  int32_t add_angles(const Angles& table);
  void set_angles(int32_t index, Matrix<const float> cos, Matrix<const float> sin);

  std::string text() const;  // an instruction a line

  KVCache* cache;
  std::vector<Value> values;
  std::vector<Weight> weights;
  std::vector<Angles> angles;
  std::vector<Instruction> instructions;

 private:
  const Value& value(int32_t id, const char* operation) const;
  std::vector<int32_t> append(Instruction instruction, const std::vector<Value>& results);
  int32_t keep(const Weight& weight);
};

// The same logits from less work: what only the wanted rows need is computed for them alone, which after the last
// attention is everything.
Program narrowed(const Program& program);

}  // namespace bitnet
