// Matrix products on prepacked weights: one micro-kernel of R rows by one panel of 32 outputs, from a matrix-vector
// product (R = 1) to large batches.
//
// Law 6: every output element is one chain of multiply-adds over k in float32, from zero, in the order of k, whatever R
// is and however rows and panels are split between threads.
#include "octavo/kernels_linear.h"

#include "octavo/linear_output.h"
#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

// Rows a micro-kernel takes: 2 R accumulators, 2 weight vectors and a broadcast must fit the registers (a spill halves
// the speed). The zmm file holds 27 of 32; with ymm a Vec is two registers and bfloat16 needs two temporaries.
#if defined(OCTAVO_ISA_AVX512)
constexpr int kRows = 12;
#elif defined(OCTAVO_ISA_AVX2)
constexpr int kRows = 3;
#else
constexpr int kRows = 2;
#endif
// Activations of one row chunk stay in L2 (1 MiB on Zen 4, 2 on Sapphire Rapids) beside a weight panel.
constexpr int64_t kChunkBytes = 384 << 10;
// Threads end together when each has many items; one of 8 Ki rows times steps still takes 5 us.
constexpr int64_t kItemsPerThread = 64, kLeastItem = 8 << 10;

// Up to five rows the hardware's prefetcher alone does best (5 rows: 88 % of the probe, 74 % with software prefetch);
// with more, the arithmetic fills the reorder window and memory falls idle: fetching 16 KiB ahead into L2 takes 8 rows
// from 74 to 92 % (2 KiB: 59 %, 4 KiB: 76 %).
constexpr int kPrefetchRows = 6;
constexpr int64_t kPrefetchBytes = 16 << 10;

// Activations are packed in blocks of 16 steps, [R][16] each: packing copies cache lines, the micro-kernel reads one
// stream, and rows whose stride is a multiple of 4 KiB don't evict each other from L1.
constexpr int kBlock = 16;

// What a weight type means to the inner loop: A, a packed activation step; how to pack and to
// broadcast it; the multiply-add.
template <class W>
struct Inner {
  using A = float;
  static constexpr bool kPlain = true;  // an element of x is a packed step
  static constexpr int kStep = 1;
  OCTAVO_INLINE A pack(const float* x, int64_t) { return *x; }
  OCTAVO_INLINE void pack_block(const float* x, A* to) { store(to, load(x)); }
  OCTAVO_INLINE Vec weight(const W* w) { return load(w); }
  OCTAVO_INLINE Vec activation(const A* a) { return broadcast(*a); }
  OCTAVO_INLINE Vec step(Vec acc, Vec w, Vec a) { return fma(w, a, acc); }
  using X = float;
};

template <>
struct Inner<bf16> {
  static constexpr int kStep = 2;
  using X = bf16;
#if defined(OCTAVO_ISA_AVX512)
  using A = uint32_t;
  static constexpr bool kPlain = true;
  OCTAVO_INLINE A pack(const bf16* x, int64_t left) { return left > 1 ? load_u32(x) : x->bits; }
  OCTAVO_INLINE void pack_block(const bf16* x, A* to) { _mm512_storeu_si512(to, load_pairs(x).v); }
  OCTAVO_INLINE PairBroadcast activation(const A* a) { return {_mm512_set1_epi32(int(load_u32(a)))}; }
#else
  // Widened once here instead of once a panel.
  static constexpr bool kPlain = false;
  struct A {
    float even, odd;
  };
  OCTAVO_INLINE A pack(const bf16* x, int64_t left) {
    return {to_float(x[0]), left > 1 ? to_float(x[1]) : 0.0f};
  }
  OCTAVO_INLINE void pack_block(const bf16* x, A* to) {
    store(&to[0].even, load(x));
    store(&to[8].even, load(x + 16));
  }
#if defined(OCTAVO_ISA_AVX2)
  OCTAVO_INLINE PairBroadcast activation(const A* a) {
    return {_mm256_broadcast_ss(&a->even), _mm256_broadcast_ss(&a->odd)};
  }
#else
  OCTAVO_INLINE PairBroadcast activation(const A* a) { return {a->even, a->odd}; }
#endif
#endif
  OCTAVO_INLINE Pairs weight(const bf16* w) { return load_pairs(w); }
  OCTAVO_INLINE Vec step(Vec acc, Pairs w, PairBroadcast a) { return dot2_bf16(acc, w, a); }
};

