// Rows in blocks of small integers, as ggml stores embeddings and output heads: Q4_0, Q5_0 and the K-quants.
//
// A block is unpacked to int8 in the order of the columns; sixteen of them share a scale and a minimum. Weight:
// scale * q - least, the arithmetic of ggml's dequantize_row_*, with scale = d * part rounded to float first.

template <DType dtype>
struct Unpacked {
  static constexpr int kGroups = block_columns(dtype) / kLanes;
  int8_t q[block_columns(dtype)];
  float scale[kGroups];
  float least[kGroups];  // zeros where the type has none

  BITNET_INLINE F32x16 weights(int group) const {
    return load_i8(q + group * kLanes) * fill(scale[group]) - fill(least[group]);
  }
};

BITNET_INLINE float half_at(const uint8_t* p) { return load_half((const uint16_t*)p); }

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

BITNET_INLINE Bytes16 load_bytes(const void* p) {
  Bytes16 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
BITNET_INLINE void store_bytes(int8_t* p, Bytes16 v) { __builtin_memcpy(p, &v, sizeof v); }

// Runs of `width` bytes hold the columns byte by byte in their lowest 4 bits, then byte by byte in the next.
BITNET_INLINE void unpack_nibbles(const uint8_t* p, int bytes, int width, int8_t* q) {
  for (int run = 0; run < bytes; run += width)
    for (int i = 0; i < width; i += 16) {
      const Bytes16 v = load_bytes(p + run + i);
      store_bytes(q + 2 * run + i, v & 15);
      store_bytes(q + 2 * run + width + i, v >> 4);
    }
}

// Sixteen bits, the lowest first, as bytes of 0 or 255.
BITNET_INLINE Bytes16 spread_bits(const uint8_t* p) {
  typedef uint64_t Words2 __attribute__((vector_size(16)));
  const Words2 copies = {p[0] * 0x0101010101010101u, p[1] * 0x0101010101010101u};
  constexpr Bytes16 kBit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  return (Bytes16)(((Bytes16)copies & kBit) != 0);
}

template <DType dtype>
BITNET_INLINE void set_scale(Unpacked<dtype>& u, float d) {
  for (int g = 0; g < u.kGroups; ++g) u.scale[g] = d, u.least[g] = 0.0f;
}

// d, 16 bytes of codes + 8
BITNET_INLINE void unpack(const uint8_t* p, Unpacked<DType::Q4_0>& u) {
  unpack_nibbles(p + 2, 16, 16, u.q);
  for (int i = 0; i < 32; i += 16) store_bytes(u.q + i, load_bytes(u.q + i) - 8);
  set_scale(u, half_at(p));
}

// d, 4 bytes of fifth bits, 16 bytes of codes + 16
BITNET_INLINE void unpack(const uint8_t* p, Unpacked<DType::Q5_0>& u) {
  unpack_nibbles(p + 6, 16, 16, u.q);
  for (int i = 0; i < 32; i += 16) store_bytes(u.q + i, (load_bytes(u.q + i) | (spread_bits(p + 2 + i / 8) & 16)) - 16);
  set_scale(u, half_at(p));
}

// 32 bytes of third bits, 64 bytes of codes, 12 bytes of 16 parts + 32 of 6 bits, d. A third bit that is not set is -4.
BITNET_INLINE void unpack(const uint8_t* p, Unpacked<DType::Q3_K>& u) {
  for (int run = 0; run < 2; ++run)
    for (int field = 0; field < 4; ++field)
      for (int i = 0; i < 32; ++i) {
        const int low = p[32 + 32 * run + i] >> 2 * field & 3, high = p[i] >> (4 * run + field) & 1;
        u.q[128 * run + 32 * field + i] = (int8_t)(low + 4 * high - 4);
      }
  const float d = half_at(p + 108);
  for (int g = 0; g < 16; ++g) {
    const int part = (p[96 + g % 8] >> 4 * (g / 8) & 15) | (p[104 + g % 4] >> 2 * (g / 4) & 3) << 4;
    u.scale[g] = d * (float)(part - 32);
    u.least[g] = 0.0f;
  }
}

// d, dmin, 12 bytes of 8 parts and 8 minima of 6 bits each
template <DType dtype>
BITNET_INLINE void unpack_parts(const uint8_t* p, Unpacked<dtype>& u) {
  const float d = half_at(p), dmin = half_at(p + 2);
  const uint8_t* s = p + 4;
  for (int j = 0; j < 8; ++j) {
    const int part = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    const int minimum = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    u.scale[2 * j] = u.scale[2 * j + 1] = d * (float)part;
    u.least[2 * j] = u.least[2 * j + 1] = dmin * (float)minimum;
  }
}

// the parts, 128 bytes of codes
BITNET_INLINE void unpack(const uint8_t* p, Unpacked<DType::Q4_K>& u) {
  unpack_nibbles(p + 16, 128, 32, u.q);
  unpack_parts(p, u);
}

// the parts, 32 bytes of fifth bits, 128 bytes of codes
BITNET_INLINE void unpack(const uint8_t* p, Unpacked<DType::Q5_K>& u) {
  unpack_nibbles(p + 48, 128, 32, u.q);
  for (int j = 0; j < 8; ++j)
    for (int i = 0; i < 32; ++i) u.q[32 * j + i] = (int8_t)(u.q[32 * j + i] | (p[16 + i] >> j & 1) << 4);
  unpack_parts(p, u);
}

// 128 bytes of codes + 32, 64 bytes of their fifth and sixth bits, 16 int8 parts, d
BITNET_INLINE void unpack(const uint8_t* p, Unpacked<DType::Q6_K>& u) {
  unpack_nibbles(p, 128, 64, u.q);
  for (int run = 0; run < 2; ++run)
    for (int field = 0; field < 4; ++field)
      for (int i = 0; i < 32; ++i) {
        int8_t& q = u.q[128 * run + 32 * field + i];
        q = (int8_t)((q | (p[128 + 32 * run + i] >> 2 * field & 3) << 4) - 32);
      }
  const float d = half_at(p + 208);
  for (int g = 0; g < 16; ++g) {
    u.scale[g] = d * (float)(int8_t)p[192 + g];
    u.least[g] = 0.0f;
  }
}

// One row against M tokens: every weight is decoded once.
template <DType dtype, int M>
BITNET_INLINE void blocks_tile(const uint8_t* row, const DenseTask& task, const float* x, float* y) {
  F32x16 sums[M];
  for (int m = 0; m < M; ++m) sums[m] = fill(0.0f);
  Unpacked<dtype> block;
  for (int64_t i = 0; i < task.columns; i += block_columns(dtype), row += block_bytes(dtype)) {
    for (int line = 0; line < block_bytes(dtype); line += 64) prefetch(row + line + kPrefetchBytes);
    unpack(row, block);
    for (int g = 0; g < block.kGroups; ++g) {
      const F32x16 w = block.weights(g);
      for (int m = 0; m < M; ++m) sums[m] = sums[m] + w * load(x + m * task.ldx + i + g * kLanes);
    }
  }
  for (int m = 0; m < M; ++m) y[m * task.ldy] = fold_sum(sums[m]);
}

template <DType dtype>
void dense_blocks(const DenseTask& task) {
  constexpr int M = 8;
  for (int64_t r = 0; r < task.count; ++r) {
    const uint8_t* row = task.rows + r * task.row_bytes;
    int64_t t = 0;
    for (; t + M <= task.tokens; t += M)
      blocks_tile<dtype, M>(row, task, task.x + t * task.ldx, task.y + t * task.ldy + r);
    for (; t < task.tokens; ++t) blocks_tile<dtype, 1>(row, task, task.x + t * task.ldx, task.y + t * task.ldy + r);
  }
}

template <DType dtype>
void decode_blocks(const uint8_t* row, int64_t columns, float* out) {
  Unpacked<dtype> block;
  for (int64_t i = 0; i < columns; i += block_columns(dtype), row += block_bytes(dtype)) {
    unpack(row, block);
    for (int g = 0; g < block.kGroups; ++g) store(out + i + g * kLanes, block.weights(g));
  }
}
