// Cells by codes in products of bytes. Both planes of a code are signed, as the bytes are once 128 is taken off: 16
// codes are 16 high bytes, then 16 low ones.
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

// A pair of products is at most 2 * 127 * 128 = 32512 in magnitude.
BITNET_INLINE int32x4_t add_fours(int32x4_t sum, int8x16_t v, int8x16_t four) {
  return vpadalq_s16(sum, vpaddq_s16(vmull_s8(vget_low_s8(v), vget_low_s8(four)), vmull_high_s8(v, four)));
}

template <int R, int B>
BITNET_INLINE void add_cells(CellSum (&sums)[R][B], const uint8_t* const (&cells)[B], const uint8_t* codes) {
  for (int g = 0; g < 4; ++g)
    for (int b = 0; b < B; ++b)
      for (int i = 0; i < 4; ++i) {
        const int8x16_t v = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(cells[b] + 64 * g + 16 * i), vdupq_n_u8(0x80)));
        for (int r = 0; r < R; ++r) {
          const int8_t* four = (const int8_t*)codes + r * kCodedRowBytes + 4 * g;
          sums[r][b].hi[i] = add_fours(sums[r][b].hi[i], v, broadcast(four));
          sums[r][b].lo[i] = add_fours(sums[r][b].lo[i], v, broadcast(four + 16));
        }
      }
}

BITNET_INLINE I32x16 lanes_of(const CellSum& sum) {
  int32x4_t lanes[4];
  for (int i = 0; i < 4; ++i) lanes[i] = vaddq_s32(vshlq_n_s32(sum.hi[i], 8), sum.lo[i]);
  return sixteen(lanes);
}
