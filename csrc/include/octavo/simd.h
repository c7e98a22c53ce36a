// Sixteen float lanes, the same names on every instruction set, so that a kernel is written once.
//
//   Vec            16 floats.  load, load_n(p, n), store, store_n(p, v, n) take float, bf16 (round to nearest even) and f16;
//                  lanes past n load as zero and are not written; 0 <= n <= 16
//   + - * /  fma(a, b, c) = a * b + c (fused where the ISA has it, two roundings on the portable path)
//   min, max       return the second operand when either is NaN, as x86 does
//   reduce_*       one fixed tree (i with i + 8, then 4, 2, 1), the same on every ISA
//   Mask           a < b, a <= b, a == b, first_n(n), bits(mask), select(mask, if_set, otherwise)
//   Pairs          16 pairs of bf16, as in a packed weight's 64-byte line; PairBroadcast one pair for all lanes;
//                  dot2_bf16(acc, pairs, pair) = acc + pairs.odd * pair.odd + pairs.even * pair.even, lane by lane
//   exp, tanh, erf, sigmoid (math.h)
//
// Kernel files use no std:: templates: an instantiation built with AVX-512 flags could be the one that the linker keeps
// for the portable path too. For the same reason everything here is always_inline.
#pragma once

#include "octavo/types.h"

namespace octavo::OCTAVO_ISA {

OCTAVO_INLINE float from_bits(uint32_t bits) { float x; __builtin_memcpy(&x, &bits, 4); return x; }
OCTAVO_INLINE uint32_t to_bits(float x) { uint32_t bits; __builtin_memcpy(&bits, &x, 4); return bits; }
OCTAVO_INLINE uint32_t load_u32(const void* p) { uint32_t x; __builtin_memcpy(&x, p, 4); return x; }

OCTAVO_INLINE float to_float(float x) { return x; }
OCTAVO_INLINE float to_float(bf16 x) { return from_bits(uint32_t(x.bits) << 16); }
OCTAVO_INLINE float to_float(f16 x) {
  // Shifting the exponent into place and multiplying by 2^112 rebiases normals and subnormals alike.
  uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  float scaled = from_bits(magnitude) * from_bits(0x77800000u);
  if (magnitude >= 0x0f800000u) scaled = from_bits(magnitude | 0x7f800000u);
  return from_bits(to_bits(scaled) | uint32_t(x.bits & 0x8000) << 16);
}
OCTAVO_INLINE bf16 to_bf16(float x) {
  uint32_t u = to_bits(x);
  if (x != x) return {0x7fc0};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
OCTAVO_INLINE f16 to_f16(float x) {
  uint32_t u = to_bits(x);
  uint16_t sign = uint16_t(u >> 16 & 0x8000);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return {uint16_t(sign | 0x7e00)};
  if (u >= 0x477ff000u) return {uint16_t(sign | 0x7c00)};
  // Below 2^-14 the half is subnormal: adding 0.5 lets the float unit do the rounding at 2^-24.
  if (u < 0x38800000u) return {uint16_t(sign | (to_bits(from_bits(u) + 0.5f) - 0x3f000000u))};
  u += 0xfff + ((u >> 13) & 1);
  return {uint16_t(sign | ((u - 0x38000000u) >> 13))};
}
OCTAVO_INLINE void from_float(float* p, float x) { *p = x; }
OCTAVO_INLINE void from_float(bf16* p, float x) { *p = to_bf16(x); }
OCTAVO_INLINE void from_float(f16* p, float x) { *p = to_f16(x); }

}  // namespace octavo::OCTAVO_ISA

#if defined(OCTAVO_ISA_AVX512)
#include "octavo/simd_avx512.h"
#elif defined(OCTAVO_ISA_AVX2)
#include "octavo/simd_avx2.h"
#else
#include "octavo/simd_portable.h"
#endif

#include "octavo/math.h"
