// Replays a program: a whole step of the model in one call.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "ops/linear.h"
#include "plan/layout.h"
#include "plan/program.h"
#include "runtime/memory.h"
#include "tensor.h"

namespace bitnet {

// What one replay works on. T tokens of B sequences, S of them wanted; block_tables (B, blocks).
struct Step {
  const int32_t *ids, *positions, *starts, *want;
  int64_t tokens, sequences, wanted;
  Matrix<const int32_t> block_tables;
  const int32_t* tops;  // likeliest logits that are needed of each wanted row; 0: all
};

// Results have the bits that the operations give when they are called one by one. Intermediate values lie in an arena
// that grows with the largest step so far and never shrinks; nothing else is kept. Calls from several threads take
// turns.
class Plan {
 public:
  // `result` is what a head wrote: the logits.
  Plan(const Program& program, int32_t result);

  // logits (S, vocab). std::invalid_argument where the step does not fit, before anything is computed or stored.
  void run(const Step& step, float* logits);

  void set_angles(int32_t index, Matrix<const float> cos, Matrix<const float> sin);

  const Program& program() const { return program_; }
  int64_t vocabulary() const { return program_.values[result_].width; }
  int64_t arena_bytes() const { return arena_bytes_; }  // may be asked while another thread runs

 private:
  Step copied(const Step& step);
  void check(const Step& step) const;
  void reserve(int64_t floats);
  void execute(const Instruction& instruction, const Step& step, float* logits);
  Matrix<float> at(int32_t value, const Step& step) const;

  Program program_;
  Layout layout_;
  int32_t result_;
  int64_t rows_of_tables_;  // of every embedding table at least
  std::unique_ptr<Mapping> arena_;
  std::atomic<int64_t> arena_bytes_{0};
  std::vector<int32_t> numbers_;   // of the step: the caller may change its own while we run
  std::vector<Product> products_;  // of the linear that runs
  std::mutex busy_;
};

}  // namespace bitnet