// What the weight stream will want next, touched at `pace` bytes a step so that memory works while the registers do.
struct Ahead {
  const char* at;
  int64_t pace;
};

// Activations of one row block: row r starts r * row_stride behind row 0, and its next kBlock steps block_stride behind
// the last ones.
template <class A>
struct Rows {
  const A* at;
  int64_t row_stride, block_stride;
};

// y[r][0:32] = a[r, :] . w over all steps; w is one panel.
template <class W, Finish F, int R>
void micro_kernel(Rows<typename Inner<W>::A> a, const W* OCTAVO_RESTRICT w, int64_t steps, const PanelOutput& y,
                  Ahead ahead) {
  using I = Inner<W>;
  using A = typename I::A;
  Vec acc[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = zero();
  // Three rows a pointer: base, base + stride and base + 2 stride are addresses, 3 stride is not.
  constexpr int kGroups = (R + 2) / 3;
  const A* group[kGroups];
#pragma GCC unroll 4
  for (int i = 0; i < kGroups; ++i) group[i] = a.at + 3 * i * a.row_stride;
  for (; steps > 0; steps -= kBlock) {
    const W* end = w + (steps < kBlock ? steps : kBlock) * kPanel * I::kStep;
    for (; w < end; w += kPanel * I::kStep) {
      auto w0 = I::weight(w);
      auto w1 = I::weight(w + 16 * I::kStep);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        auto x = I::activation(group[r / 3] + r % 3 * a.row_stride);
        acc[r][0] = I::step(acc[r][0], w0, x);
        acc[r][1] = I::step(acc[r][1], w1, x);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kGroups; ++i) {
        ++group[i];
        asm("" : "+r"(group[i]));
      }
      if constexpr (R >= kPrefetchRows) {
        __builtin_prefetch(ahead.at, 0, 2);
        __builtin_prefetch(ahead.at + 64, 0, 2);
        ahead.at += ahead.pace;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kGroups; ++i) group[i] += a.block_stride - kBlock;
  }
  finish<F, R>(y, acc);
}

template <class W, Finish F, int R = kRows>
void run_micro_kernel(int rows, const Rows<typename Inner<W>::A>& a, const W* w, int64_t steps, const PanelOutput& y,
                      Ahead ahead) {
  if (rows == R) return micro_kernel<W, F, R>(a, w, steps, y, ahead);
  if constexpr (R > 1) run_micro_kernel<W, F, R - 1>(rows, a, w, steps, y, ahead);
}

// Rows row .. row + rows of one panel, finished and written.
template <class W>
void run_tile(const LinearArgs& g, int64_t row, int rows, int64_t panel, const Rows<typename Inner<W>::A>& a,
              const W* w, int64_t steps, Ahead ahead) {
  PanelOutput y = panel_output(g.y, row, panel);
  switch (finish_of(g.y, panel)) {
    case Finish::kBFloat16: return run_micro_kernel<W, Finish::kBFloat16>(rows, a, w, steps, y, ahead);
    case Finish::kFloat32: return run_micro_kernel<W, Finish::kFloat32>(rows, a, w, steps, y, ahead);
    case Finish::kAdd: return run_micro_kernel<W, Finish::kAdd>(rows, a, w, steps, y, ahead);
    case Finish::kTile:;
  }
  alignas(64) float tile[kRows * kPanel];
  run_micro_kernel<W, Finish::kTile>(rows, a, w, steps, {tile, kPanel, nullptr}, ahead);
  write_tile(g.y, tile, row, rows, panel);
}

// Rows [begin, end) of x in the micro-kernel's order, written from front to back: stores that miss L1 want one stream.
template <class W>
void pack_rows(const LinearArgs& g, int64_t begin, int64_t end, int64_t steps, typename Inner<W>::A* packed) {
  using I = Inner<W>;
  int64_t rows = end - begin, whole = g.k / I::kStep, s = 0;
  auto* first = static_cast<const typename I::X*>(g.x) + begin * g.x_stride;
  for (; s + kBlock <= whole; s += kBlock) {
    auto* x = first + s * I::kStep;
    for (int64_t r = 0; r < rows; ++r, x += g.x_stride, packed += kBlock) I::pack_block(x, packed);
  }
  for (int64_t r = 0; r < rows; ++r, packed += kBlock) {
    auto* x = first + r * g.x_stride;
    for (int64_t i = s; i < whole; ++i) packed[i - s] = I::pack(x + i * I::kStep, I::kStep);
    if (whole < steps) packed[whole - s] = I::pack(x + whole * I::kStep, 1);
  }
}

// The micro-kernel takes x as it lies when an element is a step and a row block's cache lines have room in L1 beside
// each other (8 ways; rows 4 KiB apart share one set, 2 KiB apart two). Packing cost 0.6 % of 960 x 576 at 64 rows and
// 1.2 % at 512.
template <class W>
OCTAVO_INLINE bool reads_plain(const LinearArgs& g) {
  using I = Inner<W>;
  if (!I::kPlain || g.k % I::kStep || g.x_stride % I::kStep) return false;
  return g.m <= 4 || g.x_stride * int64_t(sizeof(typename I::X)) % 2048;
}

// With this many rows times steps an item takes some microseconds and is claimed by itself: a thread that wakes late or
// is disturbed then does fewer. (576 x 576, 512 rows, two threads: 77 % of the probe in eight runs, 87 % item by item.)
constexpr int64_t kOwnClaim = 4 << 10;

template <class W>
void linear_typed(const LinearArgs& g) {
  using I = Inner<W>;
  using A = typename I::A;
  const int64_t steps = (g.k + I::kStep - 1) / I::kStep;
  const int64_t padded = (steps + kBlock - 1) / kBlock * kBlock;
  const int64_t panels = (g.n + kPanel - 1) / kPanel;
  const int64_t blocks = (g.m + kRows - 1) / kRows;
  const int threads = num_threads();
  auto first_row = [&](int64_t block) { return g.m * block / blocks; };

  const bool plain = reads_plain<W>(g);
  A* packed = nullptr;
  if (!plain) {
    packed = static_cast<A*>(thread_scratch(size_t(g.m * padded) * sizeof(A)));
    // Packing is shared out only when it would take longer than the fork.
    parallel_for(blocks, 1 + (16 << 10) / (kRows * steps), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        pack_rows<W>(g, first_row(b), first_row(b + 1), steps, packed + first_row(b) * padded);
      }
    });
  }
  auto rows_from = [&](int64_t row, int rows) -> Rows<A> {
    if (!plain) return {packed + row * padded, kBlock, rows * kBlock};
    auto* x = static_cast<const typename I::X*>(g.x) + row * g.x_stride;
    return {reinterpret_cast<const A*>(x), g.x_stride / I::kStep, kBlock};
  };

  int64_t chunks = (g.m * steps * int64_t(sizeof(A)) + kChunkBytes - 1) / kChunkBytes;
  if (panels % threads != 0 && chunks * panels < 16 * threads) chunks = 16 * threads / panels + 1;
  int64_t finer = kItemsPerThread * threads / panels + 1, most = g.m * steps / kLeastItem;
  if (finer > most) finer = most;
  if (threads > 1 && chunks < finer) chunks = finer;
  if (chunks > blocks) chunks = blocks;
  const int64_t items = chunks * panels;
  auto compute = [&](int64_t begin, int64_t end, int64_t stride) {
    for (int64_t item = begin; item < end; ++item) {
      int64_t chunk = item / panels, panel = item % panels;
      int64_t first = blocks * chunk / chunks, count = blocks * (chunk + 1) / chunks - first;
      auto* w = static_cast<const W*>(g.weight) + panel * steps * kPanel * I::kStep;
      constexpr int64_t line = kPanel * I::kStep * sizeof(W);
      for (int64_t i = 0; i < count; ++i) {
        int64_t row = first_row(first + i);
        int rows = int(first_row(first + i + 1) - row);
        // One block streams its own panel. Several share one that is in L2 after the first, and fetch the next between
        // them. (Measured on Zen 4, 16 rows: 78 % of peak without, 94 % with.)
        auto* bytes = reinterpret_cast<const char*>(w);
        Ahead ahead = count == 1 ? Ahead{bytes + kPrefetchBytes, line}
                                 : Ahead{bytes + stride * steps * line + steps * line * i / count, line / count + 1};
        prefetch_output(g.y, g.m, row, rows, panel);
        run_tile<W>(g, row, rows, panel, rows_from(row, rows), w, steps, ahead);
      }
    }
  };
  if (threads > 1 && g.m * steps >= kOwnClaim && items <= 65535) {
    fork_each(items, [&](int64_t item) { compute(item, item + 1, threads); });
  } else {
    parallel_for(items, 1, [&](int64_t begin, int64_t end) { compute(begin, end, 1); });
  }
}

