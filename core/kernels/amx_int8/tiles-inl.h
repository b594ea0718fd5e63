// Ternary products of many tokens on tiles: C (tokens, rows) += A (tokens, columns) B (columns, rows), 16 x 16 sums of
// 64 products by one instruction.
//
// A block unpacks to one quad a field: the codes of four columns of its 16 rows, 64 bytes. That is a row of a tile of
// B, so the quads of a row group are its tiles, one after the other, in either packing. A tile of A is 16 tokens' codes
// where they lie. C begins with what storing w + 1 adds to every sum, negated, and rests in `acc` between the chunks of
// kTileBlocks blocks, whose quads stay in the first cache while all tokens pass.

constexpr int kAheadSteps = 2;  // activations are fetched from the second cache two tiles ahead: at least 128 cycles

template <int n>
struct Index {
  static constexpr int value = n;
};
template <int count, class Body>
BITNET_INLINE void each(Body&& body) {
  if constexpr (count > 0) {
    each<count - 1>(body);
    body(Index<count - 1>{});
  }
}

template <Packing packing>
BITNET_INLINE void unpack_block(const uint8_t* w, uint8_t* quads) {
  const Block block = load_block<packing>(w);
  __m512i v = block.four;
#pragma GCC unroll 4
  for (int f = 0; f < 4; ++f, v = _mm512_srli_epi16(v, 2))
    _mm512_store_si512(quads + f * kBlockBytes, _mm512_and_si512(v, _mm512_set1_epi8(0x03)));
  if constexpr (packing == Packing::T5) _mm512_store_si512(quads + 4 * kBlockBytes, block.fifth);
}

struct TileChunk {
  const uint8_t* weights;  // of the first row group
  int64_t blocks;
  const int8_t* codes;  // of the chunk's first column
  int32_t* acc;         // of the first row group
  int64_t tokens;       // padded to whole tiles
};

// T tiles of tokens by G row groups over one chunk. The first tokens of a chunk unpack it on the way, a step ahead of
// its use, so that the vector units work beside the tile unit.
template <Packing packing, int T, int G, bool unpacking>
BITNET_INLINE void multiply_tiles(const TileTask& task, const TileChunk& chunk, int64_t token) {
  static_assert(T * G <= 4 && T <= 2);  // sums in tiles 0 to 3, A from 4 on, B behind it
  constexpr int F = fields(packing), kA = 4, kB = kA + T, kTilesOfB = 8 - kB;
  constexpr int64_t tile_bytes = kTile * kBlockBytes, group_bytes = kTileBlocks * F * kBlockBytes;
  const int64_t steps = (chunk.blocks * F + kTile - 1) / kTile, weight_stride = task.blocks * kBlockBytes,
                stride = task.stride;
  const int8_t* a = chunk.codes + token * stride;
  // The tokens that come next: more of this chunk, or the first of the next one.
  const int8_t* next =
      token + T * kTile < chunk.tokens ? a + T * kTile * stride : chunk.codes + chunk.blocks * block_columns(packing);
  uint8_t* b = task.unpacked;
  int32_t* c = chunk.acc + token * kTile;

  if constexpr (unpacking)  // whatever a tile of A holds beyond the last block, it meets zeros
    for (int64_t q = chunk.blocks * F; q < steps * kTile; ++q)
      for (int g = 0; g < G; ++g) _mm512_store_si512(b + g * group_bytes + q * kBlockBytes, _mm512_setzero_si512());

  each<T>([&](auto t) __attribute__((always_inline)) {
    each<G>([&](auto g) __attribute__((always_inline)) {
      tile_load<t.value * G + g.value>(c + (g.value * chunk.tokens + t.value * kTile) * kTile, kBlockBytes);
    });
  });
  int64_t unpacked = 0;
  for (int64_t step = 0; step < steps; ++step) {
    if constexpr (unpacking)
      for (; unpacked < chunk.blocks && unpacked * F < (step + 2) * kTile; ++unpacked)
        for (int g = 0; g < G; ++g) {
          const uint8_t* w = chunk.weights + g * weight_stride + unpacked * kBlockBytes;
          _mm_prefetch((const char*)(w + G * weight_stride), _MM_HINT_T1);
          unpack_block<packing>(w, b + g * group_bytes + unpacked * F * kBlockBytes);
        }
    const int64_t ahead = step + kAheadSteps;
    const int8_t* wanted = ahead < steps ? a + ahead * kTileColumns : next + (ahead - steps) * kTileColumns;
    each<T>([&](auto t) __attribute__((always_inline)) {
      tile_load<kA + t.value>(a + t.value * kTile * stride + step * kTileColumns, stride);
      for (int i = 0; i < kTile; ++i) prefetch((const uint8_t*)wanted + (t.value * kTile + i) * stride);
      each<G>([&](auto g) __attribute__((always_inline)) {
        constexpr int tile_of_b = kB + g.value % kTilesOfB;
        if constexpr (t.value == 0) tile_load<tile_of_b>(b + g.value * group_bytes + step * tile_bytes, kBlockBytes);
        tile_dot<t.value * G + g.value, kA + t.value, tile_of_b>();
      });
    });
  }
  each<T>([&](auto t) __attribute__((always_inline)) {
    each<G>([&](auto g) __attribute__((always_inline)) {
      tile_store<t.value * G + g.value>(c + (g.value * chunk.tokens + t.value * kTile) * kTile, kBlockBytes);
    });
  });
}

