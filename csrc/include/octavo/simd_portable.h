// Sixteen lanes as plain loops: what every machine runs, and the reading of what the others must do.
#pragma once

#include <cmath>
#include <cstring>

namespace octavo::OCTAVO_ISA {

struct Vec {
  float lane[16];
};
struct Mask {
  bool lane[16];
};
// Sixteen pairs of bfloat16, one pair to a lane.
struct Pairs {
  uint32_t lane[16];
};
// One pair, broadcast.
struct PairBroadcast {
  float even, odd;
};

#define OCTAVO_LANES for (int i = 0; i < 16; ++i)

OCTAVO_INLINE Vec broadcast(float x) { Vec r; OCTAVO_LANES r.lane[i] = x; return r; }
OCTAVO_INLINE Vec load(const float* p) { Vec r; std::memcpy(&r, p, 64); return r; }
OCTAVO_INLINE Vec load(const bf16* p) { Vec r; OCTAVO_LANES r.lane[i] = to_float(p[i]); return r; }
OCTAVO_INLINE Vec load(const f16* p) { Vec r; OCTAVO_LANES r.lane[i] = to_float(p[i]); return r; }
OCTAVO_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, 64); }
OCTAVO_INLINE void store(bf16* p, Vec v) { OCTAVO_LANES p[i] = to_bf16(v.lane[i]); }
OCTAVO_INLINE void store(f16* p, Vec v) { OCTAVO_LANES p[i] = to_f16(v.lane[i]); }

template <class T>
OCTAVO_INLINE Vec load_n(const T* p, int n) {
  Vec r;
  OCTAVO_LANES r.lane[i] = i < n ? to_float(p[i]) : 0.0f;
  return r;
}
OCTAVO_INLINE void store_n(float* p, Vec v, int n) { for (int i = 0; i < n; ++i) p[i] = v.lane[i]; }
OCTAVO_INLINE void store_n(bf16* p, Vec v, int n) { for (int i = 0; i < n; ++i) p[i] = to_bf16(v.lane[i]); }
OCTAVO_INLINE void store_n(f16* p, Vec v, int n) { for (int i = 0; i < n; ++i) p[i] = to_f16(v.lane[i]); }

OCTAVO_INLINE Vec operator+(Vec a, Vec b) { OCTAVO_LANES a.lane[i] += b.lane[i]; return a; }
OCTAVO_INLINE Vec operator-(Vec a, Vec b) { OCTAVO_LANES a.lane[i] -= b.lane[i]; return a; }
OCTAVO_INLINE Vec operator*(Vec a, Vec b) { OCTAVO_LANES a.lane[i] *= b.lane[i]; return a; }
OCTAVO_INLINE Vec operator/(Vec a, Vec b) { OCTAVO_LANES a.lane[i] /= b.lane[i]; return a; }
OCTAVO_INLINE Vec fma(Vec a, Vec b, Vec c) { OCTAVO_LANES c.lane[i] += a.lane[i] * b.lane[i]; return c; }
OCTAVO_INLINE Vec max(Vec a, Vec b) { OCTAVO_LANES a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; return a; }
OCTAVO_INLINE Vec min(Vec a, Vec b) { OCTAVO_LANES a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; return a; }
OCTAVO_INLINE Vec sqrt(Vec a) { OCTAVO_LANES a.lane[i] = ::sqrtf(a.lane[i]); return a; }
OCTAVO_INLINE Vec abs(Vec a) { OCTAVO_LANES a.lane[i] = ::fabsf(a.lane[i]); return a; }
// Halves to even, for |x| < 2^22.
OCTAVO_INLINE Vec round(Vec a) { OCTAVO_LANES a.lane[i] = (a.lane[i] + 12582912.0f) - 12582912.0f; return a; }

OCTAVO_INLINE Mask operator<(Vec a, Vec b) { Mask m; OCTAVO_LANES m.lane[i] = a.lane[i] < b.lane[i]; return m; }
OCTAVO_INLINE Mask operator<=(Vec a, Vec b) { Mask m; OCTAVO_LANES m.lane[i] = a.lane[i] <= b.lane[i]; return m; }
OCTAVO_INLINE Mask operator==(Vec a, Vec b) { Mask m; OCTAVO_LANES m.lane[i] = a.lane[i] == b.lane[i]; return m; }
OCTAVO_INLINE Mask first_n(int n) { Mask m; OCTAVO_LANES m.lane[i] = i < n; return m; }
OCTAVO_INLINE uint32_t bits(Mask m) { uint32_t r = 0; OCTAVO_LANES r |= uint32_t{m.lane[i]} << i; return r; }
OCTAVO_INLINE Vec select(Mask m, Vec a, Vec b) { OCTAVO_LANES b.lane[i] = m.lane[i] ? a.lane[i] : b.lane[i]; return b; }

// x * 2^n for whole n in [-252, 254].
OCTAVO_INLINE Vec scale_by_power(Vec x, Vec n) {
  OCTAVO_LANES {
    int32_t whole = static_cast<int32_t>(n.lane[i]);
    int32_t half = whole >> 1;
    x.lane[i] = x.lane[i] * from_bits(uint32_t(half + 127) << 23) * from_bits(uint32_t(whole - half + 127) << 23);
  }
  return x;
}

#define OCTAVO_TREE(op)                                              \
  for (int width = 8; width > 0; width /= 2)                         \
    for (int i = 0; i < width; ++i) {                                \
      float x = v.lane[i], y = v.lane[i + width];                    \
      v.lane[i] = (op);                                              \
    }                                                                \
  return v.lane[0]
OCTAVO_INLINE float reduce_add(Vec v) { OCTAVO_TREE(x + y); }
OCTAVO_INLINE float reduce_max(Vec v) { OCTAVO_TREE(x > y ? x : y); }
OCTAVO_INLINE float reduce_min(Vec v) { OCTAVO_TREE(x < y ? x : y); }
#undef OCTAVO_TREE

OCTAVO_INLINE Pairs load_pairs(const bf16* p) { Pairs r; std::memcpy(&r, p, 64); return r; }
OCTAVO_INLINE PairBroadcast broadcast_pair(bf16 even, bf16 odd) { return {to_float(even), to_float(odd)}; }
OCTAVO_INLINE PairBroadcast broadcast_pair(const bf16* p) { return broadcast_pair(p[0], p[1]); }
OCTAVO_INLINE Vec dot2_bf16(Vec acc, Pairs a, PairBroadcast b) {
  OCTAVO_LANES {
    acc.lane[i] += from_bits(a.lane[i] & 0xffff0000u) * b.odd;
    acc.lane[i] += from_bits(a.lane[i] << 16) * b.even;
  }
  return acc;
}

#undef OCTAVO_LANES

}  // namespace octavo::OCTAVO_ISA
