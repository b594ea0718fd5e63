#include "ops/attention.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>

#include "kernels/registry.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace bitnet {
namespace {

constexpr int64_t kRows = 64;             // query rows of a block of tokens: what shares one pass over the cache
constexpr int64_t kSerialWork = 1 << 17;  // multiplications of a call that one thread does faster alone
constexpr int64_t kPartBytes = 64 << 20;  // of intermediate results, where segments are dealt out one by one

// The running softmax of some rows: max, sum and unnormalised output.
struct State {
  float *max, *sum, *out;
};

// Tokens of one sequence, next to each other and with positions that never descend.
struct Block {
  int64_t token, count, sequence, last_position;

  int64_t segments() const { return last_position / kSegmentPositions + 1; }
  int64_t work() const { return count * (last_position + 1); }
};

// Writes the blocks of a batch to `blocks`, at most one for each token, and returns their end.
Block* list_blocks(const Batch& batch, int64_t most_tokens, Block* blocks) {
  Block* last = blocks - 1;
  for (int64_t b = 0; b < batch.sequences; ++b)
    for (int64_t t = batch.starts[b]; t < batch.starts[b + 1]; ++t) {
      const int64_t position = batch.positions[t];
      if (t == batch.starts[b] || last->count == most_tokens || position < last->last_position) *++last = {t, 0, b, 0};
      ++last->count;
      last->last_position = position;
    }
  return last + 1;
}

// Tokens of a block that attend to one of its segments.
struct Range {
  int64_t begin, end;
};

// A segment of the cache, of one head.
struct Piece {
  int64_t segment, kv_head;
};

struct Heads {
  const Matrix<const float> q;
  const KVCache& cache;
  const int64_t layer;
  const Batch& batch;
  const float scale;
  const int64_t window;  // positions that a token attends, its own included; 0: all
  const int64_t shared = q.columns / (cache.kv_heads * cache.head_dim);  // query heads per key-value head
  const int64_t width = shared * cache.head_dim;

  int64_t block_tokens() const { return std::max<int64_t>(1, kRows / shared); }
  int64_t state_floats(const Block& block) const { return block.count * (2 * shared + width); }
  State state_at(float* memory, const Block& block) const {
    const int64_t rows = block.count * shared;
    return {memory, memory + rows, memory + 2 * rows};
  }

  // The first position that token t of a block attends.
  int64_t start_of(const Block& block, int64_t t) const {
    return window ? std::max<int64_t>(0, batch.positions[block.token + t] - window + 1) : 0;
  }
  int64_t first_segment(const Block& block) const { return start_of(block, 0) / kSegmentPositions; }

  // Pages of a segment, in the order in which the kernel reads them, and keys of the one that is read after it.
  void list_pages(const Block& block, const Piece& piece, const Piece& next, const uint8_t** pages) const {
    const int32_t* table = batch.block_tables.row(block.sequence);
    const int64_t per_block = cache.pages_per_block(), last = block.last_position / kPagePositions;
    const auto keys = [&](const Piece& of, int64_t i) {
      const int64_t page = std::min(of.segment * kSegmentPages + i, last);
      return cache.keys(layer, table[page / per_block]) + page % per_block * cache.page_bytes() +
             of.kv_head * cache.head_bytes();
    };
    const int64_t count = std::min<int64_t>(kSegmentPages, last - piece.segment * kSegmentPages + 1);
    for (int64_t i = 0; i < count; ++i) {
      pages[i] = keys(piece, i);
      pages[count + i] = pages[i] + cache.part_bytes();
    }
    for (int64_t i = 0; i < kAheadPages; ++i) pages[2 * count + i] = keys(next, i);
  }

