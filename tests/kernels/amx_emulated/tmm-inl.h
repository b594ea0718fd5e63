// The tile registers of core/kernels/amx_int8/tmm-inl.h in memory, with the rules of Intel's manual (volume 2,
// TILELOADD, TDPBSUD and the tile configuration): what would be an invalid instruction there ends the program here.

struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64);

struct TileUnit {
  TileShapes shapes;
  bool configured = false;
  uint8_t tiles[8][16][64];
};
thread_local TileUnit unit;

BITNET_INLINE void must(bool valid) {
  if (!valid) __builtin_trap();
}

void tiles_configure(const TileShapes& shapes) {
  must(shapes.palette == 1);
  for (uint8_t each : shapes.reserved) must(each == 0);
  for (int i = 0; i < 16; ++i) {
    must(shapes.rows[i] <= 16 && shapes.row_bytes[i] <= 64);
    must(i < 8 ? (shapes.rows[i] == 0) == (shapes.row_bytes[i] == 0) : !shapes.rows[i] && !shapes.row_bytes[i]);
  }
  unit.shapes = shapes;
  unit.configured = true;
  __builtin_memset(unit.tiles, 0, sizeof unit.tiles);
}
void tiles_release() { unit.configured = false; }

bool tile_valid(int tile) {
  return unit.configured && tile < 8 && unit.shapes.rows[tile] && unit.shapes.row_bytes[tile];
}

template <int tile>
void tile_load(const void* p, int64_t stride) {
  must(tile_valid(tile));
  __builtin_memset(unit.tiles[tile], 0, sizeof unit.tiles[tile]);
  for (int r = 0; r < unit.shapes.rows[tile]; ++r)
    __builtin_memcpy(unit.tiles[tile][r], (const uint8_t*)p + r * stride, unit.shapes.row_bytes[tile]);
}
template <int tile>
void tile_store(void* p, int64_t stride) {
  must(tile_valid(tile));
  for (int r = 0; r < unit.shapes.rows[tile]; ++r)
    __builtin_memcpy((uint8_t*)p + r * stride, unit.tiles[tile][r], unit.shapes.row_bytes[tile]);
}
template <int c, int a, int b>
void tile_dot() {
  must(tile_valid(c) && tile_valid(a) && tile_valid(b) && c != a && c != b && a != b);
  const auto& shapes = unit.shapes;
  must(shapes.rows[c] == shapes.rows[a] && shapes.row_bytes[c] == shapes.row_bytes[b]);
  must(shapes.row_bytes[a] == 4 * shapes.rows[b] && shapes.row_bytes[c] % 4 == 0);
  for (int m = 0; m < shapes.rows[c]; ++m)
    for (int n = 0; n < shapes.row_bytes[c] / 4; ++n) {
      uint32_t sum;
      __builtin_memcpy(&sum, &unit.tiles[c][m][4 * n], 4);
      for (int i = 0; i < shapes.row_bytes[a]; ++i)
        sum += (uint32_t)((int8_t)unit.tiles[a][m][i] * unit.tiles[b][i / 4][4 * n + i % 4]);
      __builtin_memcpy(&unit.tiles[c][m][4 * n], &sum, 4);
    }
  for (int m = shapes.rows[c]; m < 16; ++m) __builtin_memset(unit.tiles[c][m], 0, 64);
}
