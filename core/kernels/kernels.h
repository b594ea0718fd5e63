// What an instruction set offers: a table of plain functions over plain pointers. No STL here: the files of one
// instruction set include only this, so no shared inline function can be compiled with instructions that another CPU
// lacks.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace bitnet {

// Packed ternary weights. A row group is 16 rows, stored as blocks, one after the other. Rows and columns that only pad
// (to 16 rows and whole blocks) hold zeros.
//
// T2 and T5 are for products. Byte 4r + j of block b, of 64 bytes, holds the fields of row r: field f is the code,
// w + 1, of column 4Fb + 4f + j        r < 16; j < 4; f < F
//
//   T2: F = 4, field f in bits 2f..2f+1
//   T5: F = 5, one of 3^5 = 243 bytes; five-trits-inl.h says which
//
// TL1 and TL2 are for lookups in tables of partial sums (arXiv:2502.11880 has the idea and the names). A piece of 64
// bytes holds eight tuples of each row: byte 16i + r the indices of row r's tuples 2i (low nibble) and 2i + 1   i < 4
//
//   TL1: pairs (w0, w1), index 3 w0 + w1 + 4. A block is a piece: 16 columns.
//   TL2: triples (w0, w1, w2), index |v| of v = 9 w0 + 3 w1 + w2. A block is 64 bytes of signs and four pieces, 96
//        columns: bit 7 - 2p of byte 16i + r says whether v < 0 for tuple 2i of piece p, the bit below it for 2i + 1.
enum class Packing : int32_t { T2, T5, TL1, TL2 };
constexpr int kGroupRows = 16;
constexpr int kBlockBytes = 64;  // of T2 and T5
constexpr int kPieceBytes = 64;
constexpr int kPieceTuples = 8;
constexpr int fields(Packing l) { return l == Packing::T5 ? 5 : 4; }
constexpr bool looks_up(Packing l) { return l == Packing::TL1 || l == Packing::TL2; }
constexpr int tuple(Packing l) { return l == Packing::TL2 ? 3 : 2; }
constexpr int block_pieces(Packing l) { return l == Packing::TL2 ? 4 : 1; }
constexpr int sign_bytes(Packing l) { return l == Packing::TL2 ? 64 : 0; }  // of a block, before its pieces
constexpr int block_columns(Packing l) {
  return looks_up(l) ? block_pieces(l) * kPieceTuples * tuple(l) : 4 * fields(l);
}
constexpr int block_bytes(Packing l) { return sign_bytes(l) + block_pieces(l) * 64; }
constexpr int kSumColumns = 16;  // columns of the smallest group with a scale of its own
constexpr bool takes_groups(Packing l) { return kSumColumns % block_columns(l) == 0; }

// A token's table for a piece: [tuple & 1][lower byte, upper byte][tuple / 2][index]; lookup-inl.h says which sums.
constexpr int kPieceTableBytes = 256;
constexpr int64_t table_bytes(Packing l) { return block_pieces(l) * kPieceTableBytes; }  // of a block

// Tokens that share one pass over the weights. Their int8 codes travel as a panel [padded K / 4][tokens][4].
constexpr int kPanelTokens = 8;

constexpr int kLanes = 16;  // of every float algorithm, on every instruction set: the order of sums depends on it
constexpr int kPagePositions = 16;  // positions of one page of the key-value cache
constexpr int kChunkPages = 4;      // pages that rows of queries share while they are in the first cache
// A sequence is cut here and its parts are folded in ascending order: part of the meaning of a result, so never a
// matter of threads.
constexpr int kSegmentPositions = 256;
constexpr int kSegmentPages = kSegmentPositions / kPagePositions;
constexpr int kNearPages = 2;               // how early pages are fetched into the first cache
constexpr int kAheadPages = kSegmentPages;  // and into the second, at most
constexpr int kQ8Block = 32;                // weights that share a scale in Q8_0

enum class DType : int32_t { F32, F16, BF16, Q8_0, Q4_0, Q5_0, Q3_K, Q4_K, Q5_K, Q6_K };
constexpr int kDTypes = 10;

// Types whose rows are blocks of so many columns and bytes, read as files store them (blocks-inl.h); 0 for the others.
constexpr int block_columns(DType d) { return d < DType::Q4_0 ? 0 : d < DType::Q3_K ? 32 : 256; }
constexpr int block_bytes(DType d) {
  constexpr int bytes[kDTypes] = {0, 0, 0, 0, 18, 22, 110, 144, 176, 210};
  return bytes[(int)d];
}

