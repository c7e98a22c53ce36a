// Products of 4 and 8 bit weights with activations in int8: one scale for each 32 elements of a row (Activations.INT8),
// or one a row (LLM_INT8).
//
// Law 6: a row is quantised by itself; its product with an output is one float32 chain over the blocks of K, in order,
// whose terms are exact int32 sums, whatever rows share the tile and however panels are split between threads.
#include "octavo/kernels_quantized.h"
#include "octavo/linear_output.h"
#include "octavo/simd_int8.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

// Rows of a tile: R by 32 int32 sums, the weights and a broadcast must fit the registers (a spill in the inner loop
// halves the speed). As many float sums don't fit beside 8 rows: the compiler keeps some in L1 between blocks. Groups of
// several blocks have two kinds of float sums and run best with 6 rows (512 rows, groups of 128 with offsets: 67 % of
// peak with 8, 74 % with 6; whole rows: 71 % with 12, 81 % with 8).
#if defined(OCTAVO_ISA_AVX512)
constexpr int kRows = 8, kRowsOfLongGroups = 6;
#elif defined(OCTAVO_ISA_AVX2)
constexpr int kRows = 2, kRowsOfLongGroups = 2;
#else
constexpr int kRows = 1, kRowsOfLongGroups = 1;
#endif
// Below this largest magnitude 127 / amax would leave float32's range: such a row counts as zeros.
constexpr float kTiny = 1e-36f;
// Of four activations each, with one scale.
constexpr int64_t kBlockWords = 8;
// Packed activations of one row chunk stay in L2 (1 MiB on Zen 4) beside a weight panel.
constexpr int64_t kChunkBytes = 384 << 10;
// One row leaves memory to the hardware's prefetcher, which does best alone. With more, the arithmetic fills the
// reorder window and memory would fall idle: lines are fetched into L2 this far ahead.
constexpr int kPrefetchRows = 3;
constexpr int64_t kPrefetchBytes = 16 << 10;

// The rows of x in int8, as the kernels read them. A block of R rows lies as [step of 4 k][R], likewise the sums.
struct Rows {
  int32_t* codes;    // [m][words]
  int32_t* plain;    // the same row by row
  int32_t* start;    // [m][blocks]: what the sum over a block starts from, -zero * sum of the row's codes in it
  float* scales;     // [m][blocks]
  float* sums;       // [m][groups]: the sum of the group's quantised activations; asymmetric weights only
  uint64_t* masks;   // [m][mask_words]: the elements left in float
  bool* outliers;    // [m]: whether there are any
  int64_t words, groups, blocks, mask_words;
};

struct Shape {
  int64_t words;       // 4 k each, of all groups
  int64_t groups;
  int64_t group_words;
  int64_t last_words;  // of the last group
  int64_t block_words;  // that share an activation's scale; groups are whole blocks but for the last
  int64_t blocks;
};

OCTAVO_INLINE Shape shape_of(const QuantizedLayout& layout, bool one_scale) {
  Shape s{};
  int64_t per_step = layout.step() / 4;
  s.groups = layout.groups();
  s.last_words = (layout.k - (s.groups - 1) * layout.group() + layout.step() - 1) / layout.step() * per_step;
  s.group_words = s.groups > 1 ? layout.group() / 4 : s.last_words;
  s.words = (s.groups - 1) * s.group_words + s.last_words;
  s.block_words = one_scale ? s.words : kBlockWords;
  s.blocks = (s.words + s.block_words - 1) / s.block_words;
  return s;
}

// Tiles that the rows are cut in.
OCTAVO_INLINE int64_t blocks_of(const QuantizedArgs& g) {
  int rows = g.layout.group_size > 4 * kBlockWords ? kRowsOfLongGroups : kRows;
  return (g.m + rows - 1) / rows;
}

// body(first, lanes) over [0, k) in vectors; the last may have less than 16 lanes.
template <class Body>
OCTAVO_INLINE void for_vectors(int64_t k, const Body& body) {
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) body(i, 16);
  if (i < k) body(i, int(k - i));
}

