// Paged attention, prefill and decode alike (arXiv 2309.06180, with the online softmax of arXiv 1805.02867).
//
// A work item is one key-value head of one sequence and a tile of its query tokens. The query heads that share
// the key-value head, times the tokens, are the rows of a small matrix product. The item walks the keys in blocks of
// 32, from the first block it can see to the last, always cut at multiples of 32 counted from key 0:
//
//   scores   lanes over 16 keys, two lines; a line of the cache holds the next 4 bytes of D of 16 keys, so one
//            broadcast word of the query and one line make 16 (bfloat16: 32) products
//   softmax  in base 2; the row's maximum, and with it the rescale, moves only when a key exceeds it
//   values   lanes over D; a line holds the next 4 bytes of tokens of 16 dims, one broadcast word of the
//            probabilities serves it: the same product again
//
// What a row computes depends on its own sequence alone (law 6): blocks and their order are fixed, every sum runs
// through the same operations in the same order whatever the number of rows beside it, and a masked key has
// probability +0 against a value that is never read from a slot that no row of the item sees. So a block that a row
// doesn't see changes nothing in it, and whether it is visited doesn't matter.
#include "octavo/kernels_attention.h"

#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int kBlock = 32;  // keys a step
constexpr float kLog2e = 1.44269504f;
// A score that no key has, and one that even that one outweighs by more than 2^x can show: finite, so that nothing
// made of them is a NaN.
constexpr float kNone = -1e30f, kMasked = -1e37f;
// Rows and 16-lane columns whose accumulators stay in registers.
#if defined(OCTAVO_ISA_AVX512)
constexpr int kRows = 6, kColumns = 4;
#elif defined(OCTAVO_ISA_AVX2)
constexpr int kRows = 3, kColumns = 2;
#else
constexpr int kRows = 2, kColumns = 2;
#endif
// Rows of an item: their accumulators and the block's keys and values share the first-level cache.
constexpr int64_t kTileFloats = 48 * 64;

// ---- the three cache types: a 64-byte line (f16: 32) of 16 lanes, and the word that meets it -------------------

struct FloatCache {
  using T = float;
  using Line = Vec;
  using Word = Vec;
  static constexpr int kPack = 1;
  OCTAVO_INLINE Line line(const T* p) { return load(p); }
  OCTAVO_INLINE Word word(const uint32_t* p) { return broadcast(from_bits(*p)); }
  OCTAVO_INLINE Vec dot(Vec acc, Line line, Word word) { return fma(word, line, acc); }
  OCTAVO_INLINE void put(uint32_t* words, Vec v) { store(reinterpret_cast<float*>(words), v); }
  OCTAVO_INLINE Vec add(Vec acc, const uint32_t* words) {
    auto* p = reinterpret_cast<const float*>(words);
    return acc + load(p) + load(p + 16);
  }
};

struct HalfCache : FloatCache {
  using T = f16;
  OCTAVO_INLINE Line line(const T* p) { return load(p); }
};

struct BFloatCache {
  using T = bf16;
  using Line = Pairs;
  using Word = PairBroadcast;
  static constexpr int kPack = 2;
  OCTAVO_INLINE Line line(const T* p) { return load_pairs(p); }
  OCTAVO_INLINE Word word(const uint32_t* p) { return broadcast_pair(reinterpret_cast<const bf16*>(p)); }
  OCTAVO_INLINE Vec dot(Vec acc, Line line, Word word) { return dot2_bf16(acc, line, word); }
  OCTAVO_INLINE void put(uint32_t* words, Vec v) { store(reinterpret_cast<bf16*>(words), v); }
  OCTAVO_INLINE Vec add(Vec acc, const uint32_t* words) {
    return dot2_bf16(acc, load_pairs(reinterpret_cast<const bf16*>(words)), broadcast_pair(bf16{0x3f80}, bf16{0x3f80}));
  }
};

