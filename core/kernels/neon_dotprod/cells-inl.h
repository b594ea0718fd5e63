// Cells by codes in sums of four products. Both planes of a code are signed, as the bytes are once 128 is taken off: 16
// codes are 16 high bytes, then 16 low ones, a register each.
#define BITNET_CELLS
constexpr int kCellTile = 2;

struct CellSum {
  int32x4_t hi[4], lo[4];  // of four lanes each
};

BITNET_INLINE void encode_codes(uint8_t* to, I32x16 rounded) {
  store_low_bytes((int8_t*)to, shift_right(rounded + fill(128), 8));
  store_low_bytes((int8_t*)to + 16, rounded);
}

BITNET_INLINE CellSum new_sum(int32_t) {
  CellSum sum;
  for (int i = 0; i < 4; ++i) sum.hi[i] = sum.lo[i] = vdupq_n_s32(0);
  return sum;
}

template <int g, int R, int B>
BITNET_INLINE void add_fours(CellSum (&sums)[R][B], const uint8_t* const (&cells)[B], const int8x16_t (&hi)[R],
                             const int8x16_t (&lo)[R]) {
  for (int b = 0; b < B; ++b)
    for (int i = 0; i < 4; ++i) {
      const int8x16_t v = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(cells[b] + 64 * g + 16 * i), vdupq_n_u8(0x80)));
      for (int r = 0; r < R; ++r) {
        sums[r][b].hi[i] = vdotq_laneq_s32(sums[r][b].hi[i], v, hi[r], g);
        sums[r][b].lo[i] = vdotq_laneq_s32(sums[r][b].lo[i], v, lo[r], g);
      }
    }
}

template <int R, int B>
BITNET_INLINE void add_cells(CellSum (&sums)[R][B], const uint8_t* const (&cells)[B], const uint8_t* codes) {
  int8x16_t hi[R], lo[R];
  for (int r = 0; r < R; ++r) {
    hi[r] = vld1q_s8((const int8_t*)codes + r * kCodedRowBytes);
    lo[r] = vld1q_s8((const int8_t*)codes + r * kCodedRowBytes + 16);
  }
  add_fours<0>(sums, cells, hi, lo);
  add_fours<1>(sums, cells, hi, lo);
  add_fours<2>(sums, cells, hi, lo);
  add_fours<3>(sums, cells, hi, lo);
}

BITNET_INLINE I32x16 lanes_of(const CellSum& sum) {
  int32x4_t lanes[4];
  for (int i = 0; i < 4; ++i) lanes[i] = vaddq_s32(vshlq_n_s32(sum.hi[i], 8), sum.lo[i]);
  return sixteen(lanes);
}
