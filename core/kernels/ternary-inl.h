// Ternary products: the parts that do not depend on the instruction set. Each target supplies
//
//   template <Packing packing, int M, int G> void ternary_tile(const uint8_t* w, int64_t stride, int64_t blocks,
//   const int8_t* panel, I32x16 (&acc)[G][M])
//
// which adds up stored code * activation over `blocks` blocks of G row groups (`stride` bytes apart) and M tokens.

template <Packing packing, int M, int G>
BITNET_INLINE void ternary_groups(const TernaryTask& task, int64_t group) {
  const int64_t stride = task.blocks * kBlockBytes;
  const uint8_t* w = task.weights + group * stride;
  if (packing == Packing::T5 || !task.group_scales) {
    I32x16 acc[G][M];
    ternary_tile<packing, M, G>(w, stride, task.blocks, task.panel, acc);
    int32_t* out = (int32_t*)task.out + group * M * kGroupRows;
    for (int g = 0; g < G; ++g)
      for (int m = 0; m < M; ++m) store(out + (g * M + m) * kGroupRows, acc[g][m] - fill(task.sums[m]));
    return;
  }
  const int64_t scale_groups = (task.blocks + task.group_blocks - 1) / task.group_blocks;
  float* out = (float*)task.out + group * M * kGroupRows;
  F32x16 total[G][M];
  for (int g = 0; g < G; ++g)
    for (int m = 0; m < M; ++m) total[g][m] = fill(0.0f);
  for (int64_t s = 0; s < scale_groups; ++s) {
    const int64_t first = s * task.group_blocks;
    const int64_t count = task.blocks - first < task.group_blocks ? task.blocks - first : task.group_blocks;
    I32x16 acc[G][M];
    ternary_tile<packing, M, G>(w + first * kBlockBytes, stride, count, task.panel + first * block_columns(packing) * M,
                                acc);
    for (int g = 0; g < G; ++g) {
      const F32x16 scales = load(task.group_scales + ((group + g) * scale_groups + s) * kGroupRows);
      for (int m = 0; m < M; ++m) total[g][m] = total[g][m] + to_float(acc[g][m] - fill(task.sums[s * M + m])) * scales;
    }
  }
  for (int g = 0; g < G; ++g)
    for (int m = 0; m < M; ++m) store(out + (g * M + m) * kGroupRows, total[g][m]);
}

template <Packing packing, int M>
void ternary_panel(const TernaryTask& task) {
  int64_t group = 0;
  if (M > 1)  // two row groups share each broadcast; a single token streams the weights in order instead
    for (; group + 2 <= task.row_groups; group += 2) ternary_groups<packing, M, 2>(task, group);
  for (; group < task.row_groups; ++group) ternary_groups<packing, M, 1>(task, group);
}

template <Packing packing>
void ternary_panels(const TernaryTask& task) {
  switch (task.tokens) {
    case 1:
      return ternary_panel<packing, 1>(task);
    case 2:
      return ternary_panel<packing, 2>(task);
    case 3:
      return ternary_panel<packing, 3>(task);
    case 4:
      return ternary_panel<packing, 4>(task);
    case 5:
      return ternary_panel<packing, 5>(task);
    case 6:
      return ternary_panel<packing, 6>(task);
    case 7:
      return ternary_panel<packing, 7>(task);
    default:
      return ternary_panel<packing, 8>(task);
  }
}

void ternary(const TernaryTask& task) {
  switch (task.packing) {
    case Packing::T2:
      return ternary_panels<Packing::T2>(task);
    case Packing::T5:
      return ternary_panels<Packing::T5>(task);
    case Packing::TL1:
      return lookup_products<Packing::TL1>(task);
    case Packing::TL2:
      return lookup_products<Packing::TL2>(task);
  }
}

