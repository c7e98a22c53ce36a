// Paged attention, prefill and decode alike (arXiv 2309.06180, with the online softmax of arXiv 1805.02867).
//
// A work item is one key-value head of one sequence and a tile of its query tokens. The query heads that share
// the key-value head, times the tokens, are the rows of a small matrix product. The item walks the keys in blocks of
// 64, from the first block it can see to the last, always cut at multiples of 64 counted from key 0:
//
//   scores   lanes over 16 keys, four lines; a line of the cache holds the next 4 bytes of D of 16 keys, so one
//            broadcast word of the query and one line make 16 (bfloat16: 32) products
//   softmax  in base 2, from a reference that the row's first block sets to its maximum; it moves, and what was
//            gathered is rescaled, only when a key exceeds it by more than 2^8 (as in FlashAttention-4): float32
//            holds the sums as well, and a rescale costs a mispredicted branch and a walk over the accumulators
//   values   lanes over D; a line holds the next 4 bytes of tokens of 16 dims, one broadcast word of the
//            probabilities serves it: the same product again
//
// What a row computes depends on its own sequence alone (law 6): blocks and their order are fixed, every sum runs
// through the same operations in the same order whatever the number of rows beside it, and a masked key has
// probability +0 against a value that is never read from a slot that no row of the item sees. So a block that a row
// doesn't see changes nothing in it, and whether it is visited doesn't matter.
#include "octavo/kernels_attention.h"

#include "octavo/attention_cache.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int kLines = 4, kBlock = 16 * kLines;  // keys a step
constexpr float kSlack = 8.0f;  // how far, in powers of 2, a score may exceed the row's reference
constexpr float kLog2e = 1.44269504f;
// A score that no key has, and one that even that one outweighs by more than 2^x can show: finite, so that nothing
// made of them is a NaN.
constexpr float kNone = -1e30f, kMasked = -1e37f;
// Rows and 16-lane columns (of keys or dims) whose accumulators stay in registers.
#if defined(OCTAVO_ISA_AVX512)
constexpr int kRows = 6, kColumns = 4;
#elif defined(OCTAVO_ISA_AVX2)
constexpr int kRows = 3, kColumns = 2;
#else
constexpr int kRows = 2, kColumns = 2;
#endif
// Rows of an item: their accumulators and the block's keys and values share the first-level cache.
constexpr int64_t kTileFloats = 48 * 64;

// ---- an item's state --------------------------------------------------------------------------------------------

// One sequence as its item sees it.
struct Sequence {
  const int32_t* pages;
  int64_t length;
  int64_t first_row;       // of its queries in the batch
  int64_t first_position;  // of its first query token
};

struct Tile {
  int64_t rows;         // query heads of the group times tokens, token-major
  int64_t lines;        // of 16 keys: head_dim / C::kPack
  int64_t width;        // head_dim rounded up to 16
  uint32_t* queries;    // pass by pass [lines][C::kQueryWords][rows of the pass]: one pointer serves the pass's loop
  float* scales;        // [rows] of the queries, as C::pack_query gave them
  float* accumulators;  // [rows][width]
  float* sums;          // [rows][16], lane by lane
  float* references;    // [rows] what probabilities are relative to, before Logits::factor
  float* limits;        // [rows] the score that moves the reference
  int32_t* positions;   // [rows]
  float* slopes;        // [rows], in base-2 units; as they are where the bias is rounded
};

// Where one block of keys and values lies. What nobody may read points at other keys, whose scores will be masked, and
// at zeros for values.
template <class C>
struct Block {
  int64_t first;  // key index
  const typename C::T* keys[kLines];
  int64_t key_stride;  // from one line to the next
  const typename C::T* values[kBlock / C::kPack];
  // Where the next block lies, to be fetched while this one is worked on: of this item, in its last block of the
  // thread's next one. Null where there is none.
  const typename C::T* next_keys[kLines];
  const typename C::T* next_values[kLines];
};

