// A tile of ternary products whose row groups are worked on one after the other. The including file supplies
// ternary_one for a single token and ternary_few for up to four of a panel; one that takes several tokens in its own
// way defines BITNET_TERNARY_SEVERAL and ternary_several.

#ifndef BITNET_TERNARY_SEVERAL
template <Packing packing, int M>
BITNET_INLINE void ternary_several(const uint8_t* w, int64_t blocks, const int8_t* panel, I32x16 (&acc)[M]) {
  if constexpr (M <= 4) {
    ternary_few<packing, M>(w, blocks, panel, M, acc);
  } else {
    ternary_few<packing, 4>(w, blocks, panel, M, acc);
    ternary_few<packing, M - 4>(w, blocks, panel + 16, M, acc + 4);
  }
}
#endif

template <Packing packing, int M, int G>
BITNET_INLINE void ternary_tile(const uint8_t* w, int64_t stride, int64_t blocks, const int8_t* panel,
                                I32x16 (&acc)[G][M]) {
  for (int g = 0; g < G; ++g) {
    if constexpr (M == 1) {
      ternary_one<packing>(w + g * stride, blocks, panel, acc[g][0]);
    } else {
      ternary_several<packing, M>(w + g * stride, blocks, panel, acc[g]);
    }
  }
}
