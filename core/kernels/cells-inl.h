// Cells of bytes by rows of 16-bit codes: both products of attention over int8 keys and values.
//
// A target with products of bytes defines BITNET_CELLS and its own
//
//   kCellTile                        sums that its registers hold, each of 16 lanes
//   CellSum                          16 running sums
//   encode_codes(to, rounded)        16 codes, |code| <= kMostCode, to 32 bytes, from the bits of code + kRounder
//   new_sum(total)                   the beginning of sums over codes whose own sum is `total`
//   add_cells(sums, cells, codes)    sums[r][b] += (bytes of cell b - 128) x codes; a row of these is kCodedRowBytes
//   lanes_of(sum)                    the result, exactly
//
// These serve the others.

constexpr int kMostCode = 127 * 256 + 127;  // 256 * hi + lo with a byte each

#ifndef BITNET_CELLS
constexpr int kCellTile = 1;

struct CellSum {
  uint32_t sums[4][16];  // of four lanes each, by the factor's place in its four
  int32_t offset;
};

BITNET_INLINE void encode_codes(uint8_t* to, I32x16 rounded) {
  int32_t lanes[kLanes];
  store(lanes, rounded);
  int16_t narrow[kLanes];
  for (int i = 0; i < kLanes; ++i) narrow[i] = (int16_t)lanes[i];
  __builtin_memcpy(to, narrow, sizeof narrow);
}

BITNET_INLINE CellSum new_sum(int32_t total) { return {{}, -128 * total}; }

// Written for the compiler to vectorise.
template <int R, int B>
BITNET_INLINE void add_cells(CellSum (&sums)[R][B], const uint8_t* const (&cells)[B], const uint8_t* codes) {
  for (int r = 0; r < R; ++r)
    for (int g = 0; g < 4; ++g) {
      int16_t factors[16];  // four, once for each of four lanes
      for (int l = 0; l < 4; ++l) __builtin_memcpy(factors + 4 * l, codes + r * kCodedRowBytes + 8 * g, 8);
      for (int b = 0; b < B; ++b)
        for (int i = 0; i < 4; ++i)
          for (int j = 0; j < 16; ++j)
            sums[r][b].sums[i][j] += (uint32_t)((int16_t)cells[b][64 * g + 16 * i + j] * factors[j]);
    }
}

BITNET_INLINE I32x16 lanes_of(const CellSum& sum) {
  int32_t lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const uint32_t* four = sum.sums[l / 4] + l % 4 * 4;
    lanes[l] = (int32_t)(four[0] + four[1] + four[2] + four[3] + (uint32_t)sum.offset);
  }
  return load(lanes);
}
#endif