// How scores become powers of 2: 2^(factor * (score - reference)). Without softcap and ALiBi the factor is the scale and
// log2(e), and a score is the bare product; with them the scores are already in base-2 units and the factor is 1.
struct Logits {
  bool plain;
  float factor;
  float slack;  // kSlack / factor
  float scale;
  float softcap;  // 0: none
  int64_t window;  // 0: none
  bool bf16_alibi;  // AttentionArgs::alibi_bf16
};

// ---- one block for up to kRows rows ------------------------------------------------------------------------------

// A function of its own and unrolled by hand: otherwise gcc keeps the sums in memory at both ends of the loop.
template <class C, int R, int N, bool kPrefetch>
__attribute__((noinline)) void score_lines(const uint32_t* queries, const float* scales, int64_t lines,
                                           const Block<C>& block, int from, float (*out)[kBlock]) {
  typename C::Score acc[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) acc[r][j] = C::no_score();
  }
  const typename C::T* keys[N];
  for (int j = 0; j < N; ++j) keys[j] = block.keys[from + j];
  const int64_t stride = block.key_stride;
  for (int64_t i = 0, at = 0; i < lines; ++i, at += stride) {
    if constexpr (kPrefetch) {
      // Pages lie anywhere, which no hardware prefetcher foresees. Into the second-level cache: the first has too few
      // misses in flight at a time (decode takes 14 % longer with it).
#pragma GCC unroll 8
      for (int j = from; j < from + N; ++j) __builtin_prefetch(block.next_keys[j] + at, 0, 2);
    }
#pragma GCC unroll 2
    for (int part = 0; part < C::kQueryWords; ++part) {
      typename C::KeyLine line[N];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) line[j] = C::key_line(keys[j] + at, part);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        auto word = C::query_word(queries + (i * C::kQueryWords + part) * R + r);
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) acc[r][j] = C::dot_key(acc[r][j], line[j], word);
      }
    }
  }
  if constexpr (kPrefetch && C::kScaled) {
    for (int j = from; j < from + N; ++j) {
      __builtin_prefetch(block.next_keys[j] + lines * stride, 0, 2);
      __builtin_prefetch(block.next_keys[j] + (lines + 1) * stride, 0, 2);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      store(out[r] + 16 * (from + j), C::finish_score(acc[r][j], keys[j] + lines * stride, scales[r]));
    }
  }
}

// The first `lines` lines at least; a later one that no row sees is left as it is.
template <class C, int R>
OCTAVO_INLINE void scores(const Tile& tile, int64_t row, const Block<C>& block, int lines, float (*out)[kBlock]) {
  const uint32_t* queries = tile.queries + row * tile.lines * C::kQueryWords;
  const float* scales = tile.scales + row;
  for (int from = 0; from < kLines; from += kColumns) {
    if (row == 0) {
      score_lines<C, R, kColumns, true>(queries, scales, tile.lines, block, from, out);
    } else if (kColumns > 2 && lines - from <= 2) {
      score_lines<C, R, 2, false>(queries, scales, tile.lines, block, from, out);
    } else if (from < lines) {
      score_lines<C, R, kColumns, false>(queries, scales, tile.lines, block, from, out);
    }
  }
}

// slope * position as bfloat16 has it, both rounded before and the product after.
OCTAVO_INLINE float rounded_bias(float position, float slope) {
  return to_float(to_bf16(to_float(to_bf16(position)) * slope));
}
OCTAVO_INLINE Vec rounded_bias(Vec positions, float slope) {
  alignas(64) bf16 lanes[16];
  store(lanes, positions);
  store(lanes, load(lanes) * broadcast(slope));
  return load(lanes);
}

// Scores to probabilities, as words that meet value lines, and into the row's sum; returns their step. Moves the row's reference first, and
// rescales what it has gathered, if a score exceeds its limit. kBare: scores are the bare products, all of them seen.
template <class C, bool kBare>
OCTAVO_INLINE float softmax(const Tile& tile, int64_t row, const float* score, const Block<C>& block,
                            const Logits& logits, uint32_t* words) {
  const int64_t first_key = block.first;
  Vec x[kLines];
  for (int j = 0; j < kLines; ++j) x[j] = load(score + 16 * j);
  if (!kBare && !logits.plain) {
    // A masked lane may hold a NaN here; it is dropped below.
    alignas(64) static constexpr float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int j = 0; j < kLines; ++j) {
      x[j] = x[j] * broadcast(logits.scale);
      if (logits.softcap != 0.0f) x[j] = tanh(x[j] * broadcast(1.0f / logits.softcap)) * broadcast(logits.softcap);
      x[j] = x[j] * broadcast(kLog2e);
      if (__builtin_expect(logits.bf16_alibi, 0)) {
        const float own = rounded_bias(float(tile.positions[row]), tile.slopes[row]);
        const Vec bias = rounded_bias(load(lane) + broadcast(float(first_key + 16 * j)), tile.slopes[row]);
        x[j] = fma(bias - broadcast(own), broadcast(logits.scale * kLog2e), x[j]);
      } else {
        const Vec distance = load(lane) + broadcast(float(first_key + 16 * j - tile.positions[row]));
        x[j] = fma(distance, broadcast(tile.slopes[row]), x[j]);
      }
    }
  }
  if (!kBare) {
    const Vec never = broadcast(kMasked);
    const int64_t end = tile.positions[row] + 1 - first_key;
    const int64_t begin = logits.window ? end - logits.window : 0;
    for (int j = 0; j < kLines; ++j) {
      const int64_t last = end - 16 * j, skip = begin - 16 * j;
      x[j] = select(first_n(last < 0 ? 0 : last > 16 ? 16 : int(last)), x[j], never);
      x[j] = select(first_n(skip < 0 ? 0 : skip > 16 ? 16 : int(skip)), never, x[j]);
    }
  }
  const Vec highest = max(max(x[0], x[1]), max(x[2], x[3]));
  if (__builtin_expect(bits(broadcast(tile.limits[row]) < highest), 0)) {
    const float maximum = reduce_max(highest);
    const Vec rescale = C::exp2(broadcast((tile.references[row] - maximum) * logits.factor));
    tile.references[row] = maximum;
    tile.limits[row] = maximum + logits.slack;
    float* accumulators = tile.accumulators + row * tile.width;
    for (int64_t d = 0; d < tile.width; d += 16) store(accumulators + d, load(accumulators + d) * rescale);
    store(tile.sums + row * 16, load(tile.sums + row * 16) * rescale);
  }
  const Vec factor = broadcast(logits.factor), shift = broadcast(-tile.references[row] * logits.factor);
  Vec sum = load(tile.sums + row * 16);
  Vec value_scale[kLines];
  if constexpr (C::kScaled) {
    for (int j = 0; j < kLines; ++j) {
      value_scale[j] = load(reinterpret_cast<const float*>(block.keys[j] + (tile.lines + 1) * block.key_stride));
      // Of a key that the row doesn't see it may be anything.
      if (!kBare) value_scale[j] = select(x[j] == broadcast(kMasked), zero(), value_scale[j]);
    }
  }
  for (int j = 0; j < kLines; ++j) x[j] = C::exp2(fma(x[j], factor, shift));
  const float step = C::put_probabilities(words, x, value_scale, sum);
  store(tile.sums + row * 16, sum);
  return step;
}

// The next block's values that lie where this one's line i does.
template <class C>
OCTAVO_INLINE void prefetch_values(const Block<C>& block, int i, int64_t head_dim) {
  constexpr int kStep = 16 / C::kPack, kLine = 64 / sizeof(typename C::T);
  const typename C::T* next = block.next_values[i / kStep] + i % kStep * head_dim * C::kPack;
  for (int64_t d = 0; d < head_dim * C::kPack; d += kLine) __builtin_prefetch(next + d, 0, 2);
}

// accumulators[row.., column.. + 16 * N] += words . values
template <class C, int R, int N, bool kPartial, bool kPrefetch>
OCTAVO_INLINE void values(const Tile& tile, int64_t row, int64_t column, int last_lanes, const Block<C>& block,
                          const uint32_t (*words)[kBlock], const float* steps, int lines, int64_t head_dim) {
  float* accumulators = tile.accumulators + row * tile.width + column;
  typename C::Gather acc[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) acc[r][n] = C::begin(accumulators + r * tile.width + 16 * n);
  }
  constexpr int kStep = 16 / C::kPack;
  for (int i = 0; i < lines * kStep; ++i) {
    if constexpr (kPrefetch) prefetch_values<C>(block, i, head_dim);
    const typename C::T* value = block.values[i] + column * C::kPack;
    typename C::ValueLine line[N];
    for (int n = 0; n < N; ++n) {
      const bool partial = kPartial && n == N - 1;
      line[n] = partial ? value_line_n<C>(value + 16 * n * C::kPack, last_lanes)
                        : C::value_line(value + 16 * n * C::kPack);
    }
    for (int r = 0; r < R; ++r) {
      auto word = C::word(words[r] + i);
      for (int n = 0; n < N; ++n) acc[r][n] = C::dot_value(acc[r][n], line[n], word);
    }
  }
  if constexpr (kPrefetch) {
    for (int i = lines * kStep; i < kLines * kStep; ++i) prefetch_values<C>(block, i, head_dim);
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) C::end(accumulators + r * tile.width + 16 * n, acc[r][n], steps[r]);
  }
}

// Up to kRows rows that have their probabilities for a block and have not gathered its values yet.
template <class C>
struct Pass {
  const Block<C>* block;
  int64_t row;
  int rows, lines;  // lines of 16 keys that some row sees: the others' probabilities are +0
  float steps[kRows];
  alignas(64) uint32_t words[kRows][kBlock];
};

template <class C, int R = kRows>
OCTAVO_INLINE void score_pass(int rows, const Tile& tile, int64_t row, const Block<C>& block, int lines,
                              float (*score)[kBlock]) {
  if constexpr (R > 1) {
    if (rows < R) return score_pass<C, R - 1>(rows, tile, row, block, lines, score);
  }
  scores<C, R>(tile, row, block, lines, score);
}

template <class C, bool kBare>
__attribute__((noinline)) void weigh_pass(const Tile& tile, const float (*score)[kBlock], const Logits& logits,
                                          Pass<C>& pass) {
  for (int r = 0; r < pass.rows; ++r) {
    pass.steps[r] = softmax<C, kBare>(tile, pass.row + r, score[r], *pass.block, logits, pass.words[r]);
  }
}

template <class C, int R>
__attribute__((noinline)) void gather(const Tile& tile, const Pass<C>& pass, int64_t head_dim) {
  const auto& [block, row, rows, lines, steps, words] = pass;
  int64_t column = 0;
  if (row == 0 && column + 16 * kColumns <= head_dim) {
    values<C, R, kColumns, false, true>(tile, row, column, 16, *block, words, steps, lines, head_dim);
    column += 16 * kColumns;
  }
  for (; column + 16 * kColumns <= head_dim; column += 16 * kColumns) {
    values<C, R, kColumns, false, false>(tile, row, column, 16, *block, words, steps, lines, head_dim);
  }
  for (; column + 16 <= head_dim; column += 16) {
    values<C, R, 1, false, false>(tile, row, column, 16, *block, words, steps, lines, head_dim);
  }
  if (column < head_dim) {
    values<C, R, 1, true, false>(tile, row, column, int(head_dim - column), *block, words, steps, lines, head_dim);
  }
}

template <class C, int R = kRows>
OCTAVO_INLINE void gather_pass(const Tile& tile, const Pass<C>& pass, int64_t head_dim) {
  if constexpr (R > 1) {
    if (pass.rows < R) return gather_pass<C, R - 1>(tile, pass, head_dim);
  }
  gather<C, R>(tile, pass, head_dim);
}

// ---- one item ----------------------------------------------------------------------------------------------------

// Rows of the next pass when `left` remain. They are split evenly: 8 as 4 + 4 keeps more sums in flight than 6 + 2.
OCTAVO_INLINE int pass_rows(int64_t left) {
  const int64_t passes = (left + kRows - 1) / kRows;
  return int((left + passes - 1) / passes);
}

