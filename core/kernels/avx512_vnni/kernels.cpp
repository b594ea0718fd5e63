// AVX-512 with VNNI: a block is one register, a product of four bytes and their sum one instruction.
#include "kernels/kernels.h"

#include <immintrin.h>

#define BITNET_VECTOR_BYTES 64

namespace bitnet::avx512_vnni {
namespace {

constexpr int kPrefetchBytes = 6144, kDenseRows = 4, kDenseTokens = 4, kAttentionTile = 16;

#include "kernels/simd-inl.h"

// Four tables of sixteen, of which bits 4 and 5 of the index choose.
BITNET_INLINE __m512i lookup(const uint8_t* table, __m512i index) {
  const __m512i low = _mm512_and_si512(index, _mm512_set1_epi8(15));
  const __mmask64 bit4 = _mm512_test_epi8_mask(index, _mm512_set1_epi8(16)),
                  bit5 = _mm512_test_epi8_mask(index, _mm512_set1_epi8(32));
  __m512i part[4];
  for (int i = 0; i < 4; ++i)
    part[i] = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)(table + 16 * i))), low);
  return _mm512_mask_blend_epi8(bit5, _mm512_mask_blend_epi8(bit4, part[0], part[1]),
                                _mm512_mask_blend_epi8(bit4, part[2], part[3]));
}

// clang-format off
#include "kernels/avx512_vnni/vnni-inl.h"
#include "kernels/avx512_vnni/screen-inl.h"
#include "kernels/algorithms-inl.h"
// clang-format on

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = BITNET_TABLE("avx512_vnni");

}  // namespace bitnet::avx512_vnni
