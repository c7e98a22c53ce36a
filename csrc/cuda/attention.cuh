// What the decode and the prefill kernel share, so that a row has the same bits from either.
//
// The order of a row's reduction depends on its own position alone:
//   block   32 keys, at multiples of 32. The row's reference (running maximum) moves at most once a block; P of the
//           block is rounded to 16 bits and multiplied with V by two k16 steps onto the accumulators. The weight's sum
//           goes the same way, as one more column of ones, so it too has the tensor core's order and the rounded P.
//   chunk   blocks one after the other, from zero, at multiples of chunk_keys(keys that the row sees)
//   row     chunks folded one after the other
// A block or chunk in which a row sees nothing leaves its accumulators as they are, to the bit: P = 0, factors of 1. So
// it does not matter which rows share a tile, which warp holds which keys, or whether a chunk had a CTA of its own.
#pragma once

#include <type_traits>

#include "attention.h"
#include "prim.cuh"

namespace octavo::cuda {

constexpr int kBlockKeys = 32;
constexpr float kNoScore = -1e30f;  // finite, so that differences of references are numbers
constexpr float kLog2e = 1.4426950408889634f;
constexpr int kOneChunk = 1 << 30;

// Keys of a chunk, a power of two, for a row that sees `visible` keys. Small enough to spread one long sequence over
// the machine, large enough that the fold (16 rows * D * 8 bytes a chunk) is small beside the keys.
OCTAVO_DEVICE int chunk_keys(int visible) {
  return visible <= 256 ? kOneChunk : visible <= 4096 ? 256 : visible <= 16384 ? 512 : visible <= 65536 ? 1024 : 2048;
}
OCTAVO_DEVICE int visible_keys(int position, int window) {
  return window > 0 && window <= position ? window : position + 1;
}
// The first key that a row sees.
OCTAVO_DEVICE int first_key(int position, int window) {
  return window > 0 && window <= position ? position + 1 - window : 0;
}

template <CacheType C, int D>
struct Cache {
  static constexpr bool k8Bit = C == CacheType::kInt8 || C == CacheType::kFloat8;
  static constexpr bool kBF16 = C == CacheType::kBFloat16;  // the type of products; 8-bit caches multiply in float16
  static constexpr int kChunks = D * (k8Bit ? 1 : 2) / 16;  // of 16 bytes a key
  static constexpr int kRowBytes = (kChunks | 1) * 16;      // odd: ldmatrix without bank conflicts
  static constexpr int kUnitBytes = 16 * kChunks * 16;      // of 16 keys in the cache

  static OCTAVO_DEVICE void mma(FragC& d, const FragA& a, const FragB& b) {
    if constexpr (kBF16) {
      mma_bf16(d, a, b, d);
    } else {
      mma_f16(d, a, b, d);
    }
  }
  static OCTAVO_DEVICE uint32_t pack(float low, float high) {
    if constexpr (kBF16) {
      return pack_bf16(low, high);
    } else {
      return pack_f16(low, high);
    }
  }
  // Weights times the values' scales; one of zero stays so, for a slot never written may have a scale of NaN.
  static OCTAVO_DEVICE uint32_t pack_scaled(float low, float high, uint32_t scales) {
    const float2 scale = unpack_f16(scales);
    return pack(low > 0.0f ? mul_rn(low, scale.x) : 0.0f, high > 0.0f ? mul_rn(high, scale.y) : 0.0f);
  }
  static OCTAVO_DEVICE FragB ones() {
    constexpr uint32_t one = kBF16 ? 0x3f803f80u : 0x3c003c00u;
    return FragB{{one, one}};
  }

  // Four bytes of a key, d = 4t .. 4t + 3: B registers of a k16 step with these in slots 2t, 2t + 1, 2t + 8, 2t + 9.
  static OCTAVO_DEVICE FragB widen_key(uint32_t x) {
    if constexpr (C == CacheType::kInt8) {
      x ^= 0x80808080u;  // u = code + 128; 0x6400 | u is the float16 1024 + u
      return FragB{{biased(prmt(x, 0x64646464u, 0x4140u)), biased(prmt(x, 0x64646464u, 0x4342u))}};
    } else {
      return FragB{{cvt_e4m3x2_f16x2(uint16_t(x & 0xffffu)), cvt_e4m3x2_f16x2(uint16_t(x >> 16))}};
    }
  }
  // Two keys' bytes (key 2t: d 2g, 2g + 1; key 2t + 1: the same): B registers of the columns of even and of odd d.
  static OCTAVO_DEVICE void widen_value(uint32_t x, uint32_t& even, uint32_t& odd) {
    if constexpr (C == CacheType::kInt8) {
      x ^= 0x80808080u;
      even = biased(prmt(x, 0x64646464u, 0x4240u));
      odd = biased(prmt(x, 0x64646464u, 0x4341u));
    } else {
      const uint32_t y = prmt(x, x, 0x3120u);
      even = cvt_e4m3x2_f16x2(uint16_t(y & 0xffffu));
      odd = cvt_e4m3x2_f16x2(uint16_t(y >> 16));
    }
  }
  static OCTAVO_DEVICE uint32_t biased(uint32_t h2) {  // - 1152 each
    return fma_h2(h2, 0x3c003c00u, 0xe480e480u);
  }

  // s += Q K^T for 16 * kGroups keys in shared memory; query(step, tile) gives a tile's A registers of 16 dims.
  template <int kTiles, int kGroups, class Query>
  static OCTAVO_DEVICE void scores(FragC (&s)[kTiles][2 * kGroups], Query query, const unsigned char* keys,
                                                int lane) {
    const unsigned char* at = keys + ((lane & 7) + 8 * (lane >> 4)) * kRowBytes + 16 * ((lane >> 3) & 1);
    if constexpr (!k8Bit) {
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        FragA q[kTiles];
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) q[tile] = query(step, tile);
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          uint32_t r[4];
          ldmatrix<4, false>(r, at + group * 16 * kRowBytes + step * 32);
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            mma(s[tile][2 * group], q[tile], FragB{{r[0], r[1]}});
            mma(s[tile][2 * group + 1], q[tile], FragB{{r[2], r[3]}});
          }
        }
      }
    } else {
#pragma unroll
      for (int step = 0; step < D / 16; step += 2) {
        uint32_t r[kGroups][4];
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          if (step + 1 < D / 16) {
            ldmatrix<4, false>(r[group], at + group * 16 * kRowBytes + step * 16);
          } else {
            uint32_t half[2];
            ldmatrix<2, false>(half, keys + (group * 16 + (lane & 15)) * kRowBytes + step * 16);
            r[group][0] = half[0];
            r[group][2] = half[1];
          }
        }
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          if (step + odd >= D / 16) break;
          FragA q[kTiles];
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) q[tile] = query(step + odd, tile);
#pragma unroll
          for (int group = 0; group < kGroups; ++group) {
            const FragB low = widen_key(r[group][odd]), high = widen_key(r[group][2 + odd]);
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
              mma(s[tile][2 * group], q[tile], low);
              mma(s[tile][2 * group + 1], q[tile], high);
            }
          }
        }
      }
    }
  }

  // o += P V for one block and 16 dims from `unit` * 16; p: [k16 step][tile].
  template <int kTiles>
  static OCTAVO_DEVICE void weigh(FragC (&o)[kTiles][2], const FragA (&p)[2][kTiles],
                                               const unsigned char* values, int unit, int lane) {
    uint32_t even[4], odd[4];  // B registers of the two column tiles: k16 steps 0, 0, 1, 1
    if constexpr (!k8Bit) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        uint32_t r[4];
        ldmatrix<4, true>(r, values + (16 * step + (lane & 15)) * kRowBytes + unit * 32 + 16 * (lane >> 4));
        even[2 * step] = r[0], even[2 * step + 1] = r[1];
        odd[2 * step] = r[2], odd[2 * step + 1] = r[3];
      }
    } else {
      uint32_t r[4];
      ldmatrix<4, true>(r, values + lane * kRowBytes + unit * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) widen_value(r[i], even[i], odd[i]);
    }
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        mma(o[tile][0], p[step][tile], FragB{{even[2 * step], even[2 * step + 1]}});
        mma(o[tile][1], p[step][tile], FragB{{odd[2 * step], odd[2 * step + 1]}});
      }
    }
  }

  // Where `weigh` left dims: pair h (0, 1) of a lane's row half e (0: row g, 1: row g + 8) in one unit.
  static OCTAVO_DEVICE int column(int unit, int h, int t) {
    return 16 * unit + (k8Bit ? 4 * t + 2 * h : 8 * h + 2 * t);
  }
  static OCTAVO_DEVICE float2 pair(const FragC (&o)[2], int e, int h) {
    return k8Bit ? make_float2(o[0].r[2 * e + h], o[1].r[2 * e + h]) : make_float2(o[h].r[2 * e], o[h].r[2 * e + 1]);
  }
  // The slot in its group of 16 that a query's dim pair (even dim d) takes in the A registers.
  static OCTAVO_DEVICE int query_slot(int d) {
    const int u = (d & 15) >> 1;
    return (d & ~15) + (k8Bit ? 2 * ((u & 1) * 4 + (u >> 1)) : 2 * u);
  }
};

OCTAVO_DEVICE float slope_of(const AttentionArgs& a, int head) {
  if (!a.alibi_slopes) return 0.0f;
  if (!a.scoring.rounded) return static_cast<const float*>(a.alibi_slopes)[head];
  return unpack_bf16(static_cast<const uint16_t*>(a.alibi_slopes)[head]).x;
}
OCTAVO_DEVICE float round_bf16(float x) { return unpack_bf16(pack_bf16(x, 0.0f)).x; }
OCTAVO_DEVICE float rounded_bias(float slope, int key) { return round_bf16(mul_rn(slope, round_bf16(float(key)))); }

// tanh by ex2: tanh.approx is off by 2^-11, 0.01 in a score of 30. A rounded bias counts from the row's own position,
// which the softmax does not see, so that scores of long sequences stay small.
OCTAVO_DEVICE float adjust(const Scoring& scoring, float x, float slope, int key, int position) {
  x = mul_rn(x, scoring.scale);
  if (scoring.softcap > 0.0f) {
    const float e = exp2_approx(mul_rn(x, scoring.cap_factor));
    x = mul_rn(scoring.softcap, fma_rn(-2.0f, rcp_approx(add_rn(1.0f, e)), 1.0f));
  }
  if (scoring.rounded) {
    return fma_rn(scoring.scale, sub_rn(rounded_bias(slope, key), rounded_bias(slope, position)), x);
  }
  return fma_rn(slope, float(key - position), x);
}
// The factor of accumulators whose reference moves.
OCTAVO_DEVICE float rescale(const Scoring& scoring, float from, float to) {
  return exp2_approx(mul_rn(sub_rn(from, to), scoring.factor));
}
// A score's weight, given base_of its row's reference.
OCTAVO_DEVICE float base_of(const Scoring& scoring, float reference) { return -mul_rn(reference, scoring.factor); }
OCTAVO_DEVICE float weight_of(const Scoring& scoring, float score, float base) {
  return exp2_approx(fma_rn(score, scoring.factor, base));
}

// A row's total over the chunks so far: reference and weight; fold gives the factors of its accumulators.
struct Total {
  float reference = kNoScore, weight = 0.0f;
  OCTAVO_DEVICE float2 fold(const Scoring& scoring, float chunk_reference, float chunk_weight) {
    const float to = fmaxf(reference, chunk_reference);
    const float2 f = make_float2(rescale(scoring, reference, to), rescale(scoring, chunk_reference, to));
    reference = to;
    weight = fma_rn(chunk_weight, f.y, mul_rn(weight, f.x));
    return f;
  }
};
OCTAVO_DEVICE float folded(float total, float chunk, float2 factors) {
  return fma_rn(chunk, factors.y, mul_rn(total, factors.x));
}
// A row that sees nothing (a padding row's) is zero.
OCTAVO_DEVICE float inverse_weight(float weight) { return weight == 0.0f ? 0.0f : 1.0f / weight; }

OCTAVO_DEVICE void store_pair(void* out, DType type, int64_t i, float low, float high) {
  *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(out) + i) =
      type == DType::kBFloat16 ? pack_bf16(low, high) : pack_f16(low, high);
}
// Two or eight of a row's elements (i a multiple) as products take them: bits unchanged where the types are the same.
template <bool kBF16>
OCTAVO_DEVICE uint32_t convert_pair(uint32_t x, DType type) {
  if ((type == DType::kBFloat16) == kBF16) return x;
  const float2 y = type == DType::kBFloat16 ? unpack_bf16(x) : unpack_f16(x);
  return kBF16 ? pack_bf16(y.x, y.y) : pack_f16(y.x, y.y);
}
template <bool kBF16>
OCTAVO_DEVICE uint32_t load_query_pair(const void* queries, DType type, int64_t i) {
  return convert_pair<kBF16>(*reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(queries) + i), type);
}
template <bool kBF16>
OCTAVO_DEVICE uint4 load_query(const void* queries, DType type, int64_t i) {
  const uint4 x = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(queries) + i);
  return make_uint4(convert_pair<kBF16>(x.x, type), convert_pair<kBF16>(x.y, type), convert_pair<kBF16>(x.z, type),
                    convert_pair<kBF16>(x.w, type));
}

// The cache's addresses, of 16 keys ("unit") at a multiple of 16: pages hold any multiple of 16 tokens. Sizes stay in
// the kernel's parameters, which takes no registers.
template <class C, int D>
struct Pages {
  const AttentionArgs& a;
  int table, head;  // the sequence's first entry
  OCTAVO_DEVICE Pages(const AttentionArgs& args, int seq, int kv_head)
      : a(args), table(seq * args.max_pages), head(kv_head) {}
  OCTAVO_DEVICE unsigned units() const { return unsigned(a.page_size) / 16u; }
  OCTAVO_DEVICE int page(int unit) const { return a.page_table[table + int(unsigned(unit) / units())]; }
  OCTAVO_DEVICE int in_page(int unit) const { return int(unsigned(unit) % units()); }
  // One head's keys or values of one page, scales included.
  OCTAVO_DEVICE int64_t block(int page) const {
    return int64_t(page * a.num_kv_heads + head) * (a.page_size * (C::k8Bit ? D + 2 : 2 * D));
  }
};

// f of the head size as a constant, of those that the tensor core kernels are made for.
template <class F>
inline auto with_head_dim(int head_dim, const F& f) {
  switch (head_dim) {
    case 64: return f(std::integral_constant<int, 64>());
    case 80: return f(std::integral_constant<int, 80>());
    case 96: return f(std::integral_constant<int, 96>());
    case 112: return f(std::integral_constant<int, 112>());
    case 128: return f(std::integral_constant<int, 128>());
    default: return f(std::integral_constant<int, 256>());
  }
}

}  // namespace octavo::cuda