// All tokens, two tiles of them at a time where the sums of two row groups leave room.
template <Packing packing, int G>
void multiply_chunk(const TileTask& task, const TileChunk& chunk) {
  if constexpr (G == 4) {
    multiply_tiles<packing, 1, G, true>(task, chunk, 0);
    for (int64_t t = kTile; t < chunk.tokens; t += kTile) multiply_tiles<packing, 1, G, false>(task, chunk, t);
  } else {
    if (chunk.tokens == kTile) return multiply_tiles<packing, 1, G, true>(task, chunk, 0);
    multiply_tiles<packing, 2, G, true>(task, chunk, 0);
    int64_t t = 2 * kTile;
    for (; t + 2 * kTile <= chunk.tokens; t += 2 * kTile) multiply_tiles<packing, 2, G, false>(task, chunk, t);
    if (t < chunk.tokens) multiply_tiles<packing, 1, G, false>(task, chunk, t);
  }
}

// total (+)= float(acc) * scale, in the order of the groups.
BITNET_INLINE void fold_group(const TileTask& task, int64_t row_group, const float* scales, bool first,
                              const int32_t* acc) {
  const int64_t tokens = (task.tokens + kTile - 1) / kTile * kTile;
  const F32x16 scale = load(scales);
  float* total = task.total + row_group * tokens * kTile;
  for (int64_t t = 0; t < task.tokens; ++t) {
    const F32x16 before = first ? fill(0.0f) : load(total + t * kTile);
    store(total + t * kTile, before + to_float(load(acc + t * kTile)) * scale);
  }
}

template <Packing packing, int G>
void tile_row_groups(const TileTask& task, int64_t row_group) {
  const int64_t tokens = (task.tokens + kTile - 1) / kTile * kTile, scale_groups = task.blocks / task.group_blocks;
  const uint8_t* w = task.weights + row_group * task.blocks * kBlockBytes;
  int32_t* acc = task.acc + row_group * tokens * kTile;
  for (int64_t s = 0; s < scale_groups; ++s) {
    for (int64_t t = 0; t < task.tokens; ++t)
      for (int g = 0; g < G; ++g) store(acc + (g * tokens + t) * kTile, fill(-task.sums[t * scale_groups + s]));
    for (int64_t first = s * task.group_blocks, last = first + task.group_blocks; first < last; first += kTileBlocks) {
      const int64_t blocks = last - first < kTileBlocks ? last - first : kTileBlocks;
      multiply_chunk<packing, G>(
          task, {w + first * kBlockBytes, blocks, task.codes + first * block_columns(packing), acc, tokens});
    }
    for (int g = 0; g < G && task.group_scales; ++g)
      fold_group(task, row_group + g, task.group_scales + ((row_group + g) * scale_groups + s) * kGroupRows, s == 0,
                 acc + g * tokens * kTile);
  }
}

template <Packing packing>
void tile_rows(const TileTask& task) {
  int64_t g = 0;
  if (task.tokens <= kTile)  // four sums keep the tile unit busy
    for (; g + 4 <= task.row_groups; g += 4) tile_row_groups<packing, 4>(task, g);
  for (; g + 2 <= task.row_groups; g += 2) tile_row_groups<packing, 2>(task, g);
  for (; g < task.row_groups; ++g) tile_row_groups<packing, 1>(task, g);
}

void ternary_tiles(const TileTask& task) {
  tiles_configure(TileShapes{});
  if (task.packing == Packing::T5) {
    tile_rows<Packing::T5>(task);
  } else {
    tile_rows<Packing::T2>(task);
  }
  tiles_release();
}

constexpr Kernels with_tiles(Kernels kernels) {
  kernels.ternary_tiles = ternary_tiles;
  kernels.tile_tokens = kTileTokens;
  return kernels;
}
