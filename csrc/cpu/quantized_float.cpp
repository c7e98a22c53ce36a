// Matrix products of float activations with 4 and 8 bit weights (W4A16, W8A16), see Activations.FLOAT.
//
// Law 6: K is cut in blocks, which are the weight's groups, or 128 k each when the group is the whole row. Within one,
// each output element is two chains of multiply-adds from zero (the pairs of the first and of the second half of each
// step, see Steps), in the order of k; then acc = fma(scale, chain0 + chain1, acc), and of an asymmetric weight acc =
// fma(offset, sum of x in the block, acc), block after block. None of it depends on how many rows there are. There are
// two chains because a row alone would wait for one (6 clocks a multiply-add on Zen 4) and not for memory.
#include "octavo/kernels_quantized.h"

#include "octavo/linear_output.h"
#if defined(OCTAVO_ISA_AVX512)
#include "octavo/quantized_registers.h"
#else
#include "octavo/quantized_tile.h"
#endif
#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

// Rows [begin, end) of x as [steps][pairs][rows], and of an asymmetric weight each row's sum over each block.
template <class X, int kBits>
void pack_rows(const QuantizedArgs& g, int64_t begin, int64_t end, int64_t steps,
               typename Inner<X, kBits>::A* packed) {
  using I = Inner<X, kBits>;
  using S = typename I::S;
  const int64_t rows = end - begin;
  int64_t done = 0;
  auto* first = static_cast<const X*>(g.x) + begin * g.x_stride;
#if defined(OCTAVO_ISA_AVX512)
  if constexpr (sizeof(X) == 2) {
    // 16 pairs at a time through registers.
    constexpr int kAtOnce = 16 / S::kPairs;
    alignas(64) uint16_t order[32];
    for (int i = 0; i < 16; ++i) {
      int step = i / S::kPairs * S::kWidth, p = i % S::kPairs;
      order[2 * i] = uint16_t(step + S::kEven[p]);
      order[2 * i + 1] = uint16_t(step + S::kOdd[p]);
    }
    const __m512i from = _mm512_load_si512(order);
    auto pairs = [&](int64_t r) {
      __m512i x = _mm512_loadu_si512(first + r * g.x_stride + done * S::kWidth);
      return Vec{_mm512_castsi512_ps(_mm512_permutexvar_epi16(from, x))};
    };
    for (; (done + kAtOnce) * S::kWidth <= g.layout.k; done += kAtOnce) {
      auto* to = reinterpret_cast<float*>(packed + done * S::kPairs * rows);
      if (rows == 1) {
        store(to, pairs(0));
        continue;
      }
      Vec block[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) block[r] = r < rows ? pairs(r) : zero();
      transpose(block);
#pragma GCC unroll 16
      for (int p = 0; p < 16; ++p) store_n(to + p * rows, block[p], int(rows));
    }
  }
#endif
  for (int64_t r = 0; r < rows; ++r) {
    auto* x = first + r * g.x_stride;
    auto* to = packed + done * S::kPairs * rows + r;
    for (int64_t s = done; s < steps; ++s) {
#pragma GCC unroll 4
      for (int p = 0; p < S::kPairs; ++p, to += rows) {
        *to = I::pack(x + s * S::kWidth, S::kEven[p], S::kOdd[p], g.layout.k - s * S::kWidth);
      }
    }
  }
}

template <class X>
void sum_rows(const QuantizedArgs& g, int64_t begin, int64_t end, int64_t block, int64_t blocks, float* sums) {
  for (int64_t row = begin; row < end; ++row) {
    auto* x = static_cast<const X*>(g.x) + row * g.x_stride;
    for (int64_t b = 0; b < blocks; ++b) {
      Vec sum = zero();
      int64_t stop = (b + 1) * block < g.layout.k ? (b + 1) * block : g.layout.k;
      for (int64_t k = b * block; k < stop; k += 16) sum = sum + load_n(x + k, lanes_left(stop, k));
      sums[b * (end - begin) + row - begin] = reduce_add(sum);
    }
  }
}

template <class X, int kBits>
void linear_typed(const QuantizedArgs& g) {
  using S = Steps<kBits>;
  using A = typename Inner<X, kBits>::A;
  const QuantizedLayout& w = g.layout;
  const int64_t size = w.group_size ? w.group_size : kBlock, blocks = (w.k + size - 1) / size;
  const int64_t steps = (w.k + S::kWidth - 1) / S::kWidth;
  constexpr int64_t kMost = kRows<X, kBits>;

  const size_t sum_bytes = w.symmetric ? 0 : (size_t(g.m * blocks) * sizeof(float) + 63) / 64 * 64;
  char* scratch = static_cast<char*>(thread_scratch(sum_bytes + size_t(g.m * steps * S::kPairs) * sizeof(A)));
  const Product<X, kBits> job{g, size, blocks, steps, (g.m + kMost - 1) / kMost,
                              reinterpret_cast<A*>(scratch + sum_bytes), reinterpret_cast<float*>(scratch)};
  // Packing is shared out only when it would take longer than the fork.
  parallel_for(job.row_blocks, 1 + (16 << 10) / (kMost * steps * S::kPairs), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t row = job.first_row(i), stop = job.first_row(i + 1);
      pack_rows<X, kBits>(g, row, stop, steps, job.packed_row(row));
      if (!w.symmetric) sum_rows<X>(g, row, stop, size, blocks, job.sums + row * blocks);
    }
  });
  multiply(job);
}

void linear(const QuantizedArgs& g) {
  if (g.m == 0 || g.layout.n == 0) return;
  bool four = g.layout.bits == 4;
  if (g.x_bf16) return four ? linear_typed<bf16, 4>(g) : linear_typed<bf16, 8>(g);
  return four ? linear_typed<float, 4>(g) : linear_typed<float, 8>(g);
}

}  // namespace

const QuantizedFloatKernels quantized_float_kernels = {linear};

}  // namespace octavo::OCTAVO_ISA
