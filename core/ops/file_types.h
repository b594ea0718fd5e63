// Ternary weights as files pack them, row after row, in blocks. formats/trits.py is the definition; this is the fast
// way for the types that models come in, and the tests compare the two.
#pragma once
#include <cstdint>
#include <string>

namespace bitnet {

struct FileType {
  const char* name;
  int64_t block, block_bytes;  // weights, and the bytes that they take
  int64_t scale_at;            // where in a block its float16 scale is; -1: it has none
  int64_t trailer;             // bytes behind the last block
  // `count` blocks to codes w; 2 where the file holds the code 3.
  void (*decode)(const uint8_t* blocks, int64_t count, int8_t* codes);
};

const FileType* file_type(const std::string& name);  // null: none of these

}  // namespace bitnet
