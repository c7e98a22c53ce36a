// Matrix products of float activations with 4 and 8 bit weights (W4A16, W8A16), see Activations.FLOAT.
//
// Law 6: K is cut in blocks, which are the weight's groups, or 128 k each when the group is the whole row. Within a block
// each output element is two chains of multiply-adds from zero (the pairs of the first and of the second half of a step,
// below), in the order of k; then acc = fma(scale, chain0 + chain1, acc), and of an asymmetric weight acc = fma(offset,
// sum of x in the block, acc), block after block. None of this depends on how many rows there are. Two chains,
// because one row alone would wait for the multiply-adds of one (6 clocks each on Zen 4) and not for memory.
#include "octavo/kernels_quantized.h"

#include "octavo/linear_output.h"
#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int64_t kBlock = 128;  // most k of a block

// Rows and lines of 16 outputs that a micro-kernel takes: two chains each, two weights and an activation must fit the
// registers. An ymm Vec is two of them.
#if defined(OCTAVO_ISA_AVX512)
constexpr int kRows = 6, kLines = 2;
#elif defined(OCTAVO_ISA_AVX2)
constexpr int kRows = 3, kLines = 1;
#else
constexpr int kRows = 2, kLines = 1;
#endif
// Row blocks that share an unpacked block of weights: their sums (9 KiB), the weights and their activations fit L1.
constexpr int kSharing = 12;

// ---- weights ---------------------------------------------------------------------------------------------------

// Which k of a step are multiplied together. A dword of 4 bits holds code[k + i] at bit 8 i and code[k + 4 + i] at bit
// 8 i + 4, so that shifts by 0, 4, 8 and 12 leave the codes of a pair at the bottom of its two halves. The first half of
// the pairs is the first chain.
template <int kBits>
struct Steps;
template <>
struct Steps<4> {
  static constexpr int kWidth = 8, kPairs = 4;
  static constexpr int kEven[4] = {0, 4, 1, 5}, kOdd[4] = {2, 6, 3, 7};
};
template <>
struct Steps<8> {
  static constexpr int kWidth = 4, kPairs = 2;
  static constexpr int kEven[2] = {0, 2}, kOdd[2] = {1, 3};
};
template <int kBits>
constexpr int bit_of(int k) {
  return kBits == 8 ? 8 * k : k < 4 ? 8 * k : 8 * (k - 4) + 4;
}

// One line of codes, a dword an output, and its codes as floats less `zero`.
struct Line {
#if defined(OCTAVO_ISA_AVX512)
  __m512i v;
#elif defined(OCTAVO_ISA_AVX2)
  __m256i lo, hi;
#else
  U4 part[4];
#endif
};

OCTAVO_INLINE Line load_line(const uint8_t* p) {
#if defined(OCTAVO_ISA_AVX512)
  return {_mm512_loadu_si512(p)};
#elif defined(OCTAVO_ISA_AVX2)
  auto* line = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(line), _mm256_loadu_si256(line + 1)};
#else
  Line r;
  __builtin_memcpy(&r, p, 64);
  return r;
#endif
}

template <int kBits>
OCTAVO_INLINE Vec codes_at(Line d, int bit, Vec zero) {
  constexpr int mask = (1 << kBits) - 1;
#if defined(OCTAVO_ISA_AVX512)
  return Vec{_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(d.v, unsigned(bit)), _mm512_set1_epi32(mask)))} - zero;
#elif defined(OCTAVO_ISA_AVX2)
  __m256i m = _mm256_set1_epi32(mask);
  return Vec{_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(d.lo, bit), m)),
             _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(d.hi, bit), m))} - zero;
#else
  Vec r;
  for (int i = 0; i < 4; ++i) r.part[i] = __builtin_convertvector((I4)(d.part[i] >> bit & mask), F4);
  return r - zero;
#endif
}

