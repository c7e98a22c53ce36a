// Products of 4 and 8 bit weights with activations in int8: one scale for each 32 elements of a row (Activations.INT8),
// or one a row (LLM_INT8).
//
// Law 6: a row is quantised by itself; its product with an output is one float32 chain over the blocks of K, in order,
// whose terms are exact int32 sums, whatever rows share the tile and however panels are split between threads.
#include "octavo/kernels_quantized.h"

#include "octavo/activations_int8.h"
#include "octavo/linear_output.h"
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
// Packed activations of one row chunk stay in L2 (1 MiB on Zen 4) beside a weight panel.
constexpr int64_t kChunkBytes = 384 << 10;
// One row leaves memory to the hardware's prefetcher, which does best alone. With more, the arithmetic fills the
// reorder window and memory would fall idle: lines are fetched into L2 this far ahead.
constexpr int kPrefetchRows = 3;
constexpr int64_t kPrefetchBytes = 16 << 10;

// Tiles that the rows are cut in.
OCTAVO_INLINE int64_t blocks_of(const QuantizedArgs& g) {
  int rows = g.layout.group_size > 4 * kBlockWords ? kRowsOfLongGroups : kRows;
  return (g.m + rows - 1) / rows;
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

// y[r][0:32] = sum over blocks of the weights' scale * the activations' scale * int32 sum, and over groups of offset *
// sum of activations. The chain is, from zero: of groups of one block fma(w * sum, a, total); of longer ones, within a
// group, fma(a, sum, inner), then fma(w, inner, total); of a whole row fma(a, sum, total), times w at the end.
template <int kBits, bool kSymmetric, Grouping kGroup, int R>
__attribute__((noinline)) void micro_kernel(const int32_t* OCTAVO_RESTRICT a, const int32_t* OCTAVO_RESTRICT start,
                                            const float* OCTAVO_RESTRICT scales, const float* OCTAVO_RESTRICT sums,
                                            const uint8_t* OCTAVO_RESTRICT w, const Shape& shape, Finish form,
                                            const PanelOutput& y, Ahead ahead) {
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
  switch (form) {
    case Finish::kTile: return finish<Finish::kTile>(y, total);
    case Finish::kBFloat16: return finish<Finish::kBFloat16>(y, total);
    case Finish::kFloat32: return finish<Finish::kFloat32>(y, total);
    case Finish::kAdd: return finish<Finish::kAdd>(y, total);
  }
}

template <int kBits, bool kSymmetric, Grouping kGroup, int R = kRows>
void run_micro_kernel(int rows, const int32_t* a, const int32_t* start, const float* scales, const float* sums,
                      const uint8_t* w, const Shape& shape, Finish form, const PanelOutput& y, Ahead ahead) {
  if (rows == R) return micro_kernel<kBits, kSymmetric, kGroup, R>(a, start, scales, sums, w, shape, form, y, ahead);
  if constexpr (R > 1) {
    run_micro_kernel<kBits, kSymmetric, kGroup, R - 1>(rows, a, start, scales, sums, w, shape, form, y, ahead);
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
      const Finish form = g.outliers ? Finish::kTile : finish_of(g.y, panel);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = first_row(first + i);
        const int rows = int(first_row(first + i + 1) - row);
        // One block streams its own panel. Several share one that is in L2 after the first, and fetch the next between
        // them.
        auto* at = reinterpret_cast<const char*>(w);
        Ahead ahead = count == 1 ? Ahead{at + kPrefetchBytes, 128}
                                 : Ahead{at + stride * bytes + bytes * i / count, 128 / count + 1};
        prefetch_output(g.y, g.m, row, rows, panel);
        const PanelOutput y =
            form == Finish::kTile ? PanelOutput{tile, kPanel, nullptr} : panel_output(g.y, row, panel);
        run_micro_kernel<kBits, kSymmetric, kGroup>(rows, x.codes + row * x.words, x.start + row * x.blocks,
                                                    x.scales + row * x.blocks, x.sums + row * x.groups, w, shape, form,
                                                    y, ahead);
        if (form != Finish::kTile) continue;
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