enum class KVType : int32_t { F32, F16, I8 };  // of the key-value cache
enum class Activation : int32_t { Silu, Relu2, Gelu };

// out = weights x panel, exactly. Without scales: int32. With group_scales: the float sum over groups, in ascending
// order, of float(integer sum of the group) * scale.
struct TernaryTask {
  const uint8_t* weights;  // first row group
  Packing packing;
  int64_t row_groups;
  int64_t blocks;             // of a row group
  int64_t group_blocks;       // blocks that share a scale; all of them without group_scales
  const float* group_scales;  // [row_group][group][16], or null
  const int8_t* panel;        // T2, T5: [padded K / 4][tokens][4]
  const int32_t* sums;        // T2, T5: [group][tokens], sums of the panel's codes, because stored codes are w + 1
  const uint8_t* tables;      // TL1, TL2: [tokens][block][table_bytes]
  int64_t tokens;             // 1..kPanelTokens
  void* out;                  // [row_group][tokens][16] int32 or float
};

// The same for many tokens, by instructions that multiply tiles: 16 tokens by 16 rows, 64 columns at a time. The
// tokens' codes stay rows; each block of weights is unpacked once for all of them.
constexpr int kTile = 16;
constexpr int kTileColumns = 64;
constexpr int kTileBlocks = 32;    // of a row group that are unpacked at a time
constexpr int kTileRowGroups = 4;  // of a task, at most
constexpr int kTileTokens = 12;    // from so many on tiles are faster
constexpr int64_t kUnpackedBytes = int64_t{kTileRowGroups} * kTileBlocks * 5 * kBlockBytes;

struct TileTask {
  const uint8_t* weights;  // first row group
  Packing packing;         // T2 or T5
  int64_t row_groups;      // 1..kTileRowGroups
  int64_t blocks, group_blocks;
  const float* group_scales;  // as in TernaryTask
  const int8_t* codes;        // [padded tokens][stride], and kTileColumns more bytes that may be read
  int64_t stride;
  const int32_t* sums;  // [tokens][group]
  int64_t tokens;       // padded: to a multiple of kTile
  uint8_t* unpacked;    // scratch of kUnpackedBytes, on a multiple of 64
  int32_t* acc;         // [row_group][padded tokens][16]: the result without group_scales
  float* total;         // the same, with them
};

// y[t][r] = dot(x[t], row r): lane l sums columns l, l + 16, ... in ascending order, then the lanes are summed as a
// tree.
struct DenseTask {
  const uint8_t* rows;  // first row
  int64_t row_bytes;    // from row to row
  int64_t count;        // rows
  int64_t columns;      // padded to 16 with zeros, in the rows and in x (Q8_0: to 32)
  DType dtype;
  const float* x;  // [tokens][ldx]
  int64_t ldx;
  int64_t tokens;
  float* y;  // [tokens][ldy]
  int64_t ldy;
};

// A page holds what 16 positions have in one key-value head: floats of keys as [head_dim][16], of values as
// [16][head_dim]. I8 keeps a vector of a position as codes and one float, x ~ scale * code; its pages are cells of 256
// bytes, then the 16 scales. Byte 64g + 4l + j of cell c is the code + 128 of            g, j < 4; l < 16
//
//   keys      position l,        column 16c + 4g + j
//   values    position 4g + j,   column 16c + l
//
// so that a cell is 16 lanes by 16 factors of a sum. Columns that only pad (to a multiple of 16) may be anything.
constexpr int kCellBytes = 256;
constexpr int kMostI8Columns = 512;  // of a head: 127 * 32639 * 512 < 2^31
constexpr int64_t cells(int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes; }
constexpr int64_t page_bytes(KVType type, int64_t head_dim) {
  if (type == KVType::I8) return cells(head_dim) * kCellBytes + 4 * kPagePositions;
  return head_dim * kPagePositions * (type == KVType::F16 ? 2 : 4);
}

// Floats that attend() needs beside the scores. F16: kChunkPages of floats and one vector. I8: what each row is
// multiplied by, 16 bits a code, with a step and a sum.
constexpr int kCodedRowBytes = 2 * kMostI8Columns + 64;  // the same line of all rows is not in the same set of a cache
constexpr int64_t attention_scratch(KVType type, int64_t rows, int64_t head_dim) {
  return type == KVType::I8 ? rows * (kCodedRowBytes / 4 + 2) : kChunkPages * kPagePositions * head_dim + kLanes;
}