template <class X>
OCTAVO_INLINE Vec load_some(const X* x, int lanes) {
  return lanes == 16 ? load(x) : load_n(x, lanes);
}

// The largest magnitude of a row but for outliers, whose bits go to mask; NaN if it holds one.
template <class X>
OCTAVO_INLINE float row_amax(const X* x, int64_t k, float threshold, uint64_t* mask, bool* any) {
  IntVec most = broadcast_int(0);
  Vec limit = broadcast(threshold);
  uint64_t found = 0;
  for_vectors(k, [&](int64_t i, int lanes) {
    Vec v = abs(load_some(x + i, lanes));
    uint64_t out = bits(limit <= v);
    if (i % 64 == 0) mask[i / 64] = 0;
    mask[i / 64] |= out << (i % 64);
    found |= out;
    most = max_magnitude(most, select(limit <= v, zero(), v));
  });
  *any = found != 0;
  return from_bits(uint32_t(reduce_max(most)));
}

// One row but for its outliers to int8, padded with zeros; returns its scale, which is NaN if the row holds one.
template <class X>
float quantize_row(const X* x, int64_t k, int64_t words, float threshold, int8_t* codes, uint64_t* mask, bool* any) {
  const float amax = row_amax(x, k, threshold, mask, any);
  const Vec factor = broadcast(amax >= kTiny ? 127.0f / amax : 0.0f), limit = broadcast(threshold);
  for_vectors(k, [&](int64_t i, int lanes) {
    Vec v = load_some(x + i, lanes);
    v = select(limit <= abs(v), zero(), v) * factor;
    if (i + 16 <= words * 4) {
      store_int8(codes + i, v);
    } else {
      int8_t tail[16];
      store_int8(tail, v);
      for (int64_t j = i; j < words * 4; ++j) codes[j] = tail[j - i];
    }
  });
  for (int64_t i = (k + 15) / 16 * 16; i < words * 4; ++i) codes[i] = 0;
  return amax / 127.0f;
}

// Rows of `words` dwords each to [word][row].
OCTAVO_INLINE void interleave(const int32_t* rows, int64_t count, int64_t words, int32_t* to) {
  int64_t done = 0;
#if defined(OCTAVO_ISA_AVX512)
  for (; done + 16 <= words; done += 16) {
    Vec block[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      block[r] = r < count ? load(reinterpret_cast<const float*>(rows + r * words + done)) : zero();
    }
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) store_n(reinterpret_cast<float*>(to + (done + i) * count), block[i], int(count));
  }
#endif
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = done; i < words; ++i) to[i * count + r] = rows[r * words + i];
  }
}

// A block of up to 32 elements to int8, padded with zeros to whole words; returns its scale.
template <class X>
OCTAVO_INLINE float quantize_block(const X* x, int left, int8_t* codes, int64_t bytes) {
  const Vec low = left >= 16 ? load(x) : load_n(x, left);
  const Vec high = left >= 32 ? load(x + 16) : left > 16 ? load_n(x + 16, left - 16) : zero();
  const IntVec most = max_magnitude(max_magnitude(broadcast_int(0), low), high);
  const float amax = from_bits(uint32_t(reduce_max(most)));
  const Vec factor = broadcast(amax >= kTiny ? 127.0f / amax : 0.0f);
  if (bytes == 4 * kBlockWords) {
    store_int8(codes, low * factor);
    store_int8(codes + 16, high * factor);
  } else {
    int8_t all[32];
    store_int8(all, low * factor);
    store_int8(all + 16, high * factor);
    __builtin_memcpy(codes, all, size_t(bytes));
  }
  return amax / 127.0f;
}

// Blocks of a row that are worked on together.
struct Blocks {
  int count;
  float scales[16];
  int32_t sums[16];
};

#if defined(OCTAVO_ISA_AVX512)
OCTAVO_INLINE Vec as_lanes(IntVec x) { return {(__m512)x.v}; }

// Sixteen blocks: their maxima and their sums meet in one vector each by a transpose, where a reduction a block would take
// twice as long.
template <class X>
OCTAVO_INLINE void quantize_sixteen(const X* x, int8_t* codes, Blocks& to) {
  Vec lanes[16];
#pragma GCC unroll 16
  for (int b = 0; b < 16; ++b) {
    lanes[b] = as_lanes(max_magnitude(max_magnitude(broadcast_int(0), load(x + 32 * b)), load(x + 32 * b + 16)));
  }
  transpose(lanes);
  IntVec most = broadcast_int(0);
#pragma GCC unroll 16
  for (int b = 0; b < 16; ++b) most = max_magnitude(most, lanes[b]);
  const Vec amax = as_lanes(most), factors = select(broadcast(kTiny) <= amax, broadcast(127.0f) / amax, zero());
  alignas(64) float factor[16];
  store(factor, factors);
  store(to.scales, amax / broadcast(127.0f));
#pragma GCC unroll 16
  for (int b = 0; b < 16; ++b) {
    const Vec scale = broadcast(factor[b]);
    const __m512i low = _mm512_cvtps_epi32((load(x + 32 * b) * scale).v);
    const __m512i high = _mm512_cvtps_epi32((load(x + 32 * b + 16) * scale).v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 32 * b), _mm512_cvtsepi32_epi8(low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 32 * b + 16), _mm512_cvtsepi32_epi8(high));
    lanes[b] = {_mm512_castsi512_ps(_mm512_add_epi32(low, high))};
  }
  transpose(lanes);
  I16 sum = (I16)lanes[0].v;
#pragma GCC unroll 16
  for (int b = 1; b < 16; ++b) sum += (I16)lanes[b].v;
  _mm512_storeu_si512(to.sums, (__m512i)sum);
  to.count = 16;
}
#endif

// The blocks at word `word` of a row: sixteen whole ones where the ISA has a quicker way for them, else one.
template <class X>
OCTAVO_INLINE void quantize_blocks(const X* x, int64_t k, int64_t word, int64_t words, int8_t* codes, Blocks& to) {
  const int64_t left = k - word * 4, bytes = 4 * (words - word < kBlockWords ? words - word : kBlockWords);
#if defined(OCTAVO_ISA_AVX512)
  if (left >= 512) return quantize_sixteen(x + word * 4, codes + word * 4, to);
#endif
  to.count = 1;
  to.scales[0] = quantize_block(x + word * 4, left < 32 ? int(left) : 32, codes + word * 4, bytes);
  to.sums[0] = sum_int8(codes + word * 4, bytes);
}

template <class X, bool kOutliers>
void quantize_rows(const QuantizedArgs& g, const Shape& shape, const Rows& to, int64_t begin, int64_t end) {
  const int64_t rows = end - begin;
  const int32_t zero_code = g.layout.symmetric ? 1 << (g.layout.bits - 1) : 0;
  const int32_t weigh = (g.layout.bits == 8 ? kCodeBias : 0) - zero_code;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = begin + r;
    auto* x = static_cast<const X*>(g.x) + row * g.x_stride;
    auto* codes = reinterpret_cast<int8_t*>(to.plain + row * to.words);
    int64_t at = begin * shape.blocks + r, group_at = begin * shape.groups + r;
    float group_sum = 0;
    int64_t group_left = shape.group_words;
    for (int64_t word = 0; word < to.words;) {
      Blocks blocks;
      if constexpr (kOutliers) {
        blocks.count = 1;
        blocks.scales[0] = quantize_row(x, g.layout.k, to.words, g.threshold, codes, to.masks + row * to.mask_words,
                                        to.outliers + row);
        blocks.sums[0] = sum_int8(codes, to.words * 4);
      } else {
        quantize_blocks(x, g.layout.k, word, to.words, codes, blocks);
      }
      for (int b = 0; b < blocks.count; ++b, word += shape.block_words, at += rows) {
        to.scales[at] = blocks.scales[b];
        to.start[at] = weigh * blocks.sums[b];
        if (g.layout.symmetric) continue;
        group_sum += blocks.scales[b] * float(blocks.sums[b]);
        group_left -= shape.block_words;
        if (group_left <= 0 || word + shape.block_words >= to.words) {
          to.sums[group_at] = group_sum;
          group_at += rows;
          group_sum = 0;
          group_left = shape.group_words;
        }
      }
    }
  }
  if (to.codes != to.plain) interleave(to.plain + begin * to.words, rows, to.words, to.codes + begin * to.words);
}