// What a pair of weights and of activations is to the inner loop.
template <class X, int kBits>
struct Inner {
  using S = Steps<kBits>;
  // Widened once a row, not once a panel.
  struct A {
    float even, odd;
  };
  struct Pair {
    Vec even, odd;
  };
  // What unpacking needs beside the codes.
  struct Unpacker {
    Vec zero;
  };
  OCTAVO_INLINE Unpacker unpacker(bool symmetric) { return {broadcast(symmetric ? float(1 << (kBits - 1)) : 0.0f)}; }
  OCTAVO_INLINE Pair unpack(const Unpacker& u, Line codes, int p) {
    return {codes_at<kBits>(codes, bit_of<kBits>(S::kEven[p]), u.zero),
            codes_at<kBits>(codes, bit_of<kBits>(S::kOdd[p]), u.zero)};
  }
  OCTAVO_INLINE A pack(const X* x, int even, int odd, int64_t left) {
    return {even < left ? to_float(x[even]) : 0.0f, odd < left ? to_float(x[odd]) : 0.0f};
  }
  OCTAVO_INLINE A activation(const A* a) { return *a; }
  // As dot2_bf16: the odd one first.
  OCTAVO_INLINE Vec step(Vec acc, const Pair& w, A a) {
    return fma(w.even, broadcast(a.even), fma(w.odd, broadcast(a.odd), acc));
  }
};

#if defined(OCTAVO_ISA_AVX512)
// Whole numbers of 8 bits are exact in bfloat16.
template <int kBits>
struct InnerPairs {
  using S = Steps<kBits>;
  using A = uint32_t;
  using Pair = Pairs;
  OCTAVO_INLINE A pack(const bf16* x, int even, int odd, int64_t left) {
    return (even < left ? x[even].bits : 0u) | (odd < left ? uint32_t(x[odd].bits) << 16 : 0u);
  }
  OCTAVO_INLINE PairBroadcast activation(const A* a) { return {_mm512_set1_epi32(int(*a))}; }
  OCTAVO_INLINE Vec step(Vec acc, Pairs w, PairBroadcast a) { return dot2_bf16(acc, w, a); }
};

template <>
struct Inner<bf16, 4> : InnerPairs<4> {
  // vpermw looks up the low 5 bits of each word: a table of 16, held twice, need not know what bit 4 is.
  struct Unpacker {
    __m512i table;
  };
  OCTAVO_INLINE Unpacker unpacker(bool symmetric) {
    alignas(64) uint16_t table[32];
    for (int i = 0; i < 32; ++i) table[i] = to_bf16(float(i % 16 - (symmetric ? 8 : 0))).bits;
    return {_mm512_load_si512(table)};
  }
  OCTAVO_INLINE Pairs unpack(const Unpacker& u, Line codes, int p) {
    return {_mm512_permutexvar_epi16(_mm512_srli_epi32(codes.v, unsigned(4 * p)), u.table)};
  }
};

template <>
struct Inner<bf16, 8> : InnerPairs<8> {
  // A code put into the last bits of 2^23 makes 2^23 + code; less 2^23 + zero that is the code as a float, whose upper
  // half is the bfloat16.
  struct Unpacker {
    __m512i power;
    Vec bias;
  };
  OCTAVO_INLINE Unpacker unpacker(bool symmetric) {
    return {_mm512_set1_epi32(0x4b000000), broadcast(symmetric ? 8388608.0f + 128.0f : 8388608.0f)};
  }
  template <int kByte>
  OCTAVO_INLINE Vec code(const Unpacker& u, Line codes) {
    __m512i from = _mm512_set4_epi32(12 + kByte, 8 + kByte, 4 + kByte, kByte);
    return Vec{_mm512_castsi512_ps(_mm512_mask_shuffle_epi8(u.power, 0x1111111111111111, codes.v, from))} - u.bias;
  }
  OCTAVO_INLINE Pairs unpack(const Unpacker& u, Line codes, int p) {
    Vec even = p == 0 ? code<0>(u, codes) : code<2>(u, codes), odd = p == 0 ? code<1>(u, codes) : code<3>(u, codes);
    __m512i upper = _mm512_set4_epi32(0x0f0e, 0x0b0a, 0x0706, 0x0302);
    return {_mm512_mask_shuffle_epi8(_mm512_castps_si512(odd.v), 0x3333333333333333, _mm512_castps_si512(even.v), upper)};
  }
};
#endif

// ---- micro-kernels ---------------------------------------------------------------------------------------------

// The factors of one panel's block, and the sums of x that its offsets multiply.
struct Factors {
  const uint8_t* scales;   // 32 float16, or float32
  const uint8_t* offsets;  // likewise; null when symmetric
  bool wide;               // float32
  const float* sums;       // of rows sums[0], sums[stride], ...
  int64_t stride;
};

OCTAVO_INLINE Vec load_factor(const uint8_t* p, bool wide, int line) {
  return wide ? load(reinterpret_cast<const float*>(p) + 16 * line) : load(reinterpret_cast<const f16*>(p) + 16 * line);
}

// tile[r][0:32] += one block of R rows. a is [steps][pairs][R]; w the block's codes, or with kUnpacked its pairs,
// [steps][pairs][32].
template <class X, int kBits, int R, bool kUnpacked>
void block_kernel(const typename Inner<X, kBits>::A* OCTAVO_RESTRICT activations, const void* OCTAVO_RESTRICT weights,
                  int64_t steps, const typename Inner<X, kBits>::Unpacker unpacker, const Factors& f,
                  float* OCTAVO_RESTRICT tile) {
  using I = Inner<X, kBits>;
  constexpr int kPairs = I::S::kPairs;
  for (int first = 0; first < 2; first += kLines) {
    Vec part[R][kLines][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int l = 0; l < kLines; ++l) part[r][l][0] = part[r][l][1] = zero();
    }
    auto* a = activations;
    auto* codes = static_cast<const uint8_t*>(weights) + 64 * first;
    auto* pairs = static_cast<const typename I::Pair*>(weights) + first;
    for (int64_t s = 0; s < steps; ++s) {
      Line line[kLines];
      if constexpr (!kUnpacked) {
#pragma GCC unroll 2
        for (int l = 0; l < kLines; ++l) line[l] = load_line(codes + 64 * l);
      }
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        typename I::Pair w[kLines];
#pragma GCC unroll 2
        for (int l = 0; l < kLines; ++l) {
          if constexpr (kUnpacked) {
            w[l] = pairs[2 * p + l];
          } else {
            w[l] = I::unpack(unpacker, line[l], p);
          }
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          auto x = I::activation(a + p * R + r);
#pragma GCC unroll 2
          for (int l = 0; l < kLines; ++l) part[r][l][2 * p / kPairs] = I::step(part[r][l][2 * p / kPairs], w[l], x);
        }
      }
      a += kPairs * R;
      codes += 128;
      pairs += 2 * kPairs;
    }
    for (int l = 0; l < kLines; ++l) {
      Vec scale = load_factor(f.scales, f.wide, first + l);
      float* to = tile + 16 * (first + l);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        store(to + kPanel * r, fma(scale, part[r][l][0] + part[r][l][1], load(to + kPanel * r)));
      }
      if (!f.offsets) continue;
      Vec offset = load_factor(f.offsets, f.wide, first + l);
      for (int r = 0; r < R; ++r) {
        store(to + kPanel * r, fma(offset, broadcast(f.sums[r * f.stride]), load(to + kPanel * r)));
      }
    }
  }
}

template <class X, int kBits, bool kUnpacked, int R = kRows>
OCTAVO_INLINE void run_block_kernel(int rows, const typename Inner<X, kBits>::A* a, const void* w, int64_t steps,
                             const typename Inner<X, kBits>::Unpacker& unpacker, const Factors& f, float* tile) {
  if (rows == R) return block_kernel<X, kBits, R, kUnpacked>(a, w, steps, unpacker, f, tile);
  if constexpr (R > 1) run_block_kernel<X, kBits, kUnpacked, R - 1>(rows, a, w, steps, unpacker, f, tile);
}

// ---- activations -----------------------------------------------------------------------------------------------

// Where the blocks of a weight lie.
struct Blocks {
  QuantizedLayout layout;
  int64_t size;  // k of a block

  OCTAVO_INLINE Blocks of(const QuantizedLayout& layout) {
    return {layout, layout.group_size ? layout.group_size : kBlock};
  }
};

// Rows [begin, end) of x as [steps][pairs][rows], and of an asymmetric weight each row's sum over each block.
template <class X, int kBits>
void pack_rows(const QuantizedArgs& g, int64_t begin, int64_t end, int64_t steps,
               typename Inner<X, kBits>::A* packed) {
  using I = Inner<X, kBits>;
  using S = typename I::S;
  const int64_t rows = end - begin;
  for (int64_t r = 0; r < rows; ++r) {
    auto* x = static_cast<const X*>(g.x) + (begin + r) * g.x_stride;
    auto* to = packed + r;
    for (int64_t s = 0; s < steps; ++s) {
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
      sums[row * blocks + b] = reduce_add(sum);
    }
  }
}

