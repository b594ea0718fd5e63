// The tables of T5 where a CPU looks up 64 bytes in one instruction (VBMI).

BITNET_INLINE __m512i lookup(const uint8_t* table, __m512i index) {
  return _mm512_permutexvar_epi8(index, _mm512_load_si512(table));  // ignores bits 6 and 7
}