template <bool kRow>
OCTAVO_INLINE Vec load_scale(const uint8_t* p) {
  if constexpr (kRow) {
    return load(reinterpret_cast<const float*>(p));
  } else {
    return load(reinterpret_cast<const f16*>(p));
  }
}

// What the weight stream will want next, touched at `pace` bytes a step so that memory works while the registers do.
struct Ahead {
  const char* at;
  int64_t pace;
};

// How often a weight's scale meets a block of activations.
enum Grouping { kWholeRow, kOneBlock, kSomeBlocks };

// tile[r][0:32] = sum over blocks of the weights' scale * the activations' scale * int32 sum, and over groups of offset *
// sum of activations. The chain is, from zero: of groups of one block fma(w * sum, a, total); of longer ones, within a
// group, fma(a, sum, inner), then fma(w, inner, total); of a whole row fma(a, sum, total), times w at the end.
template <int kBits, bool kSymmetric, Grouping kGroup, int R>
__attribute__((noinline)) void micro_kernel(const int32_t* OCTAVO_RESTRICT a, const int32_t* OCTAVO_RESTRICT start,
                                            const float* OCTAVO_RESTRICT scales, const float* OCTAVO_RESTRICT sums,
                                            const uint8_t* OCTAVO_RESTRICT w, const Shape& shape,
                                            float* OCTAVO_RESTRICT tile, Ahead ahead) {
  constexpr bool kRow = kGroup == kWholeRow;
  constexpr int64_t kScale = kRow ? 64 : 32;
  Vec total[R][2], inner[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = zero();
  for (int64_t group = 0; group < shape.groups; ++group) {
    int64_t left_words = group + 1 < shape.groups ? shape.group_words : shape.last_words;
    if constexpr (kGroup == kSomeBlocks) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) inner[r][0] = inner[r][1] = zero();
    }
    while (left_words > 0) {
      const int64_t words = left_words < shape.block_words ? left_words : shape.block_words;
      left_words -= words;
      IntVec acc[R][2];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = broadcast_int(start[r]);
      const int32_t* end = a + words * R;
      while (a != end) {
        if constexpr (R >= (kBits == 4 ? kPrefetchRows : 2 * kPrefetchRows)) {
          __builtin_prefetch(ahead.at, 0, 2);
          __builtin_prefetch(ahead.at + 64, 0, 2);
          ahead.at += ahead.pace;
        }
#if defined(OCTAVO_ISA_AVX512)
        // One activation's broadcast is used twice and then dead: 24 sums leave no register to keep it in.
        auto multiply = [&](Codes left, Codes right, const int32_t* quads) __attribute__((always_inline)) {
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) {
            acc[r][0] = dot8(acc[r][0], left, quads + r);
            acc[r][1] = dot8(acc[r][1], right, quads + r);
          }
        };
        if constexpr (kBits == 4) {
          Nibbles left = load_codes4(w), right = load_codes4(w + 64);
          multiply({left.low}, {right.low}, a);
          multiply({left.high}, {right.high}, a + R);
        } else {
          multiply(load_codes8(w), load_codes8(w + 64), a);
        }
#else
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
          if constexpr (kBits == 4) {
            Nibbles codes = load_codes4(w + 64 * j);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) acc[r][j] = dot4(acc[r][j], codes, a + r, a + R + r);
          } else {
            Codes codes = load_codes8(w + 64 * j);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) acc[r][j] = dot8(acc[r][j], codes, a + r);
          }
        }