// ---- product ---------------------------------------------------------------------------------------------------

template <class X, int kBits>
void linear_typed(const QuantizedArgs& g) {
  using I = Inner<X, kBits>;
  using S = typename I::S;
  using A = typename I::A;
  const QuantizedLayout& w = g.layout;
  const int64_t size = w.group_size ? w.group_size : kBlock, blocks = (w.k + size - 1) / size;
  const int64_t steps = (w.k + S::kWidth - 1) / S::kWidth, block_steps = size / S::kWidth;
  const int64_t panels = w.panels(), panel_bytes = w.panel_bytes();
  const int64_t row_blocks = (g.m + kRows - 1) / kRows;
  const int threads = num_threads();
  const bool wide = w.group_size == 0;
  auto first_row = [&](int64_t block) { return g.m * block / row_blocks; };

  const size_t sum_bytes = w.symmetric ? 0 : (size_t(g.m * blocks) * sizeof(float) + 63) / 64 * 64;
  char* scratch = static_cast<char*>(thread_scratch(sum_bytes + size_t(g.m * steps * S::kPairs) * sizeof(A)));
  float* sums = reinterpret_cast<float*>(scratch);
  A* packed = reinterpret_cast<A*>(scratch + sum_bytes);
  // Packing is shared out only when it would take longer than the fork.
  parallel_for(row_blocks, 1 + (16 << 10) / (kRows * steps * S::kPairs), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      pack_rows<X, kBits>(g, first_row(b), first_row(b + 1), steps, packed + first_row(b) * steps * S::kPairs);
      if (!w.symmetric) sum_rows<X>(g, first_row(b), first_row(b + 1), size, blocks, sums);
    }
  });

  int64_t chunks = (row_blocks + kSharing - 1) / kSharing;
  if (panels % threads != 0 && chunks * panels < 16 * threads) chunks = 16 * threads / panels + 1;
  if (chunks > row_blocks) chunks = row_blocks;
  parallel_for(chunks * panels, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float tile[kSharing * kRows * kPanel];
    alignas(64) typename I::Pair unpacked[kBlock / S::kWidth * S::kPairs * 2];
    const auto unpacker = I::unpacker(w.symmetric);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t chunk = item / panels, panel = item % panels;
      const int64_t first = row_blocks * chunk / chunks, last = row_blocks * (chunk + 1) / chunks;
      const int64_t row0 = first_row(first), rows = first_row(last) - row0;
      const uint8_t* codes = g.weight + panel * panel_bytes;
      for (int64_t i = 0; i < rows * 2; ++i) store(tile + 16 * i, zero());
      for (int64_t b = 0; b < blocks; ++b) {
        int64_t here = b * block_steps, count = steps - here < block_steps ? steps - here : block_steps;
        const uint8_t* scales = wide ? g.weight + panel * panel_bytes + steps * 128 : codes + count * 128;
        Factors f{scales, w.symmetric ? nullptr : scales + w.scale_bytes(), wide, sums + row0 * blocks + b, blocks};
        auto* a = packed + row0 * steps * S::kPairs;
        if (last - first == 1) {
          run_block_kernel<X, kBits, false>(int(rows), a + here * S::kPairs * rows, codes, count, unpacker, f, tile);
        } else {
          for (int64_t s = 0; s < count; ++s) {
            Line line0 = load_line(codes + s * 128), line1 = load_line(codes + s * 128 + 64);
#pragma GCC unroll 4
            for (int p = 0; p < S::kPairs; ++p) {
              auto* to = unpacked + (s * S::kPairs + p) * 2;
              to[0] = I::unpack(unpacker, line0, p);
              to[1] = I::unpack(unpacker, line1, p);
            }
          }
          float* part = tile;
          for (int64_t i = first; i < last; ++i) {
            int64_t row = first_row(i), n = first_row(i + 1) - row;
            f.sums = sums + row * blocks + b;
            run_block_kernel<X, kBits, true>(int(n), packed + row * steps * S::kPairs + here * S::kPairs * n, unpacked,
                                             count, unpacker, f, part);
            part += n * kPanel;
          }
        }
        codes += count * 128 + (wide ? 0 : w.scale_bytes() * (w.symmetric ? 1 : 2));
      }
      write_tile(g.y, tile, row0, int(rows), panel);
    }
  });
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
