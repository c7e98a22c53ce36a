// Sixteen lanes as four 16-byte vectors of the compiler's own kind: SSE2 or NEON where there is nothing better, and the
// reading of what the other instruction sets must do.
#pragma once

#include <cmath>

namespace octavo::OCTAVO_ISA {

typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
typedef uint32_t U4 __attribute__((vector_size(16)));

struct Vec {
  F4 part[4];
};
// All bits of a lane or none.
struct Mask {
  I4 part[4];
};
// Sixteen pairs of bfloat16, one pair to a lane.
struct Pairs {
  U4 part[4];
};
// One pair, broadcast.
struct PairBroadcast {
  float even, odd;
};

#define OCTAVO_PARTS _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i)

OCTAVO_INLINE F4 spread(float x) { return F4{x, x, x, x}; }
OCTAVO_INLINE Vec broadcast(float x) { Vec r; OCTAVO_PARTS r.part[i] = spread(x); return r; }
OCTAVO_INLINE Vec load(const float* p) { Vec r; __builtin_memcpy(&r, p, 64); return r; }
OCTAVO_INLINE Vec load(const bf16* p) {
  Vec r;
  OCTAVO_PARTS {
    r.part[i] = (F4)(U4{p[4 * i].bits, p[4 * i + 1].bits, p[4 * i + 2].bits, p[4 * i + 3].bits} << 16);
  }
  return r;
}
OCTAVO_INLINE Vec load(const f16* p) {
  Vec r;
  OCTAVO_PARTS {
    r.part[i] = F4{to_float(p[4 * i]), to_float(p[4 * i + 1]), to_float(p[4 * i + 2]), to_float(p[4 * i + 3])};
  }
  return r;
}
OCTAVO_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, 64); }

template <class T>
OCTAVO_INLINE void store_n(T* p, Vec v, int n) {
  float lanes[16];
  store(lanes, v);
  for (int i = 0; i < n; ++i) from_float(p + i, lanes[i]);
}
template <class T>
OCTAVO_INLINE Vec load_n(const T* p, int n) {
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i] = to_float(p[i]);
  return load(lanes);
}
OCTAVO_INLINE void store(bf16* p, Vec v) { store_n(p, v, 16); }
OCTAVO_INLINE void store(f16* p, Vec v) { store_n(p, v, 16); }

OCTAVO_INLINE Vec operator+(Vec a, Vec b) { OCTAVO_PARTS a.part[i] += b.part[i]; return a; }
OCTAVO_INLINE Vec operator-(Vec a, Vec b) { OCTAVO_PARTS a.part[i] -= b.part[i]; return a; }
OCTAVO_INLINE Vec operator*(Vec a, Vec b) { OCTAVO_PARTS a.part[i] *= b.part[i]; return a; }
OCTAVO_INLINE Vec operator/(Vec a, Vec b) { OCTAVO_PARTS a.part[i] /= b.part[i]; return a; }
OCTAVO_INLINE Vec fma(Vec a, Vec b, Vec c) { OCTAVO_PARTS c.part[i] += a.part[i] * b.part[i]; return c; }
// Halves to even, for |x| < 2^22.
OCTAVO_INLINE Vec round(Vec a) {
  OCTAVO_PARTS a.part[i] = (a.part[i] + spread(12582912.0f)) - spread(12582912.0f);
  return a;
}
OCTAVO_INLINE Vec abs(Vec a) { OCTAVO_PARTS a.part[i] = (F4)((I4)a.part[i] & 0x7fffffff); return a; }
OCTAVO_INLINE Vec sqrt(Vec a) {
  OCTAVO_PARTS for (int j = 0; j < 4; ++j) a.part[i][j] = ::sqrtf(a.part[i][j]);
  return a;
}

OCTAVO_INLINE Mask operator<(Vec a, Vec b) { Mask m; OCTAVO_PARTS m.part[i] = a.part[i] < b.part[i]; return m; }
OCTAVO_INLINE Mask operator<=(Vec a, Vec b) { Mask m; OCTAVO_PARTS m.part[i] = a.part[i] <= b.part[i]; return m; }
OCTAVO_INLINE Mask operator==(Vec a, Vec b) { Mask m; OCTAVO_PARTS m.part[i] = a.part[i] == b.part[i]; return m; }
OCTAVO_INLINE Mask first_n(int n) {
  Mask m;
  OCTAVO_PARTS m.part[i] = I4{4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3} < I4{n, n, n, n};
  return m;
}
OCTAVO_INLINE uint32_t bits(Mask m) {
  uint32_t r = 0;
  OCTAVO_PARTS for (int j = 0; j < 4; ++j) r |= uint32_t(m.part[i][j] & 1) << (4 * i + j);
  return r;
}
OCTAVO_INLINE Vec select(Mask m, Vec a, Vec b) {
  OCTAVO_PARTS b.part[i] = (F4)(((I4)a.part[i] & m.part[i]) | ((I4)b.part[i] & ~m.part[i]));
  return b;
}
OCTAVO_INLINE Vec max(Vec a, Vec b) { return select(b < a, a, b); }
OCTAVO_INLINE Vec min(Vec a, Vec b) { return select(a < b, a, b); }

// x * 2^n for whole n in [-252, 254].
OCTAVO_INLINE Vec scale_by_power(Vec x, Vec n) {
  OCTAVO_PARTS {
    I4 whole;
    for (int j = 0; j < 4; ++j) whole[j] = int32_t(n.part[i][j]);
    I4 half = whole >> 1;
    x.part[i] *= (F4)((half + 127) << 23);
    x.part[i] *= (F4)((whole - half + 127) << 23);
  }
  return x;
}

#define OCTAVO_TREE(op)                      \
  float x[16];                               \
  store(x, v);                               \
  for (int width = 8; width > 0; width /= 2) \
    for (int i = 0; i < width; ++i) {        \
      float a = x[i], b = x[i + width];      \
      x[i] = (op);                           \
    }                                        \
  return x[0]
OCTAVO_INLINE float reduce_add(Vec v) { OCTAVO_TREE(a + b); }
OCTAVO_INLINE float reduce_max(Vec v) { OCTAVO_TREE(a > b ? a : b); }
OCTAVO_INLINE float reduce_min(Vec v) { OCTAVO_TREE(a < b ? a : b); }
#undef OCTAVO_TREE

OCTAVO_INLINE Pairs load_pairs(const bf16* p) { Pairs r; __builtin_memcpy(&r, p, 64); return r; }
OCTAVO_INLINE PairBroadcast broadcast_pair(bf16 even, bf16 odd) { return {to_float(even), to_float(odd)}; }
OCTAVO_INLINE PairBroadcast broadcast_pair(const bf16* p) { return broadcast_pair(p[0], p[1]); }
OCTAVO_INLINE Vec dot2_bf16(Vec acc, Pairs a, PairBroadcast b) {
  OCTAVO_PARTS {
    acc.part[i] += (F4)(a.part[i] & 0xffff0000u) * spread(b.odd);
    acc.part[i] += (F4)(a.part[i] << 16) * spread(b.even);
  }
  return acc;
}

#undef OCTAVO_PARTS

}  // namespace octavo::OCTAVO_ISA