  // One piece of a block's cache, for the tokens that attend to it; returns which they are. next: what is read after
  // it.
  Range attend(const Kernels& kernel, const Block& block, const Piece& piece, const Piece& next,
               const State& state) const {
    thread_local Scratch scratch;
    const int64_t kv_head = piece.kv_head, first = piece.segment * kSegmentPositions, dim = cache.head_dim,
                  most = block.count * shared;
    const int64_t needed = attention_scratch(cache.type, most, dim);
    float* memory = scratch.get<float>(static_cast<size_t>(most * (kSegmentPositions + 2 + dim) + needed));
    int32_t* counts = reinterpret_cast<int32_t*>(memory + most * kSegmentPositions + needed);
    int32_t* starts = counts + most;
    float* rows = memory + most * (kSegmentPositions + 2) + needed;
    const uint8_t* pages[2 * kSegmentPages + kAheadPages];
    list_pages(block, piece, next, pages);

    const int32_t* positions = batch.positions + block.token;
    int64_t begin = 0, end = block.count;
    while (positions[begin] < first) ++begin;
    while (end > begin && start_of(block, end - 1) >= first + kSegmentPositions) --end;
    if (begin == end) return {begin, end};
    const auto q_of = [&](int64_t t) { return q.row(block.token + t) + kv_head * width; };
    for (int64_t t = begin; t < end; ++t) {
      const int64_t count = std::min<int64_t>(kSegmentPositions, positions[t] + 1 - first);
      std::fill_n(counts + t * shared, shared, static_cast<int32_t>(count));
      std::fill_n(starts + t * shared, shared, static_cast<int32_t>(std::max<int64_t>(0, start_of(block, t) - first)));
      if (block.count > 1) std::memcpy(rows + t * width, q_of(t), static_cast<size_t>(width) * 4);
    }
    AttentionTask task{};
    task.q = block.count > 1 ? rows + begin * width : q_of(0);
    task.rows = (end - begin) * shared;
    task.counts = counts + begin * shared;
    task.starts = window ? starts + begin * shared : nullptr;
    task.head_dim = dim;
    task.scale = scale;
    task.type = cache.type;
    task.pages = pages;
    task.scores = memory;
    task.scratch = memory + most * kSegmentPositions;
    task.max = state.max + begin * shared;
    task.sum = state.sum + begin * shared;
    task.out = state.out + begin * width;
    kernel.attend(task);
    return {begin, end};
  }

  void merge(const Kernels& kernel, const Range& tokens, const State& state, const State& part) const {
    const int64_t row = tokens.begin * shared;
    kernel.attend_merge(state.max + row, state.sum + row, state.out + row * cache.head_dim, part.max + row,
                        part.sum + row, part.out + row * cache.head_dim, tokens.end * shared - row, cache.head_dim);
  }

  void finish(const Kernels& kernel, const Block& block, int64_t kv_head, const State& state, float* y) const {
    kernel.attend_finish(state.out, state.sum, block.count * shared, cache.head_dim);
    for (int64_t t = 0; t < block.count; ++t)
      std::memcpy(y + (block.token + t) * q.columns + kv_head * width, state.out + t * width,
                  static_cast<size_t>(width) * 4);
  }

  // All segments of one block and key-value head, one after the other.
  void attend_all(const Kernels& kernel, const Block& block, int64_t kv_head, float* y) const {
    thread_local Scratch scratch;
    const int64_t floats = state_floats(block);
    float* memory = scratch.get<float>(static_cast<size_t>(2 * floats));
    const State state = state_at(memory, block), part = state_at(memory + floats, block);
    int64_t segment = first_segment(block);
    if (window) {  // the first segment may not be for all of the tokens
      const int64_t rows = block.count * shared;
      std::fill_n(state.max, rows, -std::numeric_limits<float>::infinity());
      std::fill_n(state.sum, rows * (1 + cache.head_dim), 0.0f);  // and what lies behind it, `out`
    } else {
      attend(kernel, block, {segment, kv_head}, {segment + 1, kv_head}, state);
      ++segment;
    }
    for (; segment < block.segments(); ++segment)
      merge(kernel, attend(kernel, block, {segment, kv_head}, {segment + 1, kv_head}, part), state, part);
    finish(kernel, block, kv_head, state, y);
  }
};

void store(const float* k, const float* v, const KVCache& cache, int64_t layer, const Batch& batch,
           const int32_t* sequence_of, int64_t tokens) {
  const Kernels& kernel = kernels();
  const int64_t width = cache.kv_heads * cache.head_dim;
  const auto store_token = [&](int64_t t) {
    const int64_t position = batch.positions[t],
                  block = batch.block_tables.row(sequence_of[t])[position / cache.block_size];
    uint8_t* page = cache.keys(layer, block) + position % cache.block_size / kPagePositions * cache.page_bytes();
    kernel.store_kv(k + t * width, v + t * width, cache.kv_heads, cache.head_dim, cache.type, page,
                    page + cache.part_bytes(), position % kPagePositions);
  };
  if (tokens * width < 16384) {
    for (int64_t t = 0; t < tokens; ++t) store_token(t);
  } else {
    const int64_t step = 8;
    parallel_for(ceil_div(tokens, step), [&](int64_t i) {
      for (int64_t t = i * step; t < std::min(tokens, (i + 1) * step); ++t) store_token(t);
    });
  }
}

}  // namespace

