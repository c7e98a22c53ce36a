// What a drawn token depends on, written once for every backend, so that all of them draw the same one to the bit.
//
// A token's weight is 2^((x - best) log2(e) / temperature) in float32, computed by single roundings that no compiler may
// fuse; its mass is the weight in units of 2^-40, a whole number. Sums of masses are exact, so they come out the same in
// any order and on any number of threads. No fused multiply-add: the portable instruction set and plain torch have none.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define OCTAVO_SAMPLING static __host__ __device__ __forceinline__
#else
#define OCTAVO_SAMPLING static inline __attribute__((always_inline))
#endif

namespace octavo::sampling {

constexpr int kMassBits = 40;  // the best token's mass is 2^40; 2^22 tokens sum up to less than 2^63
constexpr float kHalfMass = 1048576.0f;  // 2^20: masses are made in two halves of 20 bits, each exact in a float
constexpr float kHighest = 3.40282347e38f;

#if defined(__CUDA_ARCH__)
OCTAVO_SAMPLING float least(float a, float b) { return fminf(a, b); }
OCTAVO_SAMPLING float most(float a, float b) { return fmaxf(a, b); }
OCTAVO_SAMPLING float multiply(float a, float b) { return __fmul_rn(a, b); }
OCTAVO_SAMPLING float add(float a, float b) { return __fadd_rn(a, b); }
OCTAVO_SAMPLING float divide(float a, float b) { return __fdiv_rn(a, b); }
OCTAVO_SAMPLING uint64_t multiply_high(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
#else
OCTAVO_SAMPLING float least(float a, float b) { return a < b ? a : b; }
OCTAVO_SAMPLING float most(float a, float b) { return a > b ? a : b; }
OCTAVO_SAMPLING float multiply(float a, float b) { return a * b; }
OCTAVO_SAMPLING float add(float a, float b) { return a + b; }
OCTAVO_SAMPLING float divide(float a, float b) { return a / b; }
OCTAVO_SAMPLING uint64_t multiply_high(uint64_t a, uint64_t b) { return uint64_t(((unsigned __int128)a * b) >> 64); }
#endif

OCTAVO_SAMPLING uint32_t bits_of(float x) { uint32_t bits; __builtin_memcpy(&bits, &x, 4); return bits; }
OCTAVO_SAMPLING float float_of(uint32_t bits) { float x; __builtin_memcpy(&x, &bits, 4); return x; }

// Repetition penalty, then what is added (arXiv 1909.05858).
OCTAVO_SAMPLING float adjust(float logit, float scale, float plus) {
  return add(logit > 0.0f ? divide(logit, scale) : multiply(logit, scale), plus);
}

// log2(e) / temperature, kept finite and above 0, so that 0 times it is 0 and infinity times it infinity.
OCTAVO_SAMPLING float slope(float temperature) {
  const float s = divide(1.44269504f, temperature);
  return s < 1.17549435e-38f ? 1.17549435e-38f : s < kHighest ? s : kHighest;
}

// 2^t with t = (x - best) * slope in [-64, 0]; NaN counts as -64, whose mass is 0. 2^(t - round(t)) by a degree-5 minimax
// polynomial, 1 at 0, within 1.8e-7. A gives its float (or vector) F: constant, +, - and * with one rounding each,
// round (half to even), min and max (of NaN and a constant the constant), scale(p, n) = p * 2^n.
template <class A>
OCTAVO_SAMPLING typename A::F weight(typename A::F x, typename A::F best, typename A::F slope) {
  using F = typename A::F;
  F t = A::multiply(A::subtract(x, best), slope);
  t = A::min(A::max(t, A::constant(-64.0f)), A::constant(0.0f));
  const F n = A::round(t), f = A::subtract(t, n);
  F p = A::constant(1.32647273e-3f);
  p = A::add(A::multiply(p, f), A::constant(9.67151299e-3f));
  p = A::add(A::multiply(p, f), A::constant(5.55073358e-2f));
  p = A::add(A::multiply(p, f), A::constant(0.240222424f));
  p = A::add(A::multiply(p, f), A::constant(0.693147004f));
  p = A::add(A::multiply(p, f), A::constant(1.0f));
  return A::scale(p, n);
}

// The scalar A. Adding 1.5 * 2^23 rounds to a whole number, whose low bits the sum then shows.
struct Scalar {
  using F = float;
  static constexpr float kShift = 12582912.0f;
  OCTAVO_SAMPLING F constant(float x) { return x; }
  OCTAVO_SAMPLING F add(F a, F b) { return sampling::add(a, b); }
  OCTAVO_SAMPLING F subtract(F a, F b) { return sampling::add(a, -b); }
  OCTAVO_SAMPLING F multiply(F a, F b) { return sampling::multiply(a, b); }
  OCTAVO_SAMPLING F min(F a, F b) { return least(a, b); }
  OCTAVO_SAMPLING F max(F a, F b) { return most(a, b); }
  OCTAVO_SAMPLING int32_t whole(F x) { return int32_t(bits_of(sampling::add(x, kShift)) - bits_of(kShift)); }
  OCTAVO_SAMPLING F round(F x) { return sampling::add(sampling::add(x, kShift), -kShift); }
  OCTAVO_SAMPLING F scale(F p, F n) { return float_of(bits_of(p) + (uint32_t(whole(n)) << 23)); }
};

// The halves of a mass: mass = high * 2^20 + low = w * 2^40, rounded half to even.
struct Halves {
  int32_t high, low;
};
OCTAVO_SAMPLING Halves halves(float w) {
  const float scaled = multiply(w, kHalfMass);
  const float rest = Scalar::subtract(scaled, Scalar::round(scaled));
  return {Scalar::whole(scaled), Scalar::whole(multiply(rest, kHalfMass))};
}
OCTAVO_SAMPLING uint64_t mass(float w) {
  const Halves h = halves(w);
  return uint64_t((int64_t(h.high) << 20) + h.low);
}

// The least mass that a prefix must have to reach top_p (in (0, 1)) of `total`.
OCTAVO_SAMPLING uint64_t mass_of_top_p(uint64_t total, float top_p) {
  const uint64_t p = uint64_t(multiply(top_p, 18446744073709551616.0f));
  const uint64_t need = multiply_high(p, total) + (p * total != 0);
  return need > 0 ? need : 1;
}

// Words 0 and 1 of Philox4x32-10 (Salmon et al., SC 2011), word 0 on top: 64 random bits.
OCTAVO_SAMPLING uint64_t random_bits(uint64_t key, uint64_t counter) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  uint32_t c0 = uint32_t(counter), c1 = uint32_t(counter >> 32), c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
    const uint32_t next0 = uint32_t(b >> 32) ^ c1 ^ k0, next2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c1 = uint32_t(b);
    c3 = uint32_t(a);
    c0 = next0;
    c2 = next2;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return uint64_t{c0} << 32 | c1;
}

// The draw: the first id whose running mass exceeds this.
OCTAVO_SAMPLING uint64_t draw_target(int64_t seed, int32_t position, uint64_t total) {
  return multiply_high(random_bits(uint64_t(seed), uint64_t(uint32_t(position))), total);
}

}  // namespace octavo::sampling
