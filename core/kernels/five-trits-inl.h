// T5: five trits in a byte, made so that a CPU decodes it by three lookups in tables of 64.
//
// Trits t0..t4 are the fields' codes, 0 to 2; p(t0, t1, t2) packs three of them, two bits each, lowest first. Let
// v = t3 + 3 t4. A byte c with its low five bits below 27 means v = c >> 5 (0 to 7) and t0 + 3 t1 + 9 t2 = c & 31. The
// low five bits from 28 on mean v = 8 and p = F[c5][c1..c0] ^ G[c5][c7..c6], which covers the 27 triples.
//
// Decoding: fields 0 to 3, as in T2, are A[c & 63] ^ G[c >> 2], and field 4 is H[c >> 2].

struct FiveTrits {
  uint8_t a[64] = {}, g[64] = {}, h[64] = {};
  uint8_t byte_of[243] = {};  // by t0 + 3 t1 + 9 t2 + 27 t3 + 81 t4

  constexpr FiveTrits() {
    constexpr uint8_t kF[2][4] = {{60, 62, 46, 14}, {10, 45, 9, 41}}, kG[2][4] = {{42, 38, 46, 55}, {12, 35, 11, 60}};
    for (int i = 0; i < 64; ++i) {
      const int low = i & 31, bit5 = i >> 5;  // of c & 63
      a[i] = low >= 28 ? kF[bit5][low & 3] : low < 27 ? (uint8_t)(low % 3 | low / 3 % 3 << 2 | low / 9 << 4) : 0;
      const bool special = (i & 7) == 7;  // of c >> 2: its low bits are c4..c2
      const int v = special ? 8 : i >> 3;
      g[i] = (uint8_t)((special ? kG[i >> 3 & 1][i >> 4] : 0) | v % 3 << 6);
      h[i] = (uint8_t)(v / 3);
    }
    for (int c = 255; c >= 0; --c) {
      const int packed = a[c & 63] ^ g[c >> 2], fifth = h[c >> 2];
      int index = 81 * fifth, weight = 1;
      bool sound = (c & 31) != 27;  // which stands for nothing
      for (int f = 0; f < 4; ++f, weight *= 3) {
        index += weight * (packed >> (2 * f) & 3);
        sound = sound && (packed >> (2 * f) & 3) < 3;
      }
      if (sound) byte_of[index] = (uint8_t)c;
    }
  }
};
alignas(64) constexpr FiveTrits kFiveTrits;

BITNET_INLINE constexpr int code_of(Packing packing, uint8_t byte, int field) {
  if (packing == Packing::T2) return byte >> (2 * field) & 3;
  if (field == 4) return kFiveTrits.h[byte >> 2];
  return (kFiveTrits.a[byte & 63] ^ kFiveTrits.g[byte >> 2]) >> (2 * field) & 3;
}

constexpr bool every_five_trits_decode() {
  for (int index = 0; index < 243; ++index)
    for (int f = 0, rest = index; f < 5; ++f, rest /= 3)
      if (code_of(Packing::T5, kFiveTrits.byte_of[index], f) != rest % 3) return false;
  return true;
}
static_assert(every_five_trits_decode());