#endif
        a += kBits == 4 ? 2 * R : R;
        w += 128;
      }
      if constexpr (kGroup == kOneBlock) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
          const Vec scale = load_scale<kRow>(w + j * kScale);
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) {
            total[r][j] = fma(scale * to_float(acc[r][j]), broadcast(scales[r]), total[r][j]);
          }
        }
      } else {
        Vec(&sum)[R][2] = kRow ? total : inner;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Vec scale = broadcast(scales[r]);
          sum[r][0] = fma(scale, to_float(acc[r][0]), sum[r][0]);
          sum[r][1] = fma(scale, to_float(acc[r][1]), sum[r][1]);
        }
      }
      start += R;
      scales += R;
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const Vec scale = load_scale<kRow>(w + j * kScale);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        if constexpr (kRow) total[r][j] = scale * total[r][j];
        if constexpr (kGroup == kSomeBlocks) total[r][j] = fma(scale, inner[r][j], total[r][j]);
      }
    }
    w += 2 * kScale;
    if constexpr (!kSymmetric) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const Vec offset = load_scale<kRow>(w + j * kScale);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) total[r][j] = fma(offset, broadcast(sums[r]), total[r][j]);
      }
      w += 2 * kScale;
      sums += R;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    store(tile + r * kPanel, total[r][0]);
    store(tile + r * kPanel + 16, total[r][1]);
  }
}

template <int kBits, bool kSymmetric, Grouping kGroup, int R = kRows>
void run_micro_kernel(int rows, const int32_t* a, const int32_t* start, const float* scales, const float* sums,
                      const uint8_t* w, const Shape& shape, float* tile, Ahead ahead) {
  if (rows == R) return micro_kernel<kBits, kSymmetric, kGroup, R>(a, start, scales, sums, w, shape, tile, ahead);
  if constexpr (R > 1) {
    run_micro_kernel<kBits, kSymmetric, kGroup, R - 1>(rows, a, start, scales, sums, w, shape, tile, ahead);
  }
}

// tile += s * sum over the row's elements in float, in order, of x * (code - 128). 8 bits, one group, symmetric.
template <class X>
void add_outliers(const QuantizedArgs& g, const uint64_t* mask, int64_t mask_words, int64_t row, const uint8_t* w,
                  float* tile) {
  const X* x = static_cast<const X*>(g.x) + row * g.x_stride;
  float chain[kPanel] = {};
  for (int64_t i = 0; i < mask_words; ++i) {
    for (uint64_t left = mask[i]; left; left &= left - 1) {
      int64_t k = i * 64 + __builtin_ctzll(left);
      float value = to_float(x[k]);
      const uint8_t* line = w + k / 4 * 128 + k % 4;
      for (int n = 0; n < kPanel; ++n) chain[n] += value * (float(line[n * 4]) - 128.0f);
    }
  }
  const float* scale = reinterpret_cast<const float*>(w + g.layout.code_bytes(g.layout.k));
  for (int n = 0; n < kPanel; ++n) tile[n] += scale[n] * chain[n];
}

// With this many rows times words of K an item takes some microseconds and is claimed by itself: a thread that wakes
// late or is disturbed then does fewer.
constexpr int64_t kOwnClaim = 4 << 10;

template <class Body>
void fork_each(int64_t items, const Body& body) {
  auto task = [](void* opaque, int item, int) { (*static_cast<const Body*>(opaque))(item); };
  fork_join(int(items), task, const_cast<Body*>(&body));
}

template <int kBits, bool kSymmetric, Grouping kGroup>
void compute(const QuantizedArgs& g, const Shape& shape, const Rows& x) {
  const int64_t panels = g.layout.panels(), blocks = blocks_of(g), bytes = g.layout.panel_bytes();
  const int threads = num_threads();
  auto first_row = [&](int64_t block) { return g.m * block / blocks; };
  int64_t chunks = (g.m * x.words * 4 + kChunkBytes - 1) / kChunkBytes;
  if (panels % threads != 0 && chunks * panels < 16 * threads) chunks = 16 * threads / panels + 1;
  if (chunks > blocks) chunks = blocks;
  const int64_t items = chunks * panels;
  auto run = [&](int64_t begin, int64_t end, int64_t stride) {
    alignas(64) float tile[kRows * kPanel];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t chunk = item / panels, panel = item % panels;
      const int64_t first = blocks * chunk / chunks, count = blocks * (chunk + 1) / chunks - first;
      const uint8_t* w = g.weight + panel * bytes;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = first_row(first + i);
        const int rows = int(first_row(first + i + 1) - row);
        // One block streams its own panel. Several share one that is in L2 after the first, and fetch the next between
        // them.
        auto* at = reinterpret_cast<const char*>(w);
        Ahead ahead = count == 1 ? Ahead{at + kPrefetchBytes, 128}
                                 : Ahead{at + stride * bytes + bytes * i / count, 128 / count + 1};
        run_micro_kernel<kBits, kSymmetric, kGroup>(rows, x.codes + row * x.words, x.start + row * x.blocks,
                                                    x.scales + row * x.blocks, x.sums + row * x.groups, w, shape, tile,
                                                    ahead);
        for (int r = 0; g.outliers && r < rows; ++r) {
          if (!x.outliers[row + r]) continue;
          auto* mask = x.masks + (row + r) * x.mask_words;
          if (g.x_bf16) {
            add_outliers<bf16>(g, mask, x.mask_words, row + r, w, tile + r * kPanel);
          } else {
            add_outliers<float>(g, mask, x.mask_words, row + r, w, tile + r * kPanel);
          }
        }
        write_tile(g.y, tile, row, rows, panel);
      }
    }
  };
  if (threads > 1 && g.m * x.words >= kOwnClaim && items <= 65535) {
    fork_each(items, [&](int64_t item) { run(item, item + 1, threads); });
  } else {
    parallel_for(items, 1, [&](int64_t begin, int64_t end) { run(begin, end, 1); });
  }
}

template <Grouping kGroup>
OCTAVO_INLINE void compute_any(const QuantizedArgs& g, const Shape& shape, const Rows& x) {
  if (g.layout.bits == 4) {
    return g.layout.symmetric ? compute<4, true, kGroup>(g, shape, x) : compute<4, false, kGroup>(g, shape, x);
  }
  return g.layout.symmetric ? compute<8, true, kGroup>(g, shape, x) : compute<8, false, kGroup>(g, shape, x);
}

void linear(const QuantizedArgs& g) {
  if (g.m == 0 || g.layout.n == 0) return;
  const Shape shape = shape_of(g.layout, g.outliers);
  Rows x{};
  x.words = shape.words;
  x.groups = shape.groups;
  x.blocks = shape.blocks;
  x.mask_words = g.outliers ? (g.layout.k + 63) / 64 : 0;
  // Each part begins on a line of its own.
  auto lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  int64_t codes = lines(g.m * x.words * 4), per_block = lines(g.m * x.blocks * 4);
  int64_t per_group = lines(g.m * x.groups * 4), masks = lines(g.m * x.mask_words * 8);
  char* at = static_cast<char*>(thread_scratch(size_t(2 * codes + 2 * per_block + per_group + masks + lines(g.m))));
  x.codes = reinterpret_cast<int32_t*>(at);
  x.plain = reinterpret_cast<int32_t*>(g.m == 1 ? at : at + codes);
  x.start = reinterpret_cast<int32_t*>(at += 2 * codes);
  x.scales = reinterpret_cast<float*>(at += per_block);
  x.sums = reinterpret_cast<float*>(at += per_block);
  x.masks = reinterpret_cast<uint64_t*>(at += per_group);
  x.outliers = reinterpret_cast<bool*>(at += masks);

  const int64_t blocks = blocks_of(g);
  parallel_for(blocks, 1 + (16 << 10) / (kRows * g.layout.k), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t first = g.m * b / blocks, last = g.m * (b + 1) / blocks;
      if (g.x_bf16) {
        g.outliers ? quantize_rows<bf16, true>(g, shape, x, first, last)
                   : quantize_rows<bf16, false>(g, shape, x, first, last);
      } else {
        g.outliers ? quantize_rows<float, true>(g, shape, x, first, last)
                   : quantize_rows<float, false>(g, shape, x, first, last);
      }
    }
  });

  switch (g.layout.group_size) {
    case 0: return compute_any<kWholeRow>(g, shape, x);
    case 4 * kBlockWords: return compute_any<kOneBlock>(g, shape, x);
    default: return compute_any<kSomeBlocks>(g, shape, x);
  }
}

}  // namespace

const QuantizedInt8Kernels quantized_int8_kernels = {linear};

}  // namespace octavo::OCTAVO_ISA
