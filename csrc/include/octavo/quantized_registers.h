// Products with the sums in registers, for AVX-512: nothing is stored before a row is done, and every block of rows
// unpacks the weights for itself.
//
// Measured on Zen 4: a store costs 1.6 to 2 clocks of multiply-adds (both want the same read port; a multiplication, an
// addition or a load costs none), so that adding each block of K to a tile in L1 held this to 68 % of peak. Shifts,
// permutes and conversions run beside multiply-adds, one for each two.
#pragma once

#include "octavo/linear_output.h"
#include "octavo/quantized_steps.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

// Most rows of a micro-kernel: for each and a line of 16 outputs two chains and a sum, in 32 registers with a weight
// and what unpacks it. Up to half as many take both lines of a panel at once, more take one after the other. (8 bits
// with 10 rows spilled and ran at 76 % of peak, with 8 at 87 %.)
template <class X, int kBits>
constexpr int kRows = sizeof(X) == 2 && kBits == 4 ? 10 : 8;
template <class X, int kBits>
constexpr int kBothLines = kRows<X, kBits> / 2;
// Packed activations of one row chunk stay in L2 (1 MiB on Zen 4) beside a weight panel.
constexpr int64_t kChunkBytes = 384 << 10;
// Fewer rows leave memory to the hardware's prefetcher, which does best alone (5 rows: 190 GFLOP/s, 135 with more).
constexpr int kPrefetchRows = 6;
// With this many rows times pairs of K an item takes some microseconds and is claimed by itself.
constexpr int64_t kOwnClaim = 4 << 10;

// What the weight stream will want next, touched at `pace` bytes a step so that memory works while the registers do.
struct Ahead {
  const uint8_t* at;
  int64_t pace;
};

// The compiler would load a line again for every pair: right with many rows, when registers are short, but one or two
// wait for memory.
OCTAVO_INLINE void keep_in_register(Line& line) { asm("" : "+v"(line.v)); }

// One panel and how its blocks follow each other.
struct Panel {
  const uint8_t* codes;
  const uint8_t* row_scales;  // float32, of a weight whose group is the row; else null
  bool symmetric;
  int64_t blocks, steps, last_steps;  // steps of a block, and of the last
};

// y[r][0:16 * L] = x[r, :] . w, of R rows and the L lines of a panel from line `first` on. a is [steps][pairs][R], sums
// [blocks][R].
template <class X, int kBits, int R, int L>
__attribute__((noinline)) void micro_kernel(const typename Inner<X, kBits>::A* OCTAVO_RESTRICT a,
                                            const float* OCTAVO_RESTRICT sums, const Panel& panel, int first,
                                            Finish form, const PanelOutput& y, Ahead ahead) {
  using I = Inner<X, kBits>;
  constexpr int kPairs = I::S::kPairs;
  const auto unpacker = I::unpacker(panel.symmetric);
  const uint8_t* codes = panel.codes + 64 * first;
  Vec acc[R][L];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int l = 0; l < L; ++l) acc[r][l] = zero();
  }
  for (int64_t b = 0; b < panel.blocks; ++b) {
    Vec chains[R][L][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int l = 0; l < L; ++l) chains[r][l][0] = chains[r][l][1] = zero();
    }
    for (int64_t s = b + 1 < panel.blocks ? panel.steps : panel.last_steps; s > 0; --s) {
      Line line[L];
#pragma GCC unroll 2
      for (int l = 0; l < L; ++l) {
        line[l] = load_line(codes + 64 * l);
        if constexpr (R <= 2) keep_in_register(line[l]);
      }
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        typename I::Pair w[L];
#pragma GCC unroll 2
        for (int l = 0; l < L; ++l) w[l] = I::unpack(unpacker, line[l], p);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          if constexpr (L == 1) {
            Vec& chain = chains[r][0][2 * p / kPairs];
            chain = I::step_from(chain, w[0], a + p * R + r);
          } else {
            auto x = I::activation(a + p * R + r);
#pragma GCC unroll 2
            for (int l = 0; l < L; ++l) {
              Vec& chain = chains[r][l][2 * p / kPairs];
              chain = I::step(chain, w[l], x);
            }
          }
        }
      }
      if constexpr (R >= kPrefetchRows) {
        __builtin_prefetch(ahead.at, 0, 2);
        __builtin_prefetch(ahead.at + 64, 0, 2);
        ahead.at += ahead.pace;
      }
      a += kPairs * R;
      codes += 128;
    }
    const bool wide = panel.row_scales;
    const uint8_t* factors = wide ? panel.row_scales : codes - 64 * first;