template <class C>
OCTAVO_INLINE void load_queries(const AttentionArgs& a, const Sequence& sequence, const Tile& tile, int64_t head,
                                int64_t first) {
  const int64_t group = a.num_heads / a.num_kv_heads;
  for (int64_t pass = 0, rows; pass < tile.rows; pass += rows) {
    rows = pass_rows(tile.rows - pass);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = pass + r, t = row / group, query_head = head * group + row % group;
      const int64_t from = (sequence.first_row + first + t) * a.query_stride + query_head * a.head_dim;
      alignas(64) float q[256];
      for (int64_t d = 0; d < a.head_dim; d += 16) {
        const int n = a.head_dim - d < 16 ? int(a.head_dim - d) : 16;
        store(q + d, a.query_type == DType::kBFloat16 ? load_n(static_cast<const bf16*>(a.queries) + from + d, n)
                                                      : load_n(static_cast<const float*>(a.queries) + from + d, n));
      }
      alignas(64) uint32_t words[256];
      tile.scales[row] = C::pack_query(q, a.head_dim, words);
      uint32_t* to = tile.queries + pass * tile.lines * C::kQueryWords + r;
      for (int64_t i = 0; i < tile.lines * C::kQueryWords; ++i) to[i * rows] = words[i];
      tile.references[row] = tile.limits[row] = kNone;
      tile.positions[row] = int32_t(sequence.first_position + first + t);
      tile.slopes[row] = a.alibi_slopes ? a.alibi_slopes[query_head] * kLog2e : 0.0f;
      if (a.alibi_bf16) tile.slopes[row] = to_float(a.alibi_bf16[query_head]);
    }
  }
  for (int64_t i = 0; i < tile.rows * tile.width; ++i) tile.accumulators[i] = 0.0f;
  for (int64_t i = 0; i < tile.rows * 16; ++i) tile.sums[i] = 0.0f;
}

// Where 16 keys and their values begin, in elements of the cache.
struct Place {
  int64_t key, value;
};
template <class C>
OCTAVO_INLINE Place place_of(const AttentionArgs& a, const Sequence& sequence, int64_t head, int64_t key) {
  const int64_t page = key / a.page_size, offset = key - page * a.page_size;
  const int64_t at = int64_t(sequence.pages[page]) * a.num_kv_heads + head;
  const int64_t key_width = a.head_dim + (C::kScaled ? 2 * C::kPack : 0);
  return {at * a.page_size * key_width + offset * C::kPack, at * a.page_size * a.head_dim + offset * a.head_dim};
}

// Points at the block's lines. Keys in [begin, end) may be read: some row of the item sees each of them. A pair of
// values with one token inside and one outside is copied with zeros in place of the latter.
template <class C>
OCTAVO_INLINE void find_block(const AttentionArgs& a, const Sequence& sequence, int64_t head, int64_t first, int64_t begin,
                              int64_t end, const typename C::T* zeros, typename C::T (*mended)[512], Block<C>& block) {
  using T = typename C::T;
  const T *keys = static_cast<const T*>(a.keys), *values = static_cast<const T*>(a.values);
  block.first = first;
  block.key_stride = a.page_size * C::kPack;
  const T* seen = nullptr;
  for (int line = 0; line < kLines; ++line) {
    const T** lines = block.values + line * (16 / C::kPack);
    const int64_t key = first + 16 * line;
    if (key >= end || key + 16 <= begin) {
      block.keys[line] = nullptr;
      for (int i = 0; i < 16 / C::kPack; ++i) lines[i] = zeros;
      continue;
    }
    const Place place = place_of<C>(a, sequence, head, key);
    block.keys[line] = keys + place.key;
    seen = block.keys[line];
    for (int i = 0; i < 16 / C::kPack; ++i) lines[i] = values + place.value + i * a.head_dim * C::kPack;
    // Finite values of keys that nobody sees meet probabilities of zero.
    if (C::kScaled || (key >= begin && key + 16 <= end)) continue;
    for (int i = 0; i < 16 / C::kPack; ++i) {
      const int64_t token = key + i * C::kPack, last = token + C::kPack - 1;
      const bool low = token >= begin && token < end, high = last >= begin && last < end;
      if (low != high) {
        T* copy = mended[low];
        for (int64_t d = 0; d < a.head_dim; ++d) {
          copy[2 * d] = low ? lines[i][2 * d] : T{};
          copy[2 * d + 1] = high ? lines[i][2 * d + 1] : T{};
        }
        lines[i] = copy;
      } else if (!low) {
        lines[i] = zeros;
      }
    }
  }
  for (int line = 0; line < kLines; ++line) {
    if (!block.keys[line]) block.keys[line] = seen;
  }
}