// A line's first n lanes, for head sizes that don't fill the last one.
template <class C>
OCTAVO_INLINE typename C::Line line_n(const typename C::T* p, int n) {
  alignas(64) typename C::T buffer[16 * C::kPack] = {};
  for (int i = 0; i < n * C::kPack; ++i) buffer[i] = p[i];
  return C::line(buffer);
}

// 2^x within 2e-7 for x up to a little above 0; 0 far below. The polynomial is a minimax fit on [-1/2, 1/2].
OCTAVO_INLINE Vec exp2_down(Vec x) {
#if !defined(OCTAVO_ISA_AVX512)  // whose scale_by_power takes any exponent
  x = max(broadcast(-200.0f), x);
#endif
  const Vec n = round(x), r = x - n;
  Vec p = broadcast(1.32764701e-3f);
  p = fma(p, r, broadcast(9.67554096e-3f));
  p = fma(p, r, broadcast(5.55071309e-2f));
  p = fma(p, r, broadcast(2.40221202e-1f));
  p = fma(p, r, broadcast(6.93146944e-1f));
  p = fma(p, r, broadcast(1.0f));
  return scale_by_power(p, n);
}

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
  int64_t words;        // 32-bit words of one query row
  int64_t width;        // head_dim rounded up to 16
  uint32_t* queries;    // pass by pass [words][rows of the pass]: one pointer serves the pass's loop
  float* accumulators;  // [rows][width]
  float* sums;          // [rows][16], lane by lane
  float* maxima;        // [rows], before Logits::factor
  int32_t* positions;   // [rows]
  float* slopes;        // [rows], in base-2 units
};

// Where one block of keys and values lies. Slots that nobody may read point at zeros.
template <class C>
struct Block {
  int64_t first;  // key index
  const typename C::T* keys[2];
  int64_t key_stride[2];  // from one word of D to the next
  const typename C::T* values[kBlock / C::kPack];
  // The same of the next block, to be fetched while this one is worked on; null in an item's last block.
  const typename C::T* next_keys[2];
  const typename C::T* next_values[2];
};

// How scores become powers of 2: 2^(factor * (score - maximum)). Without softcap and ALiBi the factor is the scale and
// log2(e), and a score is the bare product; with them the scores are already in base-2 units and the factor is 1.
struct Logits {
  bool plain;
  float factor;
  float scale;
  float softcap;  // 0: none
  int64_t window;  // 0: none
};

// ---- one block for up to kRows rows ------------------------------------------------------------------------------

template <class C, int R>
OCTAVO_INLINE void scores(const Tile& tile, int64_t row, const Block<C>& block, bool prefetch,
                          float (*out)[kBlock]) {
  Vec acc[R][2];
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = zero();
  const uint32_t* queries = tile.queries + row * tile.words;
  const typename C::T *k0 = block.keys[0], *k1 = block.keys[1];
  // Pages lie anywhere, which no hardware prefetcher foresees.
  const int64_t next_stride = block.key_stride[0], value_line = 64 / sizeof(typename C::T);
  const typename C::T *n0 = block.next_keys[0], *n1 = block.next_keys[1];
  const typename C::T *v0 = block.next_values[0], *v1 = block.next_values[1];
  const int64_t fetched = prefetch && n0 ? tile.words : 0;
  for (int64_t i = 0; i < tile.words; ++i) {
    if (i < fetched) {
      __builtin_prefetch(n0 + i * next_stride);
      __builtin_prefetch(v0 + i * value_line);
      if (n1) {
        __builtin_prefetch(n1 + i * next_stride);
        __builtin_prefetch(v1 + i * value_line);
      }
    }
    auto line0 = C::line(k0), line1 = C::line(k1);
    k0 += block.key_stride[0];
    k1 += block.key_stride[1];
    for (int r = 0; r < R; ++r) {
      auto word = C::word(queries + i * R + r);
      acc[r][0] = C::dot(acc[r][0], line0, word);
      acc[r][1] = C::dot(acc[r][1], line1, word);
    }
  }
  for (int r = 0; r < R; ++r) {
    store(out[r], acc[r][0]);
    store(out[r] + 16, acc[r][1]);
  }
}

