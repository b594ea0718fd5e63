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

// Both return 0.

// y = x w^T of x (tokens, k) and one to three ternary matrices (n, k), as linear() computes it; x is quantised once.
// scales: 1 value; with `per_row` one a row, padded to 16; with `group` [row group][group][16].
BITNET_API int32_t bitnet_ternary(const float* x, int64_t tokens, int64_t k, int64_t group, int64_t per_row,
                                  int64_t matrices, const uint8_t* w0, const float* scales0, int64_t n0, float* y0,
                                  const uint8_t* w1, const float* scales1, int64_t n1, float* y1, const uint8_t* w2,
                                  const float* scales2, int64_t n2, float* y2);

// y = x w^T of x (tokens, k) and floats w (n, k), a k of a multiple of 16. dtype: DType of kernels.h, F32, F16 or BF16.
BITNET_API int32_t bitnet_dense(const float* x, int64_t tokens, int64_t k, const void* w, int64_t n, int64_t dtype,
                                float* y);

// Threads of the library's own pool; below 1: as it was.
BITNET_API void bitnet_set_threads(int64_t count);

#ifdef __cplusplus
}
#endif
