// Sixteen lanes as two ymm registers (AVX2, FMA, F16C).
#pragma once

#include <immintrin.h>

namespace octavo::OCTAVO_ISA {

struct Vec {
  __m256 lo, hi;
};
struct Mask {
  __m256 lo, hi;
};
struct Pairs {
  __m256i lo, hi;
};
struct PairBroadcast {
  __m256 even, odd;
};

OCTAVO_INLINE __m256 widen8(const bf16* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
OCTAVO_INLINE __m256 widen8(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Round to nearest even; a NaN stays one because the quiet bit is set by hand.
OCTAVO_INLINE void narrow8(bf16* p, __m256 v) {
  __m256i u = _mm256_castps_si256(v);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
OCTAVO_INLINE void narrow8(f16* p, __m256 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

OCTAVO_INLINE Vec broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
OCTAVO_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
OCTAVO_INLINE Vec load(const bf16* p) { return {widen8(p), widen8(p + 8)}; }
OCTAVO_INLINE Vec load(const f16* p) { return {widen8(p), widen8(p + 8)}; }
OCTAVO_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v.lo); _mm256_storeu_ps(p + 8, v.hi); }
OCTAVO_INLINE void store(bf16* p, Vec v) { narrow8(p, v.lo); narrow8(p + 8, v.hi); }
OCTAVO_INLINE void store(f16* p, Vec v) { narrow8(p, v.lo); narrow8(p + 8, v.hi); }

template <class T>
OCTAVO_INLINE Vec load_n(const T* p, int n) {
  alignas(32) T buffer[16] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}
template <class T>
OCTAVO_INLINE void store_n(T* p, Vec v, int n) {
  alignas(32) T buffer[16];
  store(buffer, v);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

OCTAVO_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
OCTAVO_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
OCTAVO_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
OCTAVO_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
OCTAVO_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
OCTAVO_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
OCTAVO_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
OCTAVO_INLINE Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
OCTAVO_INLINE Vec abs(Vec a) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
OCTAVO_INLINE Vec round(Vec a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}

OCTAVO_INLINE Mask operator<(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
OCTAVO_INLINE Mask operator<=(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LE_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LE_OQ)};
}
OCTAVO_INLINE Mask operator==(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ)};
}
OCTAVO_INLINE Mask first_n(int n) {
  __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes)),
          _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lanes))};
}
OCTAVO_INLINE uint32_t bits(Mask m) {
  return uint32_t(_mm256_movemask_ps(m.lo)) | uint32_t(_mm256_movemask_ps(m.hi)) << 8;
}
OCTAVO_INLINE Vec select(Mask m, Vec a, Vec b) {
  return {_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}

OCTAVO_INLINE __m256 power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
OCTAVO_INLINE __m256 scale_by_power8(__m256 x, __m256 n) {
  __m256i whole = _mm256_cvtps_epi32(n);
  __m256i half = _mm256_srai_epi32(whole, 1);
  return _mm256_mul_ps(_mm256_mul_ps(x, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}
OCTAVO_INLINE Vec scale_by_power(Vec x, Vec n) { return {scale_by_power8(x.lo, n.lo), scale_by_power8(x.hi, n.hi)}; }

#define OCTAVO_TREE(op)                                                           \
  __m256 y = _mm256_##op##_ps(v.lo, v.hi);                                        \
  __m128 x = _mm_##op##_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1)); \
  x = _mm_##op##_ps(x, _mm_movehl_ps(x, x));                                      \
  return _mm_cvtss_f32(_mm_##op##_ss(x, _mm_movehdup_ps(x)))
OCTAVO_INLINE float reduce_add(Vec v) { OCTAVO_TREE(add); }
OCTAVO_INLINE float reduce_max(Vec v) { OCTAVO_TREE(max); }
OCTAVO_INLINE float reduce_min(Vec v) { OCTAVO_TREE(min); }
#undef OCTAVO_TREE

OCTAVO_INLINE Pairs load_pairs(const bf16* p) {
  auto* line = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(line), _mm256_loadu_si256(line + 1)};
}
OCTAVO_INLINE PairBroadcast broadcast_pair(bf16 even, bf16 odd) {
  return {_mm256_set1_ps(to_float(even)), _mm256_set1_ps(to_float(odd))};
}
OCTAVO_INLINE PairBroadcast broadcast_pair(const bf16* p) {
  __m256i pair = _mm256_set1_epi32(load_u32(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(int(0xffff0000u))))};
}
OCTAVO_INLINE __m256 dot2_8(__m256 acc, __m256i a, PairBroadcast b) {
  __m256i high = _mm256_set1_epi32(int(0xffff0000u));
  acc = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(a, high)), b.odd, acc);
  return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), b.even, acc);
}
OCTAVO_INLINE Vec dot2_bf16(Vec acc, Pairs a, PairBroadcast b) {
  return {dot2_8(acc.lo, a.lo, b), dot2_8(acc.hi, a.hi, b)};
}

}  // namespace octavo::OCTAVO_ISA