// Says where the block lies that follows: the keys from `first` on, of this item or the next.
template <class C>
OCTAVO_INLINE void find_next(const AttentionArgs& a, const Sequence& sequence, int64_t head, int64_t first, int64_t end,
                             Block<C>& block) {
  using T = typename C::T;
  for (int line = 0; line < kLines; ++line) {
    const int64_t key = first + 16 * line;
    if (key >= end) {  // what is here already costs nothing
      block.next_keys[line] = block.keys[line];
      block.next_values[line] = block.values[line * (16 / C::kPack)];
      continue;
    }
    const Place place = place_of<C>(a, sequence, head, key);
    block.next_keys[line] = static_cast<const T*>(a.keys) + place.key;
    block.next_values[line] = static_cast<const T*>(a.values) + place.value;
  }
}

OCTAVO_INLINE void store_rows(const AttentionArgs& a, const Sequence& sequence, const Tile& tile, int64_t head,
                              int64_t first) {
  const int64_t group = a.num_heads / a.num_kv_heads;
  for (int64_t row = 0; row < tile.rows; ++row) {
    const Vec inverse = broadcast(1.0f / reduce_add(load(tile.sums + row * 16)));
    const int64_t token = sequence.first_row + first + row / group, query_head = head * group + row % group;
    const int64_t to = (token * a.num_heads + query_head) * a.head_dim;
    for (int64_t d = 0; d < a.head_dim; d += 16) {
      const Vec y = load(tile.accumulators + row * tile.width + d) * inverse;
      const int n = a.head_dim - d < 16 ? int(a.head_dim - d) : 16;
      if (a.query_type == DType::kBFloat16) {
        store_n(static_cast<bf16*>(a.out) + to + d, y, n);
      } else {
        store_n(static_cast<float*>(a.out) + to + d, y, n);
      }
    }
  }
}

// What a thread takes next: one key-value head of a sequence, a tile of query tokens.
struct Item {
  Sequence sequence;
  int64_t head;
  int64_t first, tokens;  // of the sequence's query tokens
  int64_t begin, end;     // the keys that some row sees
};

template <class C>
void run_item(const AttentionArgs& a, const Item& item, const Item* following, const Tile& tile) {
  alignas(64) static const typename C::T zeros[256 * C::kPack] = {};
  alignas(64) typename C::T mended[2][2][512];
  const auto& [sequence, head, first, tokens, begin, end] = item;
  load_queries<C>(a, sequence, tile, head, first);
  const bool plain = a.softcap == 0.0f && !a.alibi_slopes && !a.alibi_bf16 && a.scale > 0.0f;
  const float factor = plain ? a.scale * kLog2e : 1.0f;
  const Logits logits{plain, factor, kSlack / factor, a.scale, a.softcap, a.sliding_window,
                      a.alibi_bf16 != nullptr};
  // A pass's values are gathered behind the next one's scores: neither waits for what comes just before it, so the
  // softmax between them costs its arithmetic alone.
  Block<C> blocks[2];
  alignas(64) float score[kRows][kBlock];
  Pass<C> pass;
  pass.rows = 0;
  int turn = 0;
  for (int64_t key = begin / kBlock * kBlock; key < end; key += kBlock, turn ^= 1) {
    Block<C>& block = blocks[turn];
    find_block<C>(a, sequence, head, key, begin, end, zeros, mended[turn], block);
    if (key + kBlock < end || !following) {
      find_next<C>(a, sequence, head, key + kBlock, end, block);
    } else {
      find_next<C>(a, following->sequence, following->head, following->begin / kBlock * kBlock, following->end, block);
    }
    for (int64_t row = 0, rows; row < tile.rows; row += rows) {
      rows = pass_rows(tile.rows - row);
      const int64_t low = tile.positions[row], high = tile.positions[row + rows - 1];
      const bool unseen = key > high || (a.sliding_window && key + kBlock - 1 <= low - a.sliding_window);
      if (unseen) continue;
      const bool whole = key + kBlock - 1 <= low && (!a.sliding_window || key > high - a.sliding_window);
      const int64_t seen = (high - key) / 16 + 1;
      const int lines = seen < kLines ? int(seen) : kLines;
      score_pass<C>(int(rows), tile, row, block, lines, score);
      if (pass.rows) gather_pass<C>(tile, pass, a.head_dim);
      pass.block = &block;
      pass.row = row;
      pass.rows = int(rows);
      pass.lines = lines;
      if (plain && whole) {
        weigh_pass<C, true>(tile, score, logits, pass);
      } else {
        weigh_pass<C, false>(tile, score, logits, pass);
      }
    }
  }
  gather_pass<C>(tile, pass, a.head_dim);
  store_rows(a, sequence, tile, head, first);
}

// ---- the batch ---------------------------------------------------------------------------------------------------

// A tile of one sequence's query tokens; every key-value head of it is an item.
struct Unit {
  int32_t sequence;
  int32_t first;
};

struct Job {
  const AttentionArgs& args;
  int64_t tile_tokens, num_units, scratch_bytes;
  Unit* units;  // most expensive first
  char* own_scratch;  // of the calling thread, which is part 0
  int64_t next;
};

OCTAVO_INLINE int64_t unit_tokens(const AttentionArgs& a, const Job& job, Unit unit) {
  const int64_t left = a.query_start[unit.sequence + 1] - a.query_start[unit.sequence] - unit.first;
  return left < job.tile_tokens ? left : job.tile_tokens;
}

template <class C>
OCTAVO_INLINE Tile carve(const AttentionArgs& a, int64_t rows, char* memory) {
  Tile tile;
  tile.rows = rows;
  tile.lines = a.head_dim / C::kPack;
  tile.width = (a.head_dim + 15) / 16 * 16;
  auto take = [&memory](int64_t bytes) {
    char* start = memory;
    memory += (bytes + 63) / 64 * 64;
    return start;
  };
  tile.accumulators = reinterpret_cast<float*>(take(rows * tile.width * 4));
  tile.sums = reinterpret_cast<float*>(take(rows * 64));
  tile.queries = reinterpret_cast<uint32_t*>(take(rows * tile.lines * C::kQueryWords * 4));
  tile.scales = reinterpret_cast<float*>(take(rows * 4));
  tile.references = reinterpret_cast<float*>(take(rows * 4));
  tile.limits = reinterpret_cast<float*>(take(rows * 4));
  tile.positions = reinterpret_cast<int32_t*>(take(rows * 4));
  tile.slopes = reinterpret_cast<float*>(take(rows * 4));
  return tile;
}

// The next item of the list, false when there is none. Which thread takes an item changes nothing in it, so the order
// may follow the clock.
OCTAVO_INLINE bool take_item(const AttentionArgs& a, Job& job, Item& item) {
  const int64_t index = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
  if (index >= job.num_units * a.num_kv_heads) return false;
  const Unit unit = job.units[index / a.num_kv_heads];
  const int64_t start = a.query_start[unit.sequence], queries = a.query_start[unit.sequence + 1] - start;
  const int64_t length = a.seq_lens[unit.sequence], position = length - queries + unit.first;
  item.sequence = {a.page_table + unit.sequence * a.max_pages, length, start, length - queries};
  item.head = index % a.num_kv_heads;
  item.first = unit.first;
  item.tokens = unit_tokens(a, job, unit);
  item.begin = a.sliding_window && position >= a.sliding_window ? position - a.sliding_window + 1 : 0;
  item.end = position + item.tokens;
  return true;
}

template <class C>
void run_part(void* context, int part, int) {
  Job& job = *static_cast<Job*>(context);
  const AttentionArgs& a = job.args;
  char* scratch = part == 0 ? job.own_scratch : nullptr;
  // Items are taken one ahead, so that the end of one can fetch the beginning of the next.
  Item items[2];
  bool taken = take_item(a, job, items[0]);
  for (int i = 0; taken; i ^= 1) {
    taken = take_item(a, job, items[i ^ 1]);
    if (!scratch) scratch = static_cast<char*>(thread_scratch(size_t(job.scratch_bytes)));
    const Tile tile = carve<C>(a, items[i].tokens * (a.num_heads / a.num_kv_heads), scratch);
    run_item<C>(a, items[i], taken ? &items[i ^ 1] : nullptr, tile);
  }
}

// Half-octaves of the work in a unit: fine enough to hand out the long ones first, and sorts in one pass.
OCTAVO_INLINE int cost_class(const AttentionArgs& a, const Job& job, Unit unit) {
  const int64_t tokens = unit_tokens(a, job, unit);
  const int64_t queries = a.query_start[unit.sequence + 1] - a.query_start[unit.sequence];
  int64_t keys = a.seq_lens[unit.sequence] - queries + unit.first + tokens;
  if (a.sliding_window && keys > a.sliding_window + tokens) keys = a.sliding_window + tokens;
  const uint64_t cost = uint64_t(tokens * keys) * 2 + 2;
  const int octave = 63 - __builtin_clzll(cost);
  return 2 * octave + int(cost >> (octave - 1) & 1);
}

template <class C>
void run_batch(const AttentionArgs& a) {
  const int64_t group = a.num_heads / a.num_kv_heads, width = (a.head_dim + 15) / 16 * 16;
  int64_t tile_tokens = kTileFloats / (width * group);
  if (tile_tokens < 1) tile_tokens = 1;
  Job job{a, tile_tokens, 0, 0, nullptr, nullptr, 0};
  for (int64_t s = 0; s < a.num_seqs; ++s) {
    job.num_units += (a.query_start[s + 1] - a.query_start[s] + tile_tokens - 1) / tile_tokens;
  }
  if (job.num_units == 0) return;
  const int64_t rows = tile_tokens * group;
  job.scratch_bytes = rows * (width * 4 + 64 + a.head_dim * 4 + 20) + 8 * 64;
  const int64_t list_bytes = (job.num_units * int64_t(sizeof(Unit)) + 63) / 64 * 64;
  char* memory = static_cast<char*>(thread_scratch(size_t(list_bytes + job.scratch_bytes)));
  job.units = reinterpret_cast<Unit*>(memory);
  job.own_scratch = memory + list_bytes;

  int64_t place[128] = {};
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 1) {
      int64_t before = 0;
      for (int c = 127; c >= 0; --c) {
        const int64_t count = place[c];
        place[c] = before;
        before += count;
      }
    }
    for (int64_t s = 0; s < a.num_seqs; ++s) {
      for (int64_t t = 0; t < a.query_start[s + 1] - a.query_start[s]; t += tile_tokens) {
        const Unit unit{int32_t(s), int32_t(t)};
        int64_t& at = place[cost_class(a, job, unit)];
        if (pass == 1) job.units[at] = unit;
        ++at;
      }
    }
  }
  const int64_t items = job.num_units * a.num_kv_heads;
  const int parts = items < num_threads() ? int(items) : num_threads();
  fork_join(parts, run_part<C>, &job);
}

void paged_attention(const AttentionArgs& args) {
  switch (args.cache_type) {
    case CacheType::kFloat32: return run_batch<FloatCache>(args);
    case CacheType::kBFloat16: return run_batch<BFloatCache>(args);
    case CacheType::kFloat16: return run_batch<HalfCache>(args);
    case CacheType::kInt8: return run_batch<Int8Cache>(args);
    case CacheType::kFloat8: return;  // of CUDA alone: the binding lets none through
  }
}

}  // namespace

const AttentionKernels attention_kernels = {paged_attention};

}  // namespace octavo::OCTAVO_ISA
