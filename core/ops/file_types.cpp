#include "ops/file_types.h"

namespace bitnet {
namespace {

constexpr int kTQ1Bytes = 54, kTQ2Bytes = 66;

// Weight j of 128 is in byte j % 32, in the bit pair `first - step * (j / 32)`.
template <int first, int step>
void decode_pairs(const uint8_t* bytes, int8_t* codes) {
  for (int f = 0; f < 4; ++f)
    for (int j = 0; j < 32; ++j) codes[32 * f + j] = static_cast<int8_t>((bytes[j] >> (first + step * f) & 3) - 1);
}

void decode_i2_s(const uint8_t* blocks, int64_t count, int8_t* codes) {
  for (int64_t b = 0; b < count; ++b) decode_pairs<6, -2>(blocks + 32 * b, codes + 128 * b);
}

void decode_tq2_0(const uint8_t* blocks, int64_t count, int8_t* codes) {
  for (int64_t b = 0; b < count; ++b, blocks += kTQ2Bytes, codes += 256) {
    decode_pairs<0, 2>(blocks, codes);
    decode_pairs<0, 2>(blocks + 32, codes + 128);
  }
}

// `count` bytes, each the fraction 0.t0 t1 t2 .. (base 3) times 256, rounded up: its leading trit is 1 from 86 on and 2
// from 171 on, and times 3 (modulo 256) the next one leads.
template <int count, int trits>
void decode_fractions(const uint8_t* bytes, int8_t* codes) {
  uint8_t fractions[count];
  for (int j = 0; j < count; ++j) fractions[j] = bytes[j];
  for (int t = 0; t < trits; ++t)
    for (int j = 0; j < count; ++j) {
      codes[count * t + j] = static_cast<int8_t>((fractions[j] >= 86) + (fractions[j] >= 171) - 1);
      fractions[j] = static_cast<uint8_t>(3 * fractions[j]);
    }
}

void decode_tq1_0(const uint8_t* blocks, int64_t count, int8_t* codes) {
  for (int64_t b = 0; b < count; ++b, blocks += kTQ1Bytes, codes += 256) {
    decode_fractions<32, 5>(blocks, codes);
    decode_fractions<16, 5>(blocks + 32, codes + 160);
    decode_fractions<4, 4>(blocks + 48, codes + 240);
  }
}

constexpr FileType kTypes[] = {
    {"I2_S", 128, 32, -1, 32, &decode_i2_s},
    {"TQ1_0", 256, kTQ1Bytes, 52, 0, &decode_tq1_0},
    {"TQ2_0", 256, kTQ2Bytes, 64, 0, &decode_tq2_0},
};

}  // namespace

const FileType* file_type(const std::string& name) {
  for (const FileType& type : kTypes)
    if (name == type.name) return &type;
  return nullptr;
}

}  // namespace bitnet
