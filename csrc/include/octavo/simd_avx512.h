// Sixteen lanes as one zmm register (AVX-512 F, BW, VL, DQ, BF16).
#pragma once

#include <immintrin.h>

namespace octavo::OCTAVO_ISA {

struct Vec {
  __m512 v;
};
struct Mask {
  __mmask16 m;
};
struct Pairs {
  __m512i v;
};
struct PairBroadcast {
  __m512i v;
};

OCTAVO_INLINE Vec widen(__m256i x, const bf16*) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
OCTAVO_INLINE Vec widen(__m256i x, const f16*) { return {_mm512_cvtph_ps(x)}; }
OCTAVO_INLINE __m256i narrow(Vec v, const bf16*) { return (__m256i)_mm512_cvtneps_pbh(v.v); }
OCTAVO_INLINE __m256i narrow(Vec v, const f16*) { return _mm512_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT); }
OCTAVO_INLINE __mmask16 lanes(int n) { return __mmask16((1u << n) - 1); }

OCTAVO_INLINE Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
OCTAVO_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
OCTAVO_INLINE Vec load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p); }
OCTAVO_INLINE Vec load(const f16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p); }
OCTAVO_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v.v); }
OCTAVO_INLINE void store(bf16* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, p)); }
OCTAVO_INLINE void store(f16* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, p)); }

OCTAVO_INLINE Vec load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(lanes(n), p)}; }
OCTAVO_INLINE Vec load_n(const bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(lanes(n), p), p); }
OCTAVO_INLINE Vec load_n(const f16* p, int n) { return widen(_mm256_maskz_loadu_epi16(lanes(n), p), p); }
OCTAVO_INLINE void store_n(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, lanes(n), v.v); }
OCTAVO_INLINE void store_n(bf16* p, Vec v, int n) { _mm256_mask_storeu_epi16(p, lanes(n), narrow(v, p)); }
OCTAVO_INLINE void store_n(f16* p, Vec v, int n) { _mm256_mask_storeu_epi16(p, lanes(n), narrow(v, p)); }

OCTAVO_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
OCTAVO_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
OCTAVO_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
OCTAVO_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
OCTAVO_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
OCTAVO_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
OCTAVO_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
OCTAVO_INLINE Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
OCTAVO_INLINE Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
OCTAVO_INLINE Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

OCTAVO_INLINE Mask operator<(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
OCTAVO_INLINE Mask operator<=(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
OCTAVO_INLINE Mask operator==(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
OCTAVO_INLINE Mask first_n(int n) { return {n >= 16 ? __mmask16(0xffff) : n <= 0 ? __mmask16(0) : lanes(n)}; }
OCTAVO_INLINE uint32_t bits(Mask m) { return m.m; }
OCTAVO_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }

OCTAVO_INLINE Vec scale_by_power(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }

#define OCTAVO_TREE(op)                                                                                     \
  __m256 y = _mm256_##op##_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));                 \
  __m128 x = _mm_##op##_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));                         \
  x = _mm_##op##_ps(x, _mm_movehl_ps(x, x));                                                                \
  return _mm_cvtss_f32(_mm_##op##_ss(x, _mm_movehdup_ps(x)))
OCTAVO_INLINE float reduce_add(Vec v) { OCTAVO_TREE(add); }
OCTAVO_INLINE float reduce_max(Vec v) { OCTAVO_TREE(max); }
OCTAVO_INLINE float reduce_min(Vec v) { OCTAVO_TREE(min); }
#undef OCTAVO_TREE

OCTAVO_INLINE Pairs load_pairs(const bf16* p) { return {_mm512_loadu_si512(p)}; }
OCTAVO_INLINE PairBroadcast broadcast_pair(const bf16* p) { return {_mm512_set1_epi32(int(load_u32(p)))}; }
OCTAVO_INLINE PairBroadcast broadcast_pair(bf16 even, bf16 odd) {
  return {_mm512_set1_epi32(int(uint32_t(even.bits) | uint32_t(odd.bits) << 16))};
}
OCTAVO_INLINE Vec dot2_bf16(Vec acc, Pairs a, PairBroadcast b) {
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)};
}

// A 16 by 16 block of 4-byte elements, rows become columns.
OCTAVO_INLINE void transpose(Vec (&rows)[16]) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_castps_si512(rows[i].v);
  // Within 128-bit lanes: 4 by 4 transposes of rows 4i .. 4i + 3.
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4i + j] holds columns j, j + 4, j + 8, j + 12 of rows 4i .. 4i + 3: transpose the lanes between the four i.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    __m512i low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x44), high = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xee);
    __m512i low2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x44), high2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xee);
    rows[j].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(low, low2, 0x88));
    rows[4 + j].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(low, low2, 0xdd));
    rows[8 + j].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(high, high2, 0x88));
    rows[12 + j].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(high, high2, 0xdd));
  }
}

}  // namespace octavo::OCTAVO_ISA
