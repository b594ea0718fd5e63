#include "plan/layout.h"

#include <algorithm>
#include <numeric>

namespace bitnet {
namespace {

constexpr int64_t kAlignment = 16;  // floats: every value begins on a cache line

// Values in the same memory, from the instruction that writes the first to the last that reads one.
struct Place {
  Rows rows;
  int64_t width, first, last;
  int64_t offset = 0;

  bool meets(const Place& other) const { return rows == other.rows && first <= other.last && other.first <= last; }
};

bool works_in_place(Op op) {
  return op == Op::RmsNorm || op == Op::Rope || op == Op::Gate || op == Op::Add || op == Op::Scale;
}

// The lowest offset where `place` fits between those that live at the same time.
int64_t lowest_gap(const Place& place, std::vector<const Place*> neighbours) {
  std::sort(neighbours.begin(), neighbours.end(), [](auto* a, auto* b) { return a->offset < b->offset; });
  int64_t offset = 0;
  for (const Place* n : neighbours) {
    if (offset + place.width <= n->offset) break;
    offset = std::max(offset, n->offset + n->width);
  }
  return offset;
}

}  // namespace

Layout lay_out(const Program& program) {
  const auto count = program.values.size();
  std::vector<int64_t> last(count, -1);  // instruction that reads a value
  for (size_t i = 0; i < program.instructions.size(); ++i)
    for (const int32_t v : program.instructions[i].inputs) last[v] = static_cast<int64_t>(i);

  std::vector<Place> places;
  std::vector<size_t> place_of(count, SIZE_MAX);
  for (size_t i = 0; i < program.instructions.size(); ++i) {
    const Instruction& instruction = program.instructions[i];
    const int64_t now = static_cast<int64_t>(i);
    if (instruction.op == Op::Head) continue;  // logits are the caller's
    for (const int32_t v : instruction.outputs) {
      const Value& value = program.values[v];
      const auto over = std::find_if(instruction.inputs.begin(), instruction.inputs.end(),
                                     [&](int32_t x) { return works_in_place(instruction.op) && last[x] == now; });
      if (over != instruction.inputs.end()) {
        place_of[v] = place_of[*over];
        places[place_of[v]].last = std::max(now, last[v]);
        continue;
      }
      place_of[v] = places.size();
      places.push_back({value.rows, round_up(value.width, kAlignment), now, std::max(now, last[v])});
    }
  }

  // The widest first, each at the lowest offset that is free for as long as it lives.
  std::vector<size_t> order(places.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return places[a].width > places[b].width; });
  Layout layout;
  for (size_t at = 0; at < order.size(); ++at) {
    Place& place = places[order[at]];
    std::vector<const Place*> neighbours;
    for (size_t before = 0; before < at; ++before)
      if (place.meets(places[order[before]])) neighbours.push_back(&places[order[before]]);
    place.offset = lowest_gap(place, std::move(neighbours));
    int64_t& width = place.rows == Rows::Tokens ? layout.tokens_width : layout.wanted_width;
    width = std::max(width, place.offset + place.width);
  }
  for (size_t v = 0; v < count; ++v)
    layout.offsets.push_back(place_of[v] < places.size() ? places[place_of[v]].offset : -1);
  return layout;
}

}  // namespace bitnet
