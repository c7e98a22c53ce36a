// Elementary functions on Vec. Included by simd.h.
#pragma once

namespace octavo::OCTAVO_ISA {

OCTAVO_INLINE Vec zero() { return broadcast(0.0f); }

// e^x within 2 ulp: x = n ln2 + r, |r| <= ln2 / 2, a degree-6 polynomial in r (Cody and Waite's two-part ln2).
// Below -87.33 the result is 0 (no subnormals), above 88.72 infinity; NaN stays NaN.
OCTAVO_INLINE Vec exp(Vec x) {
  const Vec low = broadcast(-87.33654f), high = broadcast(88.72283f);
  Vec clamped = min(high, max(low, x));
  Vec n = round(clamped * broadcast(1.44269504f));
  Vec r = fma(n, broadcast(-0.693145752f), clamped);
  r = fma(n, broadcast(-1.42860677e-6f), r);
  Vec p = broadcast(1.38888889e-3f);
  p = fma(p, r, broadcast(8.33333333e-3f));
  p = fma(p, r, broadcast(4.16666667e-2f));
  p = fma(p, r, broadcast(1.66666667e-1f));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  Vec y = scale_by_power(p, n);
  y = select(x < low, zero(), y);
  return select(high < x, broadcast(__builtin_inff()), y);
}

OCTAVO_INLINE Vec sigmoid(Vec x) {
  return broadcast(1.0f) / (broadcast(1.0f) + exp(zero() - x));
}

// x sigmoid(x) within 1.1e-6 of itself for |x| < 20: 2^t, t = -x log2(e), from a degree-5 minimax polynomial. Every
// gated product ends here: against exp(), 60 of 7600 cycles a tile of 12 rows and k = 576.
OCTAVO_INLINE Vec silu(Vec x) {
  Vec t = min(max(x * broadcast(-1.44269504f), broadcast(-126.0f)), broadcast(128.0f));
  Vec n = round(t), f = t - n;
  Vec p = broadcast(1.32647273e-3f);
  p = fma(p, f, broadcast(9.67151299e-3f));
  p = fma(p, f, broadcast(5.55073358e-2f));
  p = fma(p, f, broadcast(0.240222424f));
  p = fma(p, f, broadcast(0.693147004f));
  p = fma(p, f, broadcast(1.0f));
  return x / (broadcast(1.0f) + scale_by_power(p, n));
}

// tanh: its Taylor series where 1 - e^-2x would cancel, (1 - e) / (1 + e) elsewhere.
OCTAVO_INLINE Vec tanh(Vec x) {
  Vec a = abs(x), s = x * x;
  Vec p = broadcast(2.18694885e-2f);
  p = fma(p, s, broadcast(-5.39682540e-2f));
  p = fma(p, s, broadcast(1.33333333e-1f));
  p = fma(p, s, broadcast(-3.33333333e-1f));
  Vec small = fma(p * s, x, x);
  Vec e = exp(a * broadcast(-2.0f));
  Vec large = (broadcast(1.0f) - e) / (broadcast(1.0f) + e);
  large = select(x < zero(), zero() - large, large);
  return select(a < broadcast(0.3f), small, large);
}

// erf to 1.5e-7 absolute (Abramowitz and Stegun, 7.1.26).
OCTAVO_INLINE Vec erf(Vec x) {
  Vec a = abs(x);
  Vec t = broadcast(1.0f) / fma(a, broadcast(0.3275911f), broadcast(1.0f));
  Vec p = broadcast(1.061405429f);
  p = fma(p, t, broadcast(-1.453152027f));
  p = fma(p, t, broadcast(1.421413741f));
  p = fma(p, t, broadcast(-0.284496736f));
  p = fma(p, t, broadcast(0.254829592f));
  Vec y = broadcast(1.0f) - p * t * exp(zero() - a * a);
  return select(x < zero(), zero() - y, y);
}

}  // namespace octavo::OCTAVO_ISA
