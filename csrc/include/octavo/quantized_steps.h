// What quantized_float.cpp multiplies: codes of 4 and 8 bits as pairs of floats, and one call's activations.
#pragma once

#include "octavo/kernels_quantized.h"
#include "octavo/simd.h"

namespace octavo::OCTAVO_ISA {
namespace {

// Which k of a step are multiplied together. A dword of 4 bit codes holds code[k + i] at bit 8 i and code[k + 4 + i] at
// bit 8 i + 4, so that shifts by 0, 4, 8 and 12 leave the codes of a pair at the bottom of its two halves. The first
// half of the pairs is the first chain.
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
  __m512i code = _mm512_and_si512(_mm512_srli_epi32(d.v, unsigned(bit)), _mm512_set1_epi32(mask));
  return Vec{_mm512_cvtepi32_ps(code)} - zero;
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
  OCTAVO_INLINE Pair unpack(const Unpacker& u, Line line, int p) {
    return {codes_at<kBits>(line, bit_of<kBits>(S::kEven[p]), u.zero),
            codes_at<kBits>(line, bit_of<kBits>(S::kOdd[p]), u.zero)};
  }
  OCTAVO_INLINE A pack(const X* x, int even, int odd, int64_t left) {
    return {even < left ? to_float(x[even]) : 0.0f, odd < left ? to_float(x[odd]) : 0.0f};
  }
  OCTAVO_INLINE A activation(const A* a) { return *a; }
  OCTAVO_INLINE Vec step_from(Vec acc, const Pair& w, const A* a) { return step(acc, w, *a); }
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
  OCTAVO_INLINE Vec step_from(Vec acc, Pairs w, const A* a) {
    // gcc 12 has no pattern for the broadcast in the operand. As many broadcasts by themselves cost multiply-adds.
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc.v) : "v"(w.v), "m"(*a));
    return acc;
  }
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
  // A code put into the last bits of 2^23 makes 2^23 + code, and one put 8 bits higher into 2^15 makes 2^15 + code;
  // less that power and the zero they are floats, whose upper halves are the bfloat16s and whose lower halves are 0.
  struct Unpacker {
    Vec even, odd;
  };
  OCTAVO_INLINE Unpacker unpacker(bool symmetric) {
    float zero = symmetric ? 128.0f : 0.0f;
    return {broadcast(8388608.0f + zero), broadcast(32768.0f + zero)};
  }
  OCTAVO_INLINE Vec insert(__m512i line, int mask, int power) {
    constexpr int select = 0xea;  // (a & b) | c
    __m512i bits = _mm512_ternarylogic_epi32(line, _mm512_set1_epi32(mask), _mm512_set1_epi32(power), select);
    return {_mm512_castsi512_ps(bits)};
  }
  OCTAVO_INLINE Pairs unpack(const Unpacker& u, Line codes, int p) {
    __m512i line = _mm512_srli_epi32(codes.v, unsigned(16 * p));
    __m512i even = _mm512_castps_si512((insert(line, 0xff, 0x4b000000) - u.even).v);
    __m512i odd = _mm512_castps_si512((insert(line, 0xff00, 0x47000000) - u.odd).v);
    return {_mm512_or_si512(_mm512_srli_epi32(even, 16), odd)};
  }
};
#endif

constexpr int64_t kBlock = 128;  // most k of a block, see quantized_float.cpp

// One call: its rows in blocks of at most kRows, packed as a micro-kernel reads them.
template <class X, int kBits>
struct Product {
  const QuantizedArgs& g;
  int64_t size, blocks;  // k of a block, and how many there are
  int64_t steps;         // of a row
  int64_t row_blocks;
  typename Inner<X, kBits>::A* packed;  // [m][steps][pairs], a block of R rows as [steps][pairs][R]
  float* sums;  // of x over each block of K, for an asymmetric weight: [m][blocks], R rows as [blocks][R]

  __attribute__((always_inline)) int64_t first_row(int64_t row_block) const { return g.m * row_block / row_blocks; }
  __attribute__((always_inline)) auto* packed_row(int64_t row) const {
    return packed + row * steps * Steps<kBits>::kPairs;
  }
};

// Scales or offsets of line `line` of a panel: 32 float16, or float32 when wide.
OCTAVO_INLINE Vec load_factor(const uint8_t* p, bool wide, int line) {
  return wide ? load(reinterpret_cast<const float*>(p) + 16 * line) : load(reinterpret_cast<const f16*>(p) + 16 * line);
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA
