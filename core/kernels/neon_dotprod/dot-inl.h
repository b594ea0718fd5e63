// Sums of four products by sdot, for every target that has it.

// One token, whose sixteen activations of a block are one register, one lane a field. Codes of fields 0 to 2 are used
// where they lie, at scale 1, 4 and 16; field 3 would be negative there and is moved to scale 1. A sum grows by at most
// 16 * 2 * 128 * 4 = 2^14 a block, so it is safe below 2^17 blocks.
template <Packing packing>
BITNET_INLINE void ternary_one(const uint8_t* w, int64_t blocks, const int8_t* q, I32x16& acc) {
  const uint8x16_t mask0 = vdupq_n_u8(0x03), mask1 = vdupq_n_u8(0x0c), mask2 = vdupq_n_u8(0x30);
  int32x4_t sum1[4], sum4[4], sum16[4];
  for (int i = 0; i < 4; ++i) sum1[i] = sum4[i] = sum16[i] = vdupq_n_s32(0);
  for (int64_t b = 0; b < blocks; ++b) {
    prefetch(w + b * kBlockBytes + kPrefetchBytes);
    const int8_t* p = q + block_columns(packing) * b;
    const int8x16_t x = vld1q_s8(p);
    for (int i = 0; i < 4; ++i) {
      const Quarter quarter = load_quarter<packing>(w + b * kBlockBytes + 16 * i);
      const uint8x16_t v = quarter.four;
      if constexpr (packing == Packing::T5)
        sum1[i] = vdotq_s32(sum1[i], vreinterpretq_s8_u8(quarter.fifth), broadcast(p + 16));
      sum1[i] = vdotq_laneq_s32(sum1[i], vreinterpretq_s8_u8(vandq_u8(v, mask0)), x, 0);
      sum4[i] = vdotq_laneq_s32(sum4[i], vreinterpretq_s8_u8(vandq_u8(v, mask1)), x, 1);
      sum16[i] = vdotq_laneq_s32(sum16[i], vreinterpretq_s8_u8(vandq_u8(v, mask2)), x, 2);
      sum1[i] = vdotq_laneq_s32(sum1[i], vreinterpretq_s8_u8(vshrq_n_u8(v, 6)), x, 3);
    }
  }
  for (int i = 0; i < 4; ++i)
    sum1[i] = vaddq_s32(sum1[i], vaddq_s32(vshrq_n_s32(sum4[i], 2), vshrq_n_s32(sum16[i], 4)));
  acc = sixteen(sum1);
}

template <int M, int f>
BITNET_INLINE void add_field(const Quarter (&v)[4], const int8_t* q, int32x4_t (&sum)[M][4]) {
  int8x16_t code[4];
  for (int i = 0; i < 4; ++i) code[i] = vreinterpretq_s8_u8(field<f>(v[i]));
  if constexpr (M == 4) {  // four tokens are one register
    const int8x16_t x = vld1q_s8(q);
    for (int i = 0; i < 4; ++i) {
      sum[0][i] = vdotq_laneq_s32(sum[0][i], code[i], x, 0);
      sum[1][i] = vdotq_laneq_s32(sum[1][i], code[i], x, 1);
      sum[2][i] = vdotq_laneq_s32(sum[2][i], code[i], x, 2);
      sum[3][i] = vdotq_laneq_s32(sum[3][i], code[i], x, 3);
    }
  } else {
    for (int m = 0; m < M; ++m) {
      const int8x16_t x = broadcast(q + 4 * m);
      for (int i = 0; i < 4; ++i) sum[m][i] = vdotq_s32(sum[m][i], code[i], x);
    }
  }
}

// Up to four tokens of a panel of `tokens`: each field is moved to scale 1 once and serves all of them.
template <Packing packing, int M>
BITNET_INLINE void ternary_few(const uint8_t* w, int64_t blocks, const int8_t* panel, int64_t tokens, I32x16* acc) {
  int32x4_t sum[M][4];
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < 4; ++i) sum[m][i] = vdupq_n_s32(0);
  for (int64_t b = 0; b < blocks; ++b) {
    prefetch(w + b * kBlockBytes + kPrefetchBytes);
    Quarter v[4];
    for (int i = 0; i < 4; ++i) v[i] = load_quarter<packing>(w + b * kBlockBytes + 16 * i);
    const int8_t* q = panel + block_columns(packing) * b * tokens;
    add_field<M, 0>(v, q, sum);
    add_field<M, 1>(v, q + 4 * tokens, sum);
    add_field<M, 2>(v, q + 8 * tokens, sum);
    add_field<M, 3>(v, q + 12 * tokens, sum);
    if constexpr (packing == Packing::T5) add_field<M, 4>(v, q + 16 * tokens, sum);
  }
  for (int m = 0; m < M; ++m) acc[m] = sixteen(sum[m]);
}
