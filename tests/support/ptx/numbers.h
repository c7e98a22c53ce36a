// The narrow floats: f16, bf16 and fp8's e4m3, to and from wider ones, rounded once to nearest even.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "lanes.h"

namespace ptx {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

inline float widen(bf16 x) { return as<float>(uint32_t(x.bits) << 16); }
inline float widen(f16 x) {
  const uint32_t magnitude = x.bits & 0x7fffu;
  const float value = magnitude >= 0x7c00u ? as<float>(0x7f800000u | (magnitude & 0x3ffu) << 13)
                                           : std::ldexp(float(magnitude & 0x3ffu) + (magnitude >> 10 ? 1024.f : 0.f),
                                                        std::max(int(magnitude >> 10), 1) - 25);
  return x.bits & 0x8000u ? -value : value;
}
// To nearest even, from double, for a type of `mantissa` bits whose smallest normal exponent is `lowest`.
inline double rounded(double x, int mantissa, int lowest) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), lowest) - mantissa;
  return std::ldexp(std::nearbyint(std::ldexp(x, -exponent)), exponent);
}
template <class T>
T narrow(double x);
template <>
inline bf16 narrow<bf16>(double x) {
  if (std::isnan(x)) return {0x7fff};
  return {uint16_t(as<uint32_t>(float(rounded(x, 7, -126))) >> 16)};
}
template <>
inline f16 narrow<f16>(double x) {
  if (std::isnan(x)) return {0x7fff};
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double r = std::fabs(rounded(x, 10, -14));
  if (r >= 65536) return {uint16_t(sign | 0x7c00)};
  if (r == 0) return {sign};
  const int exponent = std::max(std::ilogb(r), -14);
  const int fraction = int(std::ldexp(r, 10 - exponent));  // 1024..2047, less where subnormal
  return {uint16_t(sign | (fraction < 1024 ? fraction : (exponent + 15) << 10 | (fraction - 1024)))};
}
inline float e4m3(uint8_t x) {
  const int exponent = x >> 3 & 15, fraction = x & 7;
  float value = exponent == 15 && fraction == 7 ? std::numeric_limits<float>::quiet_NaN()
                : exponent                      ? std::ldexp(8.f + float(fraction), exponent - 10)
                                                : std::ldexp(float(fraction), -9);
  return x & 0x80 ? -value : value;
}
inline uint8_t to_e4m3(float x) {
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) return 0x7f;  // PTX: the canonical NaN
  const double r = std::min(std::fabs(rounded(x, 3, -6)), 448.0);
  if (r == 0) return sign;
  const int exponent = std::max(std::ilogb(r), -6);
  const int fraction = int(std::ldexp(r, 3 - exponent));
  return uint8_t(sign | (fraction < 8 ? fraction : (exponent + 7) << 3 | (fraction - 8)));
}

}  // namespace ptx