#pragma GCC unroll 2
    for (int l = 0; l < L; ++l) {
      Vec scale = load_factor(factors, wide, first + l);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][l] = fma(scale, chains[r][l][0] + chains[r][l][1], acc[r][l]);
    }
    if (!wide) codes += 64;
    if (panel.symmetric) continue;
#pragma GCC unroll 2
    for (int l = 0; l < L; ++l) {
      Vec offset = load_factor(factors + (wide ? 128 : 64), wide, first + l);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][l] = fma(offset, broadcast(sums[r]), acc[r][l]);
    }
    sums += R;
    if (!wide) codes += 64;
  }
  switch (form) {
    case Finish::kBFloat16: return finish<Finish::kBFloat16>(y, acc);
    case Finish::kFloat32: return finish<Finish::kFloat32>(y, acc);
    case Finish::kAdd: return finish<Finish::kAdd>(y, acc);
    case Finish::kTile: return finish<Finish::kTile>(y, acc);
  }
}

template <class X, int kBits, int R = kRows<X, kBits>>
OCTAVO_INLINE void run_micro_kernel(int rows, const typename Inner<X, kBits>::A* a, const float* sums,
                                    const Panel& panel, Finish form, const PanelOutput& y, Ahead ahead) {
  if (rows == R) {
    if constexpr (R <= kBothLines<X, kBits>) return micro_kernel<X, kBits, R, 2>(a, sums, panel, 0, form, y, ahead);
    if constexpr (R > kBothLines<X, kBits>) {
      micro_kernel<X, kBits, R, 1>(a, sums, panel, 0, form, y, ahead);
      const int64_t size = form == Finish::kBFloat16 ? sizeof(bf16) : sizeof(float);
      PanelOutput second{static_cast<char*>(y.at) + 16 * size, y.stride, y.bias ? y.bias + 16 : nullptr};
      ahead.at += ahead.pace * ((panel.blocks - 1) * panel.steps + panel.last_steps);
      return micro_kernel<X, kBits, R, 1>(a, sums, panel, 1, form, second, ahead);
    }
  }
  if constexpr (R > 1) run_micro_kernel<X, kBits, R - 1>(rows, a, sums, panel, form, y, ahead);
}

template <class X, int kBits>
void multiply(const Product<X, kBits>& job) {
  const QuantizedArgs& g = job.g;
  const QuantizedLayout& w = g.layout;
  const int64_t panels = w.panels(), bytes = w.panel_bytes(), blocks = job.row_blocks;
  const int64_t full = job.size / Steps<kBits>::kWidth;
  const int64_t row_pairs = job.steps * Steps<kBits>::kPairs;
  const int threads = num_threads();
  int64_t chunks = (g.m * row_pairs * int64_t(sizeof(*job.packed)) + kChunkBytes - 1) / kChunkBytes;
  if (panels % threads != 0 && chunks * panels < 16 * threads) chunks = 16 * threads / panels + 1;
  if (chunks > blocks) chunks = blocks;
  const int64_t items = chunks * panels;
  auto run = [&](int64_t begin, int64_t end, int64_t stride) {
    alignas(64) float tile[kRows<X, kBits> * kPanel];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t chunk = item / panels, panel = item % panels;
      const int64_t first = blocks * chunk / chunks, count = blocks * (chunk + 1) / chunks - first;
      const uint8_t* codes = g.weight + panel * bytes;
      const Panel p{codes, w.group_size ? nullptr : codes + job.steps * 128, w.symmetric, job.blocks, full,
                    job.steps - (job.blocks - 1) * full};
      const Finish form = finish_of(g.y, panel);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = job.first_row(first + i);
        const int rows = int(job.first_row(first + i + 1) - row);
        // Each block of rows fetches its share of the panel that this thread takes next.
        const int64_t passes = count * (rows > kBothLines<X, kBits> ? 2 : 1);
        const Ahead ahead{codes + stride * bytes + bytes * i / count, bytes / (job.steps * passes) + 1};
        prefetch_output(g.y, g.m, row, rows, panel);
        const PanelOutput y =
            form == Finish::kTile ? PanelOutput{tile, kPanel, nullptr} : panel_output(g.y, row, panel);
        run_micro_kernel<X, kBits>(rows, job.packed_row(row), job.sums + row * job.blocks, p, form, y, ahead);
        if (form == Finish::kTile) write_tile(g.y, tile, row, rows, panel);
      }
    }
  };
  if (threads > 1 && g.m * row_pairs >= kOwnClaim && items <= 65535) {
    fork_each(items, [&](int64_t item) { run(item, item + 1, threads); });
  } else {
    parallel_for(items, 1, [&](int64_t begin, int64_t end) { run(begin, end, 1); });
  }
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA
