// Products of bytes: sixteen int32 lanes that each add four products of an unsigned code and a signed activation.
//
//   IntVec           16 int32.  broadcast_int(i), to_float
//   Codes            64 bytes, four codes a lane.  load_codes8; load_codes4 gives the low and the high nibbles
//   kCodeBias        what load_codes8 took off every code (AVX2 multiplies signed bytes only)
//   dot8(acc, codes, a)         acc + sum of the lane's four codes * the four int8 of *a, exact modulo 2^32
//   dot4(acc, codes, a, b)      likewise low nibbles * a + high nibbles * b
//   store_int8(p, v)            16 whole floats in [-127, 127]
#pragma once

#include "octavo/simd.h"

namespace octavo::OCTAVO_ISA {

#if defined(OCTAVO_ISA_AVX512)

constexpr int kCodeBias = 0;
// Of int32, as vpdpbusd's operands are: gcc 12 keeps an array of __m512i (of int64) in memory around its casts.
typedef int32_t I16 __attribute__((vector_size(64)));
struct IntVec {
  I16 v;
};
struct Codes {
  I16 v;
};
struct Nibbles {
  I16 low, high;
};
OCTAVO_INLINE I16 spread(int32_t x) { return I16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
OCTAVO_INLINE IntVec broadcast_int(int32_t x) { return {spread(x)}; }
OCTAVO_INLINE Vec to_float(IntVec x) { return {_mm512_cvtepi32_ps((__m512i)x.v)}; }
OCTAVO_INLINE Codes load_codes8(const uint8_t* p) { return {(I16)_mm512_loadu_si512(p)}; }
OCTAVO_INLINE Nibbles load_codes4(const uint8_t* p) {
  I16 line = load_codes8(p).v;
  return {line & 0x0f0f0f0f, (line >> 4) & 0x0f0f0f0f};
}
OCTAVO_INLINE IntVec dot8(IntVec acc, Codes w, const int32_t* a) {
  return {(I16)_mm512_dpbusd_epi32((__m512i)acc.v, (__m512i)w.v, (__m512i)spread(*a))};
}
OCTAVO_INLINE IntVec dot4(IntVec acc, Nibbles w, const int32_t* a, const int32_t* b) {
  return dot8(dot8(acc, {w.low}, a), {w.high}, b);
}
OCTAVO_INLINE void store_int8(int8_t* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v.v)));
}

#elif defined(OCTAVO_ISA_AVX2)

// vpmaddubsw adds two products in a saturating int16: 255 * 127 * 2 would not fit, |code - 128| * 127 * 2 does.
constexpr int kCodeBias = 128;
struct IntVec {
  __m256i lo, hi;
};
struct Codes {
  __m256i lo, hi;  // signed
};
struct Nibbles {
  __m256i low[2], high[2];
};
OCTAVO_INLINE IntVec broadcast_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
OCTAVO_INLINE Vec to_float(IntVec x) { return {_mm256_cvtepi32_ps(x.lo), _mm256_cvtepi32_ps(x.hi)}; }
OCTAVO_INLINE __m256i load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
OCTAVO_INLINE Codes load_codes8(const uint8_t* p) {
  __m256i bias = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(load_bytes(p), bias), _mm256_xor_si256(load_bytes(p + 32), bias)};
}
OCTAVO_INLINE Nibbles load_codes4(const uint8_t* p) {
  __m256i mask = _mm256_set1_epi8(15), x = load_bytes(p), y = load_bytes(p + 32);
  return {{_mm256_and_si256(x, mask), _mm256_and_si256(y, mask)},
          {_mm256_and_si256(_mm256_srli_epi16(x, 4), mask), _mm256_and_si256(_mm256_srli_epi16(y, 4), mask)}};
}
OCTAVO_INLINE __m256i add_pairs(__m256i acc, __m256i pairs) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
OCTAVO_INLINE IntVec dot8(IntVec acc, Codes w, const int32_t* a) {
  __m256i x = _mm256_set1_epi32(*a);
  return {add_pairs(acc.lo, _mm256_maddubs_epi16(_mm256_abs_epi8(w.lo), _mm256_sign_epi8(x, w.lo))),
          add_pairs(acc.hi, _mm256_maddubs_epi16(_mm256_abs_epi8(w.hi), _mm256_sign_epi8(x, w.hi)))};
}
OCTAVO_INLINE IntVec dot4(IntVec acc, Nibbles w, const int32_t* a, const int32_t* b) {
  __m256i x = _mm256_set1_epi32(*a), y = _mm256_set1_epi32(*b);
  auto pairs = [&](int i) {
    return _mm256_add_epi16(_mm256_maddubs_epi16(w.low[i], x), _mm256_maddubs_epi16(w.high[i], y));
  };
  return {add_pairs(acc.lo, pairs(0)), add_pairs(acc.hi, pairs(1))};
}
OCTAVO_INLINE void store_int8(int8_t* p, Vec v) {
  __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi));
  words = _mm256_permute4x64_epi64(words, 0xd8);
  __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

#else

// A product of one code and one activation fits an int16, so two lie in a lane; their sum is taken in 32 bits.
constexpr int kCodeBias = 0;
typedef int16_t S8 __attribute__((vector_size(16)));
struct IntVec {
  I4 part[4];
};
struct Codes {
  U4 part[4];
};
struct Nibbles {
  U4 low[4], high[4];
};
#define OCTAVO_PARTS _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i)
OCTAVO_INLINE IntVec broadcast_int(int32_t x) {
  IntVec r;
  OCTAVO_PARTS r.part[i] = I4{x, x, x, x};
  return r;
}
OCTAVO_INLINE Vec to_float(IntVec x) {
  Vec r;
  OCTAVO_PARTS r.part[i] = __builtin_convertvector(x.part[i], F4);
  return r;
}
OCTAVO_INLINE Codes load_codes8(const uint8_t* p) {
  Codes r;
  __builtin_memcpy(&r, p, 64);
  return r;
}
OCTAVO_INLINE Nibbles load_codes4(const uint8_t* p) {
  Codes line = load_codes8(p);
  Nibbles r;
  OCTAVO_PARTS {
    r.low[i] = line.part[i] & 0x0f0f0f0fu;
    r.high[i] = (line.part[i] >> 4) & 0x0f0f0f0fu;
  }
  return r;
}
OCTAVO_INLINE S8 even_bytes(U4 x) { return (S8)(x & 0x00ff00ffu); }
OCTAVO_INLINE S8 odd_bytes(U4 x) { return (S8)((x >> 8) & 0x00ff00ffu); }
// Activations 0 and 2, or 1 and 3, as int16 in every lane.
OCTAVO_INLINE S8 even_quad(int32_t a) {
  auto x = int16_t(int8_t(a)), y = int16_t(int8_t(a >> 16));
  return S8{x, y, x, y, x, y, x, y};
}
OCTAVO_INLINE S8 odd_quad(int32_t a) { return even_quad(a >> 8); }
OCTAVO_INLINE I4 add_pairs(I4 acc, S8 pairs) { return acc + ((I4)((U4)pairs << 16) >> 16) + ((I4)pairs >> 16); }
OCTAVO_INLINE IntVec dot8(IntVec acc, Codes w, const int32_t* a) {
  S8 even = even_quad(*a), odd = odd_quad(*a);
  OCTAVO_PARTS {
    acc.part[i] = add_pairs(acc.part[i], even_bytes(w.part[i]) * even);
    acc.part[i] = add_pairs(acc.part[i], odd_bytes(w.part[i]) * odd);
  }
  return acc;
}
OCTAVO_INLINE IntVec dot4(IntVec acc, Nibbles w, const int32_t* a, const int32_t* b) {
  S8 even = even_quad(*a), odd = odd_quad(*a), even_b = even_quad(*b), odd_b = odd_quad(*b);
  OCTAVO_PARTS {
    S8 pairs = even_bytes(w.low[i]) * even + odd_bytes(w.low[i]) * odd;
    pairs += even_bytes(w.high[i]) * even_b + odd_bytes(w.high[i]) * odd_b;
    acc.part[i] = add_pairs(acc.part[i], pairs);
  }
  return acc;
}
#undef OCTAVO_PARTS
OCTAVO_INLINE void store_int8(int8_t* p, Vec v) {
  float lanes[16];
  store(lanes, v);
  for (int i = 0; i < 16; ++i) p[i] = int8_t(int32_t(lanes[i]));
}

#endif

}  // namespace octavo::OCTAVO_ISA
