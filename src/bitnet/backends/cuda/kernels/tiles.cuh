// Ternary weights as they lie, and the matrix unit over them.
//
// Weights lie in tiles of 64 rows and 64 columns, tile after tile along a row. A tile is 16 lines of 64 bytes: byte k
// of line r has column k of the rows r, r + 16, r + 32 and r + 48 in its bit pairs, lowest first, as w + 1 in {0, 1,
// 2}. Masked with 0x03 << 2f it is code * 4^f, an operand as it stands, and sums of it are 4^f times too large:
// exactly. With w + 1 for w the sum of the token's codes is too much. In 32 bits this holds up to 2^17 columns.
#pragma once
#include "common.cuh"

// Of a lane's sums with eights of tokens, `part` of bit pair `field` and the i-th eight: its row and its token.
__device__ inline int row_of(int field, int part) { return 16 * field + lane_index() / 4 + part / 2 * 8; }
__device__ inline int token_of(int i, int part) { return 8 * i + lane_index() % 4 * 2 + part % 2; }

template <int kEights, class Act>
__device__ inline void for_each_sum(Act act) {
#pragma unroll
  for (int i = 0; i < kEights; ++i)
#pragma unroll
    for (int field = 0; field < 4; ++field)
#pragma unroll
      for (int part = 0; part < 4; ++part) act(i, field, part);
}

template <int kEights>
struct Sums {
  int at[kEights][4][4];

  __device__ void clear() {
    for_each_sum<kEights>([&](int i, int field, int part) { at[i][field][part] = 0; });
  }

  // low, high: the lane's 16 columns of the lines l / 4 and l / 4 + 8; x: of token l / 4 of each eight.
  __device__ void add(const Words& low, const Words& high, const Words (&x)[kEights]) {
#pragma unroll
    for (int field = 0; field < 4; ++field) {
      unsigned mask = 0x03030303u << 2 * field;
#pragma unroll
      for (int half = 0; half < 4; half += 2)
#pragma unroll
        for (int i = 0; i < kEights; ++i)
          mma<unsigned char>(at[i][field], low.at[half] & mask, high.at[half] & mask, low.at[half + 1] & mask,
                             high.at[half + 1] & mask, x[i].at[half], x[i].at[half + 1]);
    }
  }
};