void attention(Matrix<const float> q, const float* k, const float* v, KVCache& cache, int64_t layer, const Batch& batch,
               float scale, int64_t window, float* y) {
  if (!q.rows) return;
  const Kernels& kernel = kernels();
  thread_local Scratch scratch, sequence_scratch, block_scratch, part_scratch;
  int32_t* sequence_of = sequence_scratch.get<int32_t>(static_cast<size_t>(q.rows));
  for (int64_t b = 0; b < batch.sequences; ++b)
    std::fill(sequence_of + batch.starts[b], sequence_of + batch.starts[b + 1], static_cast<int32_t>(b));
  store(k, v, cache, layer, batch, sequence_of, q.rows);

  const Heads heads{q, cache, layer, batch, scale, window};
  Block* const blocks = block_scratch.get<Block>(static_cast<size_t>(q.rows));
  Block* const end = list_blocks(batch, heads.block_tokens(), blocks);
  // The longest first: late tokens of a prompt have the most to do, and small chunks at the end let no thread wait.
  std::sort(blocks, end, [](const Block& a, const Block& b) {
    return a.work() != b.work() ? a.work() > b.work() : a.token < b.token;
  });
  const int64_t count = end - blocks;
  int64_t work = 0, segments = 0, part_bytes = 0;
  for (const Block& block : std::span(blocks, end)) {
    work += block.work() * q.columns, segments += block.segments();
    part_bytes += block.segments() * cache.kv_heads * heads.state_floats(block) * 4;
  }
  const auto attend_all = [&](int64_t i) {
    heads.attend_all(kernel, blocks[i / cache.kv_heads], i % cache.kv_heads, y);
  };
  if (work < kSerialWork) {
    for (int64_t i = 0; i < count * cache.kv_heads; ++i) attend_all(i);
    return;
  }
  if (count * cache.kv_heads >= 16 * threads() || segments == count || window || part_bytes > kPartBytes)
    return parallel_for(count * cache.kv_heads, attend_all, Deal::Queue);

  // Few blocks over long contexts: every piece is a chunk, in the order in which the cache lies in memory; then those
  // of each head are folded in ascending order.
  struct Part {
    const Block* block;
    Piece piece;
    float* memory;
    Range tokens;
  };
  const int64_t part_count = segments * cache.kv_heads;
  Part* const parts = part_scratch.get<Part>(static_cast<size_t>(part_count));
  float* memory = scratch.get<float>(static_cast<size_t>(part_bytes / 4));
  Part* next = parts;
  for (const Block& block : std::span(blocks, end))
    for (int64_t s = 0; s < block.segments(); ++s)
      for (int64_t h = 0; h < cache.kv_heads; ++h, memory += heads.state_floats(block))
        *next++ = {&block, {s, h}, memory, {}};
  const auto state_of = [&](const Part& part) { return heads.state_at(part.memory, *part.block); };
  parallel_for(part_count, [&](int64_t i) {
    Part& part = parts[i];
    const bool more = i + 1 < part_count && parts[i + 1].block == part.block;
    part.tokens = heads.attend(kernel, *part.block, part.piece, parts[more ? i + 1 : i].piece, state_of(part));
  });
  for (const Part* first = parts; first < next; first += first->block->segments() * cache.kv_heads)
    for (int64_t h = 0; h < cache.kv_heads; ++h) {
      const State state = state_of(first[h]);
      for (int64_t s = 1; s < first->block->segments(); ++s) {
        const Part& part = first[s * cache.kv_heads + h];
        heads.merge(kernel, part.tokens, state, state_of(part));
      }
      heads.finish(kernel, *first->block, h, state, y);
    }
}

}  // namespace bitnet
