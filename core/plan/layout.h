// Where the values of a program lie while it runs.
#pragma once
#include <cstdint>
#include <vector>

#include "plan/program.h"

namespace bitnet {

// Value v begins at offsets[v] * rows floats of its part of the arena: one part for values of T rows, `tokens_width`
// floats wide, and one for those of S rows. Memory is used again after the last reader of a value; an operation that
// treats every element by itself writes over an input that nobody else reads.
struct Layout {
  std::vector<int64_t> offsets;
  int64_t tokens_width = 0, wanted_width = 0;

  int64_t floats(int64_t tokens, int64_t wanted) const { return tokens * tokens_width + wanted * wanted_width; }
};

Layout lay_out(const Program& program);

}  // namespace bitnet