// Scores to probabilities, as words that meet value lines; returns the factor for what the row has gathered so far.
template <class C>
OCTAVO_INLINE float softmax(const Tile& tile, int64_t row, const float* score, int64_t first_key, const Logits& logits,
                            bool masked, uint32_t* words) {
  Vec x[2] = {load(score), load(score + 16)};
  const int64_t position = tile.positions[row];
  if (!logits.plain) {
    // A masked lane may hold a NaN here; it is dropped below.
    alignas(64) static constexpr float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int j = 0; j < 2; ++j) {
      x[j] = x[j] * broadcast(logits.scale);
      if (logits.softcap != 0.0f) x[j] = tanh(x[j] * broadcast(1.0f / logits.softcap)) * broadcast(logits.softcap);
      x[j] = x[j] * broadcast(kLog2e);
      const Vec distance = load(lane) + broadcast(float(first_key + 16 * j - position));
      x[j] = fma(distance, broadcast(tile.slopes[row]), x[j]);
    }
  }
  if (masked) {
    const Vec never = broadcast(kMasked);
    const int64_t end = position + 1 - first_key;
    const int64_t begin = logits.window ? end - logits.window : 0;
    for (int j = 0; j < 2; ++j) {
      const int64_t last = end - 16 * j, skip = begin - 16 * j;
      x[j] = select(first_n(last < 0 ? 0 : last > 16 ? 16 : int(last)), x[j], never);
      x[j] = select(first_n(skip < 0 ? 0 : skip > 16 ? 16 : int(skip)), never, x[j]);
    }
  }
  float rescale = 1.0f;
  const Vec highest = max(x[0], x[1]);
  if (bits(broadcast(tile.maxima[row]) < highest)) {
    const float maximum = reduce_max(highest);
    alignas(64) float lanes[16];
    store(lanes, exp2_down(broadcast((tile.maxima[row] - maximum) * logits.factor)));
    rescale = lanes[0];
    tile.maxima[row] = maximum;
  }
  const Vec factor = broadcast(logits.factor), shift = broadcast(-tile.maxima[row] * logits.factor);
  C::put(words, exp2_down(fma(x[0], factor, shift)));
  C::put(words + 16 / C::kPack, exp2_down(fma(x[1], factor, shift)));
  return rescale;
}

// The row's sum takes the probabilities as they will multiply the values, rounded to the cache's type.
template <class C>
OCTAVO_INLINE void add_to_sum(const Tile& tile, int64_t row, float factor, const uint32_t* words) {
  const Vec sum = C::add(load(tile.sums + row * 16) * broadcast(factor), words);
  store(tile.sums + row * 16, sum);
}

// accumulators[row.., column.. + 16 * N] = factor * accumulators + words . values
template <class C, int R, int N, bool kPartial>
OCTAVO_INLINE void values(const Tile& tile, int64_t row, int64_t column, int last_lanes, const Block<C>& block,
                          const uint32_t (*words)[kBlock], const float* factors) {
  float* accumulators = tile.accumulators + row * tile.width + column;
  Vec acc[R][N];
  for (int r = 0; r < R; ++r) {
    const Vec factor = broadcast(factors[r]);
    for (int n = 0; n < N; ++n) acc[r][n] = load(accumulators + r * tile.width + 16 * n) * factor;
  }
  for (int i = 0; i < kBlock / C::kPack; ++i) {
    const typename C::T* value = block.values[i] + column * C::kPack;
    typename C::Line line[N];
    for (int n = 0; n < N; ++n) {
      const bool partial = kPartial && n == N - 1;
      line[n] = partial ? line_n<C>(value + 16 * n * C::kPack, last_lanes) : C::line(value + 16 * n * C::kPack);
    }
    for (int r = 0; r < R; ++r) {
      auto word = C::word(words[r] + i);
      for (int n = 0; n < N; ++n) acc[r][n] = C::dot(acc[r][n], line[n], word);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) store(accumulators + r * tile.width + 16 * n, acc[r][n]);
  }
}

template <class C, int R>
__attribute__((noinline)) void block_rows(const Tile& tile, int64_t row, const Block<C>& block, const Logits& logits,
                                          bool masked, int64_t head_dim) {
  alignas(64) float score[R][kBlock];
  alignas(64) uint32_t words[R][kBlock];
  float factors[R];
  scores<C, R>(tile, row, block, row == 0, score);
  for (int r = 0; r < R; ++r) factors[r] = softmax<C>(tile, row + r, score[r], block.first, logits, masked, words[r]);
  int64_t column = 0;
  for (; column + 16 * kColumns <= head_dim; column += 16 * kColumns) {
    values<C, R, kColumns, false>(tile, row, column, 16, block, words, factors);
  }
  for (; column + 16 <= head_dim; column += 16) values<C, R, 1, false>(tile, row, column, 16, block, words, factors);
  if (column < head_dim) values<C, R, 1, true>(tile, row, column, int(head_dim - column), block, words, factors);
  for (int r = 0; r < R; ++r) add_to_sum<C>(tile, row + r, factors[r], words[r]);
}

template <class C, int R = kRows>
OCTAVO_INLINE void block_rows_n(int rows, const Tile& tile, int64_t row, const Block<C>& block, const Logits& logits,
                                bool masked, int64_t head_dim) {
  if constexpr (R > 1) {
    if (rows < R) return block_rows_n<C, R - 1>(rows, tile, row, block, logits, masked, head_dim);
  }
  block_rows<C, R>(tile, row, block, logits, masked, head_dim);
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
      alignas(64) uint32_t words[256];
      for (int64_t d = 0; d < a.head_dim; d += 16) {
        const int n = a.head_dim - d < 16 ? int(a.head_dim - d) : 16;
        const Vec q = a.query_type == DType::kBFloat16 ? load_n(static_cast<const bf16*>(a.queries) + from + d, n)
                                                       : load_n(static_cast<const float*>(a.queries) + from + d, n);
        C::put(words + d / C::kPack, q);
      }
      uint32_t* to = tile.queries + pass * tile.words + r;
      for (int64_t i = 0; i < tile.words; ++i) to[i * rows] = words[i];
      tile.maxima[row] = kNone;
      tile.positions[row] = int32_t(sequence.first_position + first + t);
      tile.slopes[row] = a.alibi_slopes ? a.alibi_slopes[query_head] * kLog2e : 0.0f;
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
  const int64_t base = (int64_t(sequence.pages[page]) * a.num_kv_heads + head) * a.page_size * a.head_dim;
  return {base + offset * C::kPack, base + offset * a.head_dim};
}