void linear(const LinearArgs& g) {
  if (g.m == 0 || g.n == 0) return;
  switch (g.weight_type) {
    case DType::kBFloat16: return linear_typed<bf16>(g);
    case DType::kFloat16: return linear_typed<f16>(g);
    case DType::kFloat32: return linear_typed<float>(g);
  }
}

// The row of the plain matrix in lane `lane` of a panel, or -1 for padding.
OCTAVO_INLINE int64_t source_row(const PackArgs& g, int64_t panel, int lane) {
  if (!g.gated) {
    int64_t row = panel * kPanel + lane;
    return row < g.n ? row : -1;
  }
  int64_t half = g.n / 2, output = panel * 16 + lane % 16;
  return output >= half ? -1 : lane < 16 ? output : half + output;
}

// Copies between [n, k] and panels, P elements of type E at a time. kTile steps of one panel fit L1.
template <class E, int P, bool kUnpack>
void repack(const PackArgs& g) {
  constexpr int64_t kTile = 64;
  const int64_t steps = (g.k + P - 1) / P, panels = (g.n + kPanel - 1) / kPanel;
  parallel_for(panels, 1 + (64 << 10) / (kPanel * P * (steps + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      E* packed = static_cast<E*>(g.packed) + panel * steps * kPanel * P;
      for (int64_t tile = 0; tile < steps; tile += kTile) {
        int64_t tile_end = tile + kTile < steps ? tile + kTile : steps;
        int64_t whole = tile_end * P <= g.k ? tile_end : tile_end - 1;
        for (int lane = 0; lane < kPanel; ++lane) {
          int64_t row = source_row(g, panel, lane);
          E* to = packed + lane * P;
          if (row < 0) {
            if (!kUnpack) {
              for (int64_t s = tile; s < tile_end; ++s)
                for (int q = 0; q < P; ++q) to[s * kPanel * P + q] = 0;
            }
            continue;
          }
          E* plain = static_cast<E*>(g.plain) + row * g.k;
          for (int64_t s = tile; s < whole; ++s) {
            if (kUnpack) {
              __builtin_memcpy(plain + s * P, to + s * kPanel * P, sizeof(E) * P);
            } else {
              __builtin_memcpy(to + s * kPanel * P, plain + s * P, sizeof(E) * P);
            }
          }
          if (whole < tile_end) {
            // An odd k: the last step holds one element and a zero.
            if (kUnpack) {
              plain[whole * P] = to[whole * kPanel * P];
            } else {
              to[whole * kPanel * P] = plain[whole * P];
              to[whole * kPanel * P + P - 1] = 0;
            }
          }
        }
      }
    }
  });
}

template <bool kUnpack>
void repack_any(const PackArgs& g) {
  switch (g.type) {
    case DType::kBFloat16: return repack<uint16_t, 2, kUnpack>(g);
    case DType::kFloat16: return repack<uint16_t, 1, kUnpack>(g);
    case DType::kFloat32: return repack<uint32_t, 1, kUnpack>(g);
  }
}

}  // namespace

const LinearKernels linear_kernels = {linear, repack_any<false>, repack_any<true>};

}  // namespace octavo::OCTAVO_ISA