// Rows of queries that share one key-value head (heads of one token, or of several) over one segment of a sequence.
struct AttentionTask {
  const float* q;  // [rows][head_dim]
  int64_t rows;
  const int32_t* counts;  // [rows]: positions of the segment that a row attends, from its first on; never descending
  const int32_t* starts;  // [rows]: so many of them it does not attend, but never all; null: none
  int64_t head_dim;
  float scale;
  KVType type;
  // In the order of use: the segment's pages of keys, its pages of values, then kAheadPages that are likely to be next.
  const uint8_t* const* pages;
  float* scores;   // scratch [rows][kSegmentPositions]
  float* scratch;  // attention_scratch()
  float* max;      // [rows]
  float* sum;      // [rows]: of exp(score - max)
  float* out;      // [rows][head_dim]: sum of exp(score - max) * value
};

// The screen of an output head: a cheap copy of its rows, row r ~ scale * code with int8 codes, and how far that can be
// off. A row group is 16 rows, stored as blocks of 4 columns, one after the other:
//
//   byte 4r + j of block b   =   code of [row r][column 4b + j] + 128         r < 16; j < 4
//
// Columns that only pad (to a multiple of 16) hold the code of zero, 128.
constexpr int kScreenColumns = 4;
constexpr int kScreenMostColumns = 65536;  // 255 * 128 * 65536 < 2^31: byte products add up in int32

// A token as the screen takes it: x ~ step * codes, |code| <= 32639. Of a coarse one all codes are 256 * hi.
struct ScreenToken {
  const int16_t* codes;  // [columns]
  const int8_t* planes;  // the codes once more, as 256 * hi + lo: [columns / 4][4 hi, 4 lo]; coarse [columns / 4][4 hi]
  double offset;         // 128 * the sum of the codes: what storing code + 128 adds to every sum
  float step;
  float per_error, per_norm, slack;
  float* lower;  // [rows]
  float* upper;
  float* group_lower;  // [row_groups]: the largest of each row group
  float* group_upper;
};

// approximation[r] = (exact integer sum of codes) * (scale[r] * step)
// radius[r] = error[r] * per_error + norm[r] * per_norm + slack
// lower, upper = approximation -+ radius
struct ScreenTask {
  const uint8_t* codes;  // first row group
  int64_t row_groups;
  int64_t blocks;       // of a row group
  const float* scales;  // [rows]
  const float* errors;  // [rows]: length of (row - scale * codes), rounded up; infinite for a row that is not finite
  const float* norms;   // [rows]: length of scale * codes, rounded up
  const ScreenToken* tokens;
  int64_t count;  // of tokens
  bool coarse;    // all of them, or none
};

struct RopeTask {
  const float* x;  // [heads][head_dim] of one token
  float* y;
  int64_t heads, head_dim, rotary;
  const float* cos;  // [rotary / 2] of its position
  const float* sin;
  bool interleaved;
};

// A row that a product reads in training: act(gate) * x, or x; then an RMS norm, if there is one.
struct InputTask {
  const uint16_t* x;     // bfloat16, [columns]
  const uint16_t* gate;  // or null
  Activation activation;
  const float* norm;  // its weight, or null
  float eps;
  int64_t columns;  // a multiple of 16
  float* scratch;   // [2 * columns]
  int8_t* codes;    // what it is quantised to, or null, and then
  uint16_t* y;      // as bfloat16
};

struct InputBackwardTask {
  InputTask input;
  const int32_t* sums;  // the gradient of what was read: sums / multiplier; or null
  float multiplier;
  const uint16_t* grad;  // and then this
  float* norm_grad;      // [columns], added to
  uint16_t* x_grad;
  uint16_t* gate_grad;
};

// Beyond inference; rows of bfloat16. training-inl.h says what each is.
struct TrainingKernels {
  float (*input)(const InputTask&);  // returns the multiplier of the codes
  void (*input_backward)(const InputBackwardTask&);
  void (*output)(const int32_t* sums, const float* scales, float multiplier, int64_t n, uint16_t* y);
  void (*output_backward)(const uint16_t* grad, const float* scales, float multiplier, int64_t n, float* scaled,
                          uint16_t* divided);
  float (*quantize_gradient)(const float* x, int64_t n, int8_t* codes);  // returns the multiplier
  void (*rope)(const uint16_t* x, const float* cos, const float* sin, int64_t heads, int64_t head_dim, bool backward,
               uint16_t* y);
  void (*softmax)(uint16_t* scores, int64_t n, int64_t first, int64_t last, float scale, float* scratch);
  void (*softmax_backward)(const uint16_t* p, uint16_t* grad, int64_t n, int64_t first, int64_t last, float scale);
  float (*log_sum)(const uint16_t* logits, int64_t n);
  void (*logits_backward)(const uint16_t* logits, int64_t n, int64_t target, float log_sum, float factor,
                          uint16_t* grad);
};

struct Kernels {
  const char* name;

  // ternary
  void (*ternary)(const TernaryTask&);
  float (*quantize_row)(const float* x, int64_t k, int64_t padded, int8_t* codes);  // returns the multiplier
  void (*pack_panel)(const int8_t* codes, int64_t padded, int64_t tokens, int8_t* panel);
  // Sums of each `group` columns.
  void (*sum_panel)(const int8_t* panel, int64_t padded, int64_t group, int64_t tokens, int32_t* sums);
  // y[t][row] = float(acc) * (scale / multiplier[t]); scale_step is 0 for one scale, 1 for one a row.
  void (*scale_rows)(const int32_t* acc, int64_t row_groups, int64_t tokens, const float* scales, int64_t scale_step,
                     const float* multipliers, float* y, int64_t ldy, int64_t rows);
  // y[t][row] = sums / multiplier[t]
  void (*divide_rows)(const float* sums, int64_t row_groups, int64_t tokens, const float* multipliers, float* y,
                      int64_t ldy, int64_t rows);
  // From the codes of one token, padded to whole blocks.
  void (*make_tables)(const int8_t* codes, Packing packing, int64_t blocks, uint8_t* tables);
  // One row group; false: a code outside -1..1.
  bool (*pack_rows)(const int8_t* codes, Packing packing, int64_t k, int64_t rows, uint8_t* out);
  // Rows [first, first + rows) of a row group.
  void (*unpack_rows)(const uint8_t* packed, Packing packing, int64_t k, int64_t first, int64_t rows, int8_t* codes);

  // dense
  void (*dense)(const DenseTask&);
  void (*decode_row)(const uint8_t* row, DType dtype, int64_t columns, float* out);
  void (*encode_f16)(const float* x, int64_t count, uint16_t* out);

  // float
  void (*rms_norm)(const float* x, const float* weight, int64_t d, float eps, float* y);
  void (*rope)(const RopeTask&);
  void (*gate)(const float* g, const float* u, int64_t count, Activation activation, float* y);
  void (*add)(const float* x, const float* y, int64_t count, float* out);
  void (*scale)(const float* x, float c, int64_t count, float* out);
  void (*hadamard)(const float* x, const float* signs, int64_t d, int64_t block, bool inverse, float* y);

  // attention
  void (*store_kv)(const float* k, const float* v, int64_t kv_heads, int64_t head_dim, KVType type, uint8_t* keys,
                   uint8_t* values, int64_t slot);
  void (*attend)(const AttentionTask&);
  // Folds the part of a later segment into the running one; both are (max, sum, out) of `rows`.
  void (*attend_merge)(float* max, float* sum, float* out, const float* part_max, const float* part_sum,
                       const float* part_out, int64_t rows, int64_t head_dim);
  void (*attend_finish)(float* out, const float* sum, int64_t rows, int64_t head_dim);

  // screen
  // Codes of one row: w has `columns` floats, a multiple of 16; `to` is the row's first byte in its row group.
  void (*screen_row)(const float* w, int64_t columns, uint8_t* to, float* scale, float* error, float* norm);
  void (*screen)(const ScreenTask&);

  // Reads every cache line once; the sum keeps the compiler from leaving it out.
  uint64_t (*read)(const uint8_t* p, int64_t bytes);

  bool coarse_screen;  // whether a coarse token costs less: else there need be none

  TrainingKernels training;

  // tiles, where a CPU has them, and from how many tokens on they are faster than `ternary`
  void (*ternary_tiles)(const TileTask&) = nullptr;
  int64_t tile_tokens = 0;
};

}  // namespace bitnet