// Points at the block's lines. Keys in [begin, end) may be read: some row of the item sees each of them. A pair of
// values with one token inside and one outside is copied with zeros in place of the latter.
template <class C>
OCTAVO_INLINE void find_block(const AttentionArgs& a, const Sequence& sequence, int64_t head, int64_t first, int64_t begin,
                              int64_t end, const typename C::T* zeros, typename C::T (*mended)[512], Block<C>& block) {
  using T = typename C::T;
  const T *keys = static_cast<const T*>(a.keys), *values = static_cast<const T*>(a.values);
  block.first = first;
  for (int half = 0; half < 2; ++half) {
    const T** lines = block.values + half * (16 / C::kPack);
    const int64_t key = first + 16 * half, next = key + kBlock;
    block.next_keys[half] = nullptr;
    if (next < end) {
      const Place place = place_of<C>(a, sequence, head, next);
      block.next_keys[half] = keys + place.key;
      block.next_values[half] = values + place.value;
    }
    if (key >= end || key + 16 <= begin) {
      block.keys[half] = zeros;
      block.key_stride[half] = 0;
      for (int i = 0; i < 16 / C::kPack; ++i) lines[i] = zeros;
      continue;
    }
    const Place place = place_of<C>(a, sequence, head, key);
    block.keys[half] = keys + place.key;
    block.key_stride[half] = a.page_size * C::kPack;
    for (int i = 0; i < 16 / C::kPack; ++i) lines[i] = values + place.value + i * a.head_dim * C::kPack;
    if (key >= begin && key + 16 <= end) continue;
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

template <class C>
void run_item(const AttentionArgs& a, const Sequence& sequence, const Tile& tile, int64_t head, int64_t first,
              int64_t tokens) {
  alignas(64) static const typename C::T zeros[512] = {};
  alignas(64) typename C::T mended[2][512];
  load_queries<C>(a, sequence, tile, head, first);
  const bool plain = a.softcap == 0.0f && !a.alibi_slopes && a.scale > 0.0f;
  const Logits logits{plain, plain ? a.scale * kLog2e : 1.0f, a.scale, a.softcap, a.sliding_window};
  const int64_t first_position = sequence.first_position + first;
  const int64_t end = first_position + tokens;
  const int64_t begin = a.sliding_window && first_position >= a.sliding_window ? first_position - a.sliding_window + 1 : 0;
  Block<C> block;
  for (int64_t key = begin / kBlock * kBlock; key < end; key += kBlock) {
    find_block<C>(a, sequence, head, key, begin, end, zeros, mended, block);
    for (int64_t row = 0; row < tile.rows;) {
      const int rows = pass_rows(tile.rows - row);
      const int64_t low = tile.positions[row], high = tile.positions[row + rows - 1];
      const bool unseen = key > high || (a.sliding_window && key + kBlock - 1 <= low - a.sliding_window);
      const bool whole = key + kBlock - 1 <= low && (!a.sliding_window || key > high - a.sliding_window);
      if (!unseen) block_rows_n<C>(rows, tile, row, block, logits, !whole, a.head_dim);
      row += rows;
    }
  }
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
  tile.words = a.head_dim / C::kPack;
  tile.width = (a.head_dim + 15) / 16 * 16;
  auto take = [&memory](int64_t bytes) {
    char* start = memory;
    memory += (bytes + 63) / 64 * 64;
    return start;
  };
  tile.accumulators = reinterpret_cast<float*>(take(rows * tile.width * 4));
  tile.sums = reinterpret_cast<float*>(take(rows * 64));
  tile.queries = reinterpret_cast<uint32_t*>(take(rows * tile.words * 4));
  tile.maxima = reinterpret_cast<float*>(take(rows * 4));
  tile.positions = reinterpret_cast<int32_t*>(take(rows * 4));
  tile.slopes = reinterpret_cast<float*>(take(rows * 4));
  return tile;
}

template <class C>
void run_part(void* context, int part, int) {
  Job& job = *static_cast<Job*>(context);
  const AttentionArgs& a = job.args;
  char* scratch = part == 0 ? job.own_scratch : nullptr;
  for (;;) {
    // Which thread takes an item changes nothing in it, so the order may follow the clock.
    const int64_t item = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
    if (item >= job.num_units * a.num_kv_heads) return;
    if (!scratch) scratch = static_cast<char*>(thread_scratch(size_t(job.scratch_bytes)));
    const Unit unit = job.units[item / a.num_kv_heads];
    const int64_t start = a.query_start[unit.sequence], queries = a.query_start[unit.sequence + 1] - start;
    const int64_t length = a.seq_lens[unit.sequence];
    const Sequence sequence{a.page_table + unit.sequence * a.max_pages, length, start, length - queries};
    const int64_t tokens = unit_tokens(a, job, unit);
    const Tile tile = carve<C>(a, tokens * (a.num_heads / a.num_kv_heads), scratch);
    run_item<C>(a, sequence, tile, item % a.num_kv_heads, unit.first, tokens);
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
  job.scratch_bytes = rows * (width * 4 + 64 + a.head_dim * 4 + 12) + 6 * 64;
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
    case DType::kFloat32: return run_batch<FloatCache>(args);
    case DType::kBFloat16: return run_batch<BFloatCache>(args);
    case DType::kFloat16: return run_batch<HalfCache>(args);
  }
}

}  // namespace

const AttentionKernels attention_kernels = {paged_attention};

}  // namespace octavo::OCTAVO_ISA