void pack_panel(const int8_t* codes, int64_t padded, int64_t tokens, int8_t* panel) {
  typedef int32_t Words __attribute__((vector_size(16)));
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4)  // a word is four columns; four words of four tokens change places
    for (int64_t i = 0; i < padded; i += 16) {
      Words w[4];
      for (int j = 0; j < 4; ++j) __builtin_memcpy(&w[j], codes + (t + j) * padded + i, 16);
      const Words ab = __builtin_shuffle(w[0], w[1], Words{0, 4, 1, 5}),
                  AB = __builtin_shuffle(w[0], w[1], Words{2, 6, 3, 7}),
                  cd = __builtin_shuffle(w[2], w[3], Words{0, 4, 1, 5}),
                  CD = __builtin_shuffle(w[2], w[3], Words{2, 6, 3, 7});
      const Words turned[4] = {
          __builtin_shuffle(ab, cd, Words{0, 1, 4, 5}), __builtin_shuffle(ab, cd, Words{2, 3, 6, 7}),
          __builtin_shuffle(AB, CD, Words{0, 1, 4, 5}), __builtin_shuffle(AB, CD, Words{2, 3, 6, 7})};
      for (int j = 0; j < 4; ++j) __builtin_memcpy(panel + ((i / 4 + j) * tokens + t) * 4, &turned[j], 16);
    }
  for (; t < tokens; ++t)
    for (int64_t i = 0; i < padded / 4; ++i)
      __builtin_memcpy(panel + (i * tokens + t) * 4, codes + t * padded + i * 4, 4);
}

// The four bytes of each word, signed.
BITNET_INLINE I32x16 sum_bytes(I32x16 words) {
  return ((words << 24) >> 24) + ((words << 16) >> 24) + ((words << 8) >> 24) + (words >> 24);
}

void sum_panel(const int8_t* panel, int64_t padded, int64_t group, int64_t tokens, int32_t* sums) {
  for (int64_t first = 0; first < padded; first += group, sums += tokens) {
    const int64_t last = first + group < padded ? first + group : padded;
    int64_t word = first / 4 * tokens;
    const int64_t end = last / 4 * tokens;
    for (int64_t t = 0; t < tokens; ++t) sums[t] = 0;
    if (kLanes % tokens == 0) {
      I32x16 total = fill(0);
      for (; word + kLanes <= end; word += kLanes) total = total + sum_bytes(load((const int32_t*)(panel + word * 4)));
      int32_t lanes[kLanes];
      store(lanes, total);
      for (int64_t i = 0; i < kLanes; ++i) sums[i % tokens] += lanes[i];
    }
    for (; word < end; ++word) {
      const int8_t* p = panel + word * 4;
      sums[word % tokens] += p[0] + p[1] + p[2] + p[3];
    }
  }
}

void scale_rows(const int32_t* acc, int64_t row_groups, int64_t tokens, const float* scales, int64_t scale_step,
                const float* multipliers, float* y, int64_t ldy, int64_t rows) {
  for (int64_t t = 0; t < tokens; ++t) {
    const F32x16 multiplier = fill(multipliers[t]), same = fill(scales[0] / multipliers[t]);
    for (int64_t g = 0; g < row_groups; ++g) {
      const int64_t first = g * kGroupRows, n = rows - first < kGroupRows ? rows - first : kGroupRows;
      const F32x16 factor = scale_step ? load(scales + first) / multiplier : same;
      const F32x16 v = to_float(load(acc + (g * tokens + t) * kGroupRows)) * factor;
      if (n == kGroupRows) {
        store(y + t * ldy + first, v);
      } else {
        store_part(y + t * ldy + first, v, n);
      }
    }
  }
}

void divide_rows(const float* sums, int64_t row_groups, int64_t tokens, const float* multipliers, float* y, int64_t ldy,
                 int64_t rows) {
  for (int64_t g = 0; g < row_groups; ++g) {
    const int64_t first = g * kGroupRows, n = rows - first < kGroupRows ? rows - first : kGroupRows;
    for (int64_t t = 0; t < tokens; ++t) {
      const F32x16 v = load(sums + (g * tokens + t) * kGroupRows) / fill(multipliers[t]);
      if (n == kGroupRows) {
        store(y + t * ldy + first, v);
      } else {
        store_part(y + t * ldy + first, v, n);
      }
    }
  }
}

// Codes (rows, k) of -1, 0, 1 to one row group of pairs of bits; four columns of a field are the bytes of a word.
BITNET_INLINE bool pack_pairs(const int8_t* codes, int64_t k, int64_t rows, uint8_t* out) {
  constexpr int kColumns = 256;  // at a time
  uint8_t bad = 0;
  for (int64_t r = 0; r < kGroupRows; ++r) {
    for (int64_t first = 0; first < k; first += kColumns) {
      const int64_t count = r >= rows ? 0 : k - first < kColumns ? k - first : kColumns;
      uint8_t stored[kColumns];
      if (count < kColumns) __builtin_memset(stored, 1, kColumns);
      for (int64_t i = 0; i < count; ++i) stored[i] = (uint8_t)(codes[r * k + first + i] + 1);
      for (int64_t i = 0; i < count; ++i) bad |= stored[i] > 2;
      for (int64_t i = 0; i < kColumns && first + i < k; i += 16) {
        uint32_t t[4];
        __builtin_memcpy(t, stored + i, 16);
        const uint32_t word = t[0] | t[1] << 2 | t[2] << 4 | t[3] << 6;
        __builtin_memcpy(out + (first + i) / 16 * kBlockBytes + 4 * r, &word, 4);
      }
    }
  }
  return !bad;
}

BITNET_INLINE bool pack_fives(const int8_t* codes, int64_t k, int64_t rows, uint8_t* out) {
  constexpr int columns = block_columns(Packing::T5);
  uint8_t bad = 0;
  for (int64_t first = 0; first < k; first += columns, out += kBlockBytes) {
    const int64_t count = k - first < columns ? k - first : columns;
    for (int64_t r = 0; r < kGroupRows; ++r) {
      uint8_t stored[columns];  // column 4f + j at the same place
      for (int i = 0; i < columns; ++i) stored[i] = 1;
      if (r < rows) {
        const int8_t* row = codes + r * k + first;
        for (int64_t i = 0; i < count; ++i) stored[i] = (uint8_t)(row[i] + 1);
        for (int i = 0; i < columns; ++i) bad |= stored[i] > 2;
      }
      for (int j = 0; j < 4; ++j) {
        const uint8_t* t = stored + j;
        const int index = t[0] + 3 * t[4] + 9 * t[8] + 27 * t[12] + 81 * t[16];
        out[4 * r + j] = kFiveTrits.byte_of[index < 243 ? index : 0];  // larger only where a code is bad
      }
    }
  }
  return !bad;
}

bool pack_rows(const int8_t* codes, Packing packing, int64_t k, int64_t rows, uint8_t* out) {
  switch (packing) {
    case Packing::T2:
      return pack_pairs(codes, k, rows, out);
    case Packing::T5:
      return pack_fives(codes, k, rows, out);
    case Packing::TL1:
      return pack_tuples<Packing::TL1>(codes, k, rows, out);
    case Packing::TL2:
      return pack_tuples<Packing::TL2>(codes, k, rows, out);
  }
  return false;
}

template <Packing packing>
BITNET_INLINE void unpack_row(const uint8_t* row, int64_t k, int8_t* codes) {
  for (int64_t first = 0; first < k; first += block_columns(packing), row += kBlockBytes)
    for (int f = 0; f < fields(packing); ++f)
      for (int64_t j = 0, i = first + 4 * f; j < 4 && i < k; ++j, ++i)
        codes[i] = (int8_t)(code_of(packing, row[j], f) - 1);
}

template <Packing packing>
BITNET_INLINE void unpack(const uint8_t* packed, int64_t k, int64_t first, int64_t rows, int8_t* codes) {
  for (int64_t r = 0; r < rows; ++r) {
    if constexpr (looks_up(packing)) {
      unpack_tuples<packing>(packed + first + r, k, codes + r * k);
    } else {
      unpack_row<packing>(packed + 4 * (first + r), k, codes + r * k);
    }
  }
}

void unpack_rows(const uint8_t* packed, Packing packing, int64_t k, int64_t first, int64_t rows, int8_t* codes) {
  switch (packing) {
    case Packing::T2:
      return unpack<Packing::T2>(packed, k, first, rows, codes);
    case Packing::T5:
      return unpack<Packing::T5>(packed, k, first, rows, codes);
    case Packing::TL1:
      return unpack<Packing::TL1>(packed, k, first, rows, codes);
    case Packing::TL2:
      return unpack<Packing::TL2>(packed, k, first, rows, codes);
  }
}
