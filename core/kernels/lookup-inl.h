// Ternary products by lookups (TL1, TL2): a table holds what each combination of a tuple's weights makes of its
// activations, the packed weights are indices into it, and an index serves 16 rows at once.
//
// An entry v, |v| <= 3 * 128, is two bytes:
//
//   v = lo + 31 hi + 16        -16 <= lo <= 14; -13 <= hi <= 12
//
// Eight of either fit into a running byte (8 * -16 = -128; 8 * 14 = 112), and the complements of both stand for -v.
//
// A target with byte shuffles defines BITNET_LOOKUP_LANES and its own lookup_lanes; this one serves the others.

#ifndef BITNET_LOOKUP_LANES
// In each lane of 16 bytes: table[index].
BITNET_INLINE NativeB lookup_lanes(NativeB table, NativeB index) {
  uint8_t from[BITNET_VECTOR_BYTES], at[BITNET_VECTOR_BYTES], found[BITNET_VECTOR_BYTES];
  __builtin_memcpy(from, &table, sizeof table);
  __builtin_memcpy(at, &index, sizeof index);
  for (int i = 0; i < BITNET_VECTOR_BYTES; ++i) found[i] = from[(i & ~15) + at[i]];
  __builtin_memcpy(&table, found, sizeof table);
  return table;
}
#endif

typedef int8_t SignedB __attribute__((vector_size(BITNET_VECTOR_BYTES)));
typedef uint16_t NativeW __attribute__((vector_size(BITNET_VECTOR_BYTES)));
typedef uint16_t Words __attribute__((vector_size(16)));
typedef int16_t Entries __attribute__((vector_size(32)));
typedef int8_t EntryBytes __attribute__((vector_size(16)));

// Of tuple index e: the weight in place c; of those that do not occur, a small number.
template <Packing packing>
BITNET_INLINE constexpr int weight_of(int e, int c) {
  if (packing == Packing::TL1) return c == 0 ? e / 3 % 3 - 1 : e % 3 - 1;
  return (e + 13) / (c == 0 ? 9 : c == 1 ? 3 : 1) % 3 - 1;
}

template <Packing packing>
BITNET_INLINE void tables_of(const int8_t* codes, int64_t blocks, uint8_t* tables) {
  Entries weights[3];
  for (int c = 0; c < tuple(packing); ++c)
    for (int e = 0; e < 16; ++e) weights[c][e] = (int16_t)weight_of<packing>(e, c);
  for (int64_t piece = 0; piece < blocks * block_pieces(packing); ++piece, tables += kPieceTableBytes)
    for (int j = 0; j < kPieceTuples; ++j, codes += tuple(packing)) {
      Entries v = weights[0] * (int16_t)codes[0] + weights[1] * (int16_t)codes[1];
      if constexpr (tuple(packing) == 3) v = v + weights[2] * (int16_t)codes[2];
      const Entries hi = ((v + 404) * 33 >> 10) - 13;  // the floor of v / 31, for v + 403 from 0 to 1022
      const EntryBytes parts[2] = {__builtin_convertvector(v - 31 * hi - 16, EntryBytes),
                                   __builtin_convertvector(hi, EntryBytes)};
      uint8_t* to = tables + j % 2 * 128 + j / 2 * 16;
      __builtin_memcpy(to, &parts[0], 16);
      __builtin_memcpy(to + 64, &parts[1], 16);
    }
}

void make_tables(const int8_t* codes, Packing packing, int64_t blocks, uint8_t* tables) {
  if (packing == Packing::TL1) {
    tables_of<Packing::TL1>(codes, blocks, tables);
  } else {
    tables_of<Packing::TL2>(codes, blocks, tables);
  }
}

BITNET_INLINE NativeB load_bytes(const uint8_t* p) {
  NativeB v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// Sums of bytes in 16 bits: of all words, modulo 2^16, and of their upper bytes.
struct WordSums {
  NativeW all, upper;

  BITNET_INLINE void add(NativeB bytes) {
    all += (NativeW)bytes;
    upper += (NativeW)bytes >> 8;
  }

  // Of each row: the lanes of 16 rows added up.
  BITNET_INLINE void rows(uint16_t* out) const {
    constexpr int lanes = BITNET_VECTOR_BYTES / 16;
    const NativeW lower = all - (upper << 8);
    Words even[lanes], odd[lanes];
    __builtin_memcpy(even, &lower, sizeof lower);
    __builtin_memcpy(odd, &upper, sizeof upper);
    for (int i = 1; i < lanes; ++i) even[0] += even[i], odd[0] += odd[i];
    const Words first = __builtin_shufflevector(even[0], odd[0], 0, 8, 1, 9, 2, 10, 3, 11),
                second = __builtin_shufflevector(even[0], odd[0], 4, 12, 5, 13, 6, 14, 7, 15);
    __builtin_memcpy(out, &first, 16);
    __builtin_memcpy(out + 8, &second, 16);
  }
};

// Pieces of a run: their tables (16 KB) stay in the first cache while the row groups pass. Every four of them add at
// most 248 to each 16-bit sum of 16 rows, four times.
constexpr int kRunPieces = 64;

// The same pieces of row groups to come are fetched into the second cache: with those in flight towards the first one
// alone, which are few, memory gives half as much.
constexpr int kRunsAhead = 3;

// rows[g] += the sums of `pieces` pieces, whole blocks, of G row groups.
template <Packing packing, int G>
BITNET_INLINE void lookup_run(const uint8_t* w, int64_t stride, int64_t pieces, const uint8_t* tables,
                              int32_t* (&rows)[G]) {
  constexpr int kBias = 128;  // of a running byte, which is unsigned
  WordSums lo_sums[G] = {}, hi_sums[G] = {};
  int flushes = 0;
  for (int64_t first = 0; first < pieces; first += 4, w += sign_bytes(packing) + 4 * kPieceBytes, ++flushes) {
    const int64_t count = packing == Packing::TL2 || pieces - first > 4 ? 4 : pieces - first;
    for (int g = 0; g < G; ++g)
      for (int i = 0; i < sign_bytes(packing) + 4 * kPieceBytes; i += 64)
        __builtin_prefetch(w + (kRunsAhead * G + g) * stride + i, 0, 2);
    for (int part = 0; part < kPieceBytes; part += BITNET_VECTOR_BYTES) {
      NativeB lo[G], hi[G], sign[G];
      for (int g = 0; g < G; ++g) {
        lo[g] = hi[g] = NativeB{} + kBias;
        if (packing == Packing::TL2) sign[g] = load_bytes(w + g * stride + part);
      }
      for (int64_t i = 0; i < count; ++i) {
        const uint8_t* table = tables + (first + i) * kPieceTableBytes + part;
        NativeB indices[G];
        for (int g = 0; g < G; ++g)
          indices[g] = load_bytes(w + g * stride + sign_bytes(packing) + i * kPieceBytes + part);
        for (int nibble = 0; nibble < 2; ++nibble, table += 128) {
          const NativeB lo_table = load_bytes(table), hi_table = load_bytes(table + 64);
          for (int g = 0; g < G; ++g) {
            const NativeB index = (nibble ? (NativeB)((NativeW)indices[g] >> 4) : indices[g]) & 15;
            NativeB lo_found = lookup_lanes(lo_table, index), hi_found = lookup_lanes(hi_table, index);
            if (packing == Packing::TL2) {
              const NativeB negative = (NativeB)((SignedB)sign[g] < 0);
              lo_found ^= negative, hi_found ^= negative;
              sign[g] += sign[g];
            }
            lo[g] += lo_found, hi[g] += hi_found;
          }
        }
      }
      for (int g = 0; g < G; ++g) lo_sums[g].add(lo[g]), hi_sums[g].add(hi[g]);
    }
  }
  const int32_t constant = (int32_t)(16 * kPieceTuples * pieces) - flushes * 4 * kBias * (1 + 31);
  for (int g = 0; g < G; ++g) {
    uint16_t lo[kGroupRows], hi[kGroupRows];
    lo_sums[g].rows(lo), hi_sums[g].rows(hi);
    for (int r = 0; r < kGroupRows; ++r) rows[g][r] += lo[r] + 31 * hi[r] + constant;
  }
}

template <Packing packing, int G>
BITNET_INLINE void lookup_blocks(const uint8_t* w, int64_t stride, int64_t blocks, const uint8_t* tables,
                                 int32_t* (&rows)[G]) {
  constexpr int64_t most = kRunPieces / block_pieces(packing);
  for (int64_t first = 0; first < blocks; first += most)
    lookup_run<packing, G>(w + first * block_bytes(packing), stride,
                           (blocks - first < most ? blocks - first : most) * block_pieces(packing),
                           tables + first * table_bytes(packing), rows);
}

// Blocks [first, last), whole groups of scales where there are any, of G row groups by one token: added to the task's
// sums.
template <Packing packing, int G>
BITNET_INLINE void lookup_tile(const TernaryTask& task, int64_t group, int64_t m, int64_t first, int64_t last) {
  const int64_t stride = task.blocks * block_bytes(packing);
  const uint8_t* w = task.weights + group * stride;
  const uint8_t* tables = task.tables + m * task.blocks * table_bytes(packing);
  int32_t* rows[G];
  for (int g = 0; g < G; ++g) rows[g] = (int32_t*)task.out + ((group + g) * task.tokens + m) * kGroupRows;
  if (first == 0)
    for (int g = 0; g < G; ++g) __builtin_memset(rows[g], 0, kGroupRows * 4);  // of floats as well
  if (!task.group_scales)
    return lookup_blocks<packing, G>(w + first * block_bytes(packing), stride, last - first,
                                     tables + first * table_bytes(packing), rows);
  const int64_t scale_groups = (task.blocks + task.group_blocks - 1) / task.group_blocks;
  for (int64_t s = first / task.group_blocks; s * task.group_blocks < last; ++s) {
    const int64_t b = s * task.group_blocks, count = last - b < task.group_blocks ? last - b : task.group_blocks;
    int32_t sums[G][kGroupRows] = {};
    int32_t* part[G];
    for (int g = 0; g < G; ++g) part[g] = sums[g];
    lookup_blocks<packing, G>(w + b * block_bytes(packing), stride, count, tables + b * table_bytes(packing), part);
    for (int g = 0; g < G; ++g) {
      float* total = (float*)task.out + ((group + g) * task.tokens + m) * kGroupRows;
      const F32x16 scales = load(task.group_scales + ((group + g) * scale_groups + s) * kGroupRows);
      store(total, load(total) + to_float(load(sums[g])) * scales);
    }
  }
}

template <Packing packing>
void lookup_products(const TernaryTask& task) {
  int64_t step = kRunPieces / block_pieces(packing);
  if (task.group_scales)
    step = step < task.group_blocks ? task.group_blocks : step / task.group_blocks * task.group_blocks;
  for (int64_t first = 0; first < task.blocks; first += step) {
    const int64_t last = first + step < task.blocks ? first + step : task.blocks;
    for (int64_t m = 0; m < task.tokens; ++m) {
      int64_t group = 0;
      for (; group + 2 <= task.row_groups; group += 2) lookup_tile<packing, 2>(task, group, m, first, last);
      if (group < task.row_groups) lookup_tile<packing, 1>(task, group, m, first, last);
    }
  }
}

// Codes (rows, k) of -1, 0, 1 to one row group; false: a code outside -1..1.
template <Packing packing>
bool pack_tuples(const int8_t* codes, int64_t k, int64_t rows, uint8_t* out) {
  constexpr int columns = block_columns(packing), T = tuple(packing);
  uint8_t bad = 0;
  for (int64_t first = 0; first < k; first += columns, out += block_bytes(packing)) {
    const int64_t count = k - first < columns ? k - first : columns;
    __builtin_memset(out, 0, block_bytes(packing));
    for (int64_t r = 0; r < kGroupRows; ++r) {
      int8_t block[columns] = {};
      if (r < rows)
        for (int64_t i = 0; i < count; ++i) bad |= (uint8_t)((block[i] = codes[r * k + first + i]) + 1) > 2;
      for (int j = 0; j < columns / T; ++j) {
        const int piece = j / kPieceTuples, i = j % kPieceTuples / 2, nibble = j % 2;
        const int8_t* w = block + j * T;
        const int v = T == 2 ? 3 * w[0] + w[1] : 9 * w[0] + 3 * w[1] + w[2];
        const int index = T == 2 ? v + 4 : v < 0 ? -v : v;
        out[sign_bytes(packing) + piece * kPieceBytes + 16 * i + r] |= (uint8_t)((index & 15) << 4 * nibble);
        if (T == 3 && v < 0) out[16 * i + r] |= (uint8_t)(0x80 >> (2 * piece + nibble));
      }
    }
  }
  return !bad;
}

// packed: the row's first byte in its row group.
template <Packing packing>
BITNET_INLINE void unpack_tuples(const uint8_t* packed, int64_t k, int8_t* codes) {
  constexpr int T = tuple(packing);
  for (int64_t column = 0; column < k; ++column) {
    const int64_t block = column / block_columns(packing), at = column % block_columns(packing);
    const int j = (int)at / T, piece = j / kPieceTuples, i = j % kPieceTuples / 2, nibble = j % 2;
    const uint8_t* p = packed + block * block_bytes(packing) + 16 * i;
    const int index = p[sign_bytes(packing) + piece * kPieceBytes] >> 4 * nibble & 15;
    const int w = weight_of<packing>(index, (int)at % T);
    codes[column] = (int8_t)(T == 3 && p[0] >> (7 - 2 * piece - nibble) & 1 ? -w : w);
  }
}
