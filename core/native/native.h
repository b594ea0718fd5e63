// The kernels by plain C calls on plain memory: what code that another compiler made links with.
//
// Matrices are packed as kernels.h has T2; scales as TernaryWeight keeps them for its kernels. Memory that a call reads
// as weights is followed by 4096 bytes that may be read.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BITNET_API __attribute__((visibility("default")))

// All return 0, but where they say something else.

// y = x w^T of x (tokens, k) and one to three ternary matrices (n, k), as linear() computes it; x is quantised once.
// scales: 1 value; with `per_row` one a row, padded to 16; with `group` [row group][group][16].
BITNET_API int32_t bitnet_ternary(const float* x, int64_t tokens, int64_t k, int64_t group, int64_t per_row,
                                  int64_t matrices, const uint8_t* w0, const float* scales0, int64_t n0, float* y0,
                                  const uint8_t* w1, const float* scales1, int64_t n1, float* y1, const uint8_t* w2,
                                  const float* scales2, int64_t n2, float* y2);

// y = x w^T of x (tokens, k) and floats w (n, k), a k of a multiple of 16. dtype: DType of kernels.h, F32, F16 or BF16.
BITNET_API int32_t bitnet_dense(const float* x, int64_t tokens, int64_t k, const void* w, int64_t n, int64_t dtype,
                                float* y);

// Logits y (rows, n) of x (rows, k) and floats w (n, k), as head() computes them with `screen`, which bitnet_screen()
// filled: where top[r] > 0 as many of the largest, and others may be -inf.
BITNET_API int32_t bitnet_head(const float* x, int64_t rows, int64_t k, const void* w, int64_t n, int64_t dtype,
                               const uint8_t* screen, const int32_t* top, float* y);

BITNET_API int32_t bitnet_screen(const void* w, int64_t n, int64_t k, int64_t dtype, uint8_t* screen);
BITNET_API int64_t bitnet_screen_bytes(int64_t n, int64_t k);  // returns them

// Attention of q (tokens, heads * head_dim) as attention() computes it; k and v go into the cache first. sequences:
// which row of `tables` (rows, columns) each token belongs to, ascending. cache (blocks, layers, 2, kv_heads, 16 *
// head_dim) in f16, or f32; head_dim is a multiple of 16.
BITNET_API int32_t bitnet_attention(const float* q, int64_t tokens, const float* k, const float* v,
                                    const int32_t* positions, const int32_t* sequences, const int32_t* tables,
                                    int64_t rows, int64_t columns, const int32_t* layer, uint8_t* cache, int64_t blocks,
                                    int64_t layers, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t window,
                                    int64_t f16, float* y);

// Operations that treat every token by itself, as ops/rows.h has them. rope: cos and sin (positions, half).
BITNET_API int32_t bitnet_rms_norm(const float* x, int64_t tokens, int64_t width, const float* weight, int64_t d,
                                   float eps, float* y);
BITNET_API int32_t bitnet_rope(const float* x, int64_t tokens, int64_t width, const int32_t* at, const float* cos,
                               const float* sin, int64_t positions, int64_t half, int64_t head_dim, int64_t interleaved,
                               float* y);
BITNET_API int32_t bitnet_gate(const float* g, int64_t tokens, int64_t width, const float* u, int64_t activation,
                               float* y);
BITNET_API int32_t bitnet_add(const float* x, int64_t tokens, int64_t width, const float* y, float* out);

// Asks once for large pages under memory that many calls will read; nothing depends on it.
BITNET_API int32_t bitnet_on_huge_pages(const void* data, int64_t bytes);

// Threads of the library's own pool; below 1: as it was.
BITNET_API void bitnet_set_threads(int64_t count);

#ifdef __cplusplus
}
#endif
