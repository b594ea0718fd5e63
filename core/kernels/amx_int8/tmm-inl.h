// The eight tile registers of AMX, 16 rows of 64 bytes each, by the instructions themselves: gcc 12's intrinsics do not
// tell the compiler which memory they read and write.

struct alignas(64) TileShapes {  // what ldtilecfg loads
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

BITNET_INLINE void tiles_configure(const TileShapes& shapes) {
  __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
}
// Clears what a context switch would have to save, and what keeps a core from its deeper sleeps.
BITNET_INLINE void tiles_release() { __asm__ volatile("tilerelease" : : : "memory"); }

template <int tile>
BITNET_INLINE void tile_load(const void* p, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
BITNET_INLINE void tile_store(void* p, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(tile) : "memory");
}
// c[m][n] += sum of a[m][4k + j] * b[k][4n + j] over k < 16 and j < 4; a is signed, b unsigned.
template <int c, int a, int b>
BITNET_INLINE void tile_dot() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}
