// Products with the sums in L1: where unpacking is dear and registers are few, a block of a panel is unpacked once for
// several blocks of rows.
#pragma once

#include "octavo/linear_output.h"
#include "octavo/quantized_steps.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

// Rows that a micro-kernel takes by 16 outputs: two chains each, the weights and an activation must fit the registers;
// a Vec is two ymm or four xmm.
#if defined(OCTAVO_ISA_AVX2)
template <class X, int kBits>
constexpr int kRows = 3;
#else
template <class X, int kBits>
constexpr int kRows = 2;
#endif
// Row blocks that share a panel while it is in L1: their sums, the weights and their activations fit.
constexpr int kSharing = 12;

// The factors of one panel's block, and the sums of x that its offsets multiply.
struct Factors {
  const uint8_t* scales;   // 32 float16, or float32
  const uint8_t* offsets;  // likewise; null when symmetric
  bool wide;               // float32
  const float* sums;       // of each row
};

// tile[r][0:32] += one block of R rows. a is [steps][pairs][R]; weights the block's codes, or with kUnpacked its pairs,
// [steps][pairs][2]. (Inlined into its caller it spills: 7 % slower on AVX2 with 16 rows and more.)
template <class X, int kBits, int R, bool kUnpacked>
__attribute__((noinline)) void block_kernel(const typename Inner<X, kBits>::A* OCTAVO_RESTRICT activations,
                                            const void* OCTAVO_RESTRICT weights, int64_t steps,
                                            const typename Inner<X, kBits>::Unpacker& unpacker, const Factors& f,
                                            float* OCTAVO_RESTRICT tile) {
  using I = Inner<X, kBits>;
  constexpr int kPairs = I::S::kPairs;
  for (int l = 0; l < 2; ++l) {
    Vec chains[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) chains[r][0] = chains[r][1] = zero();
    auto* a = activations;
    auto* codes = static_cast<const uint8_t*>(weights) + 64 * l;
    auto* pairs = static_cast<const typename I::Pair*>(weights) + l;
    for (int64_t s = 0; s < steps; ++s) {
      Line line;
      if constexpr (!kUnpacked) line = load_line(codes);
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        typename I::Pair w;
        if constexpr (kUnpacked) {
          w = pairs[2 * p];
        } else {
          w = I::unpack(unpacker, line, p);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          Vec& chain = chains[r][2 * p / kPairs];
          chain = I::step(chain, w, I::activation(a + p * R + r));
        }
      }
      a += kPairs * R;
      codes += 128;
      pairs += 2 * kPairs;
    }
    // Offsets by themselves: their vector beside all the chains would not fit.
    const Vec scale = load_factor(f.scales, f.wide, l);
    float* to = tile + 16 * l;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      store(to + kPanel * r, fma(scale, chains[r][0] + chains[r][1], load(to + kPanel * r)));
    }
    if (!f.offsets) continue;
    const Vec offset = load_factor(f.offsets, f.wide, l);
    for (int r = 0; r < R; ++r) {
      store(to + kPanel * r, fma(offset, broadcast(f.sums[r]), load(to + kPanel * r)));
    }
  }
}

template <class X, int kBits, bool kUnpacked, int R = kRows<X, kBits>>
OCTAVO_INLINE void run_block_kernel(int rows, const typename Inner<X, kBits>::A* a, const void* w, int64_t steps,
                                    const typename Inner<X, kBits>::Unpacker& unpacker, const Factors& f,
                                    float* tile) {
  if (rows == R) return block_kernel<X, kBits, R, kUnpacked>(a, w, steps, unpacker, f, tile);
  if constexpr (R > 1) run_block_kernel<X, kBits, kUnpacked, R - 1>(rows, a, w, steps, unpacker, f, tile);
}

template <class X, int kBits>
OCTAVO_INLINE void unpack_block(const uint8_t* codes, int64_t steps, const typename Inner<X, kBits>::Unpacker& unpacker,
                                typename Inner<X, kBits>::Pair* to) {
  using I = Inner<X, kBits>;
  for (int64_t s = 0; s < steps; ++s, codes += 128) {
    Line line0 = load_line(codes), line1 = load_line(codes + 64);
#pragma GCC unroll 4
    for (int p = 0; p < I::S::kPairs; ++p, to += 2) {
      to[0] = I::unpack(unpacker, line0, p);
      to[1] = I::unpack(unpacker, line1, p);
    }
  }
}

// tile [rows][32]: row blocks [first, last) times one panel.
template <class X, int kBits>
void compute_panel(const Product<X, kBits>& job, int64_t panel, int64_t first, int64_t last, float* tile) {
  using I = Inner<X, kBits>;
  using S = typename I::S;
  const QuantizedLayout& w = job.g.layout;
  const bool wide = w.group_size == 0, share = last - first > 1;
  const int64_t scale_bytes = w.scale_bytes(), factor_bytes = wide ? 0 : scale_bytes * (w.symmetric ? 1 : 2);
  const auto unpacker = I::unpacker(w.symmetric);
  alignas(64) typename I::Pair unpacked[kBlock / S::kWidth * S::kPairs * 2];
  const uint8_t* codes = job.g.weight + panel * w.panel_bytes();
  const uint8_t* row_scales = codes + job.steps * 128;
  for (int64_t i = 0; i < (job.first_row(last) - job.first_row(first)) * 2; ++i) store(tile + 16 * i, zero());
  for (int64_t b = 0; b < job.blocks; ++b) {
    const int64_t start = b * job.size / S::kWidth;
    const int64_t steps = job.steps - start < job.size / S::kWidth ? job.steps - start : job.size / S::kWidth;
    const uint8_t* scales = wide ? row_scales : codes + steps * 128;
    Factors f{scales, w.symmetric ? nullptr : scales + scale_bytes, wide, nullptr};
    if (share) unpack_block<X, kBits>(codes, steps, unpacker, unpacked);
    const uint8_t* next = codes + steps * 128 + factor_bytes;
    // While several row blocks compute, memory would fall idle. (One alone reads on; prefetching cost it up to half.)
    if (share) {
      for (const uint8_t* line = next; line < next + (next - codes); line += 64) __builtin_prefetch(line, 0, 2);
    }
    float* part = tile;
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = job.first_row(i);
      const int rows = int(job.first_row(i + 1) - row);
      auto* a = job.packed_row(row) + start * rows * S::kPairs;
      f.sums = job.sums + row * job.blocks + b * rows;
      if (share) {
        run_block_kernel<X, kBits, true>(rows, a, unpacked, steps, unpacker, f, part);
      } else {
        run_block_kernel<X, kBits, false>(rows, a, codes, steps, unpacker, f, part);
      }
      part += rows * kPanel;
    }
    codes = next;
  }
}

template <class X, int kBits>
void multiply(const Product<X, kBits>& job) {
  const QuantizedArgs& g = job.g;
  const int64_t panels = g.layout.panels(), row_blocks = job.row_blocks;
  const int threads = num_threads();
  int64_t chunks = (row_blocks + kSharing - 1) / kSharing;
  if (panels % threads != 0 && chunks * panels < 16 * threads) chunks = 16 * threads / panels + 1;
  if (chunks > row_blocks) chunks = row_blocks;
  parallel_for(chunks * panels, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float tile[kSharing * kRows<X, kBits> * kPanel];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t chunk = item / panels, panel = item % panels;
      const int64_t first = row_blocks * chunk / chunks, last = row_blocks * (chunk + 1) / chunks;
      const int64_t row = job.first_row(first);
      compute_panel(job, panel, first, last, tile);
      write_tile(g.y, tile, row, int(job.first_row(last) - row), panel);
    }
  });
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA
