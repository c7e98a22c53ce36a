// W4A16 and W8A16 on tensor cores: weights are the A operand (16 outputs), tokens the B operand (8), so that one mma
// costs the same for 1 to 8 tokens.
//
// What is computed, for w = scale (code - zero) of a symmetric and scale code + offset of an asymmetric weight, with
// zero = 2^(bits-1) in both:
//   part = sum of x (code - zero) over the group        exact products, float32 sums by the tensor core
//   sum  = fma(scale, part, sum)
//   sum  = fma(offset + zero scale, sum of x over the group, sum)    asymmetric only
// Codes turn into floats without a conversion: or-ed into the mantissa of 2^7 (bfloat16) or 2^10 (float16), which a
// fused multiply-add then takes off again, exactly. The two planes of 8 bits are code = 16 high + low, of which one
// becomes 16 (high - 8) and the other low; they share a sum. Scales never meet the 16 bit weights: multiplying sums is
// fewer instructions and rounds in float32.
#pragma once

#include <type_traits>

#include "launch.h"
#include "quantized_tile.cuh"

namespace octavo::cuda {

// kGroup: k after which sums are scaled. 128 and 0 (one group a row) are the weight's own, 32 serves every group.
template <int kBits, int kGroup, int kTokenTiles, bool kLess>
struct QuantizedFloatShape : QuantizedShape<kBits, kTokenTiles, kLess> {
  using Base = QuantizedShape<kBits, kTokenTiles, kLess>;
  static constexpr int kPitch = Base::kChunk * 128 + 64;    // 64 beyond, so that a quarter warp hits all banks
  static constexpr int kSumGroup = kGroup ? kGroup : 128;   // k of one of x's sums
  static constexpr int kGroups = Base::kChunk * 64 / kSumGroup;
  static constexpr int kXBytes = Base::kTokens * kPitch;
  static constexpr int kScaleBytes = kGroup ? Base::kTiles * kGroups * 32 : 0;
  static constexpr int kSumBytes = kGroups * Base::kTokens * 4;
  // Ring, x, scales; of an asymmetric weight also offsets and the sums of x.
  static constexpr int shared_bytes(bool symmetric) {
    const int bytes = Base::kRingBytes + kXBytes + kScaleBytes + (symmetric ? 0 : kScaleBytes + kSumBytes);
    return bytes > Base::kSumsBytes ? bytes : Base::kSumsBytes;
  }
};

// ---- codes to floats -------------------------------------------------------------------------------------------

// A operand of one step of 16 k from a lane's word of one plane; kHigh: the upper half of 8 bit codes.
template <class X, int kBits, bool kHigh>
struct Unpack;

template <int kBits, bool kHigh>
struct Unpack<__nv_bfloat16, kBits, kHigh> {
  // 128 + q, then q - 8, q or 16 (q - 8).
  static constexpr uint32_t kScale = kHigh ? 0x41804180 : 0x3F803F80;
  static constexpr uint32_t kBias = kHigh ? 0xC508C508 : kBits == 8 ? 0xC300C300 : 0xC308C308;

  static OCTAVO_DEVICE FragA codes(uint32_t w) {
    FragA a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a.r[i] = fma_bf162(lop3<0xEA>(w >> 4 * i, 0x000F000F, 0x43004300), kScale, kBias);
    }
    return a;
  }
};

template <int kBits, bool kHigh>
struct Unpack<__half, kBits, kHigh> {
  // Rows g: 1024 + q. Rows g + 8 stay where they are: 1024 + 16 q.
  static constexpr uint32_t kScale0 = kHigh ? 0x4C004C00 : 0x3C003C00;
  static constexpr uint32_t kBias0 = kHigh ? 0xF408F408 : kBits == 8 ? 0xE400E400 : 0xE408E408;
  static constexpr uint32_t kScale1 = kHigh ? 0x3C003C00 : 0x2C002C00;
  static constexpr uint32_t kBias1 = kHigh ? 0xE480E480 : kBits == 8 ? 0xD400D400 : 0xD480D480;

  static OCTAVO_DEVICE FragA codes(uint32_t w) {
    FragA a;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      a.r[i] = fma_h2(lop3<0xEA>(w >> 4 * i, 0x000F000F, 0x64006400), kScale0, kBias0);
      a.r[i + 1] = fma_h2(lop3<0xEA>(w >> 4 * i, 0x00F000F0, 0x64006400), kScale1, kBias1);
    }
    return a;
  }
};

template <class X>
OCTAVO_DEVICE void mma(FragC& d, const FragA& a, const FragB& b, const FragC& c) {
  if constexpr (std::is_same_v<X, __half>) {
    mma_f16(d, a, b, c);
  } else {
    mma_bf16(d, a, b, c);
  }
}

// ---- activations to shared memory ------------------------------------------------------------------------------

template <class X>
OCTAVO_DEVICE float pair_sum(uint32_t pair) {
  const float2 v = std::is_same_v<X, __half> ? unpack_f16(pair) : unpack_bf16(pair);
  return v.x + v.y;
}

// body(token, piece of 8 elements, place in shared memory) for a chunk of x; whole warps take a token.
template <class Shape, class Body>
OCTAVO_DEVICE void for_pieces(const QuantizedPlace& p, int units, unsigned char* x, const Body& body) {
#pragma unroll 1
  for (int token = p.warp; token < Shape::kTokens; token += Shape::kWarps) {
#pragma unroll
    for (int base = 0; base < Shape::kChunk * 8; base += 32) {
      if (base >= units * 8) break;
      const int piece = base + p.lane;
      body(token, piece, reinterpret_cast<uint4*>(x + token * Shape::kPitch + piece * 16));
    }
  }
}

// A chunk of x on its way to shared memory, zeros where there are no tokens or columns.
template <class Shape>
OCTAVO_DEVICE void copy_activations(const QuantizedArgs& a, const QuantizedPlace& p, int unit, int units,
                                    unsigned char* x) {
  for_pieces<Shape>(p, units, x, [&](int token, int piece, uint4* to) {
    const int64_t k = int64_t(unit) * 64 + piece * 8;
    const bool there = token < p.tokens && k < a.layout.k;
    const int64_t row = there ? x_row_of<Shape>(a, p.token + token) : 0;
    const uint16_t* from = static_cast<const uint16_t*>(a.x) + (there ? row * a.x_stride + k : 0);
    if (a.x_vectors) {
      cp_async<16>(to, from, there);
    } else {
#pragma unroll 1
      for (int i = 0; i < 8; ++i) {
        reinterpret_cast<uint16_t*>(to)[i] = there && k + i < a.layout.k ? from[i] : uint16_t(0);
      }
    }
  });
  cp_commit();
}

// Of an asymmetric weight: the sums of x over each group, out of what this thread has copied: eight elements a lane
// in a fixed tree.
template <class X, class Shape>
OCTAVO_DEVICE void sum_activations(const QuantizedArgs& a, const QuantizedPlace& p, int units, unsigned char* x,
                                   float* sums) {
  if (a.layout.symmetric) return;
  for_pieces<Shape>(p, units, x, [&](int token, int piece, const uint4* own) {
    const uint4 v = *own;
    float sum = (pair_sum<X>(v.x) + pair_sum<X>(v.y)) + (pair_sum<X>(v.z) + pair_sum<X>(v.w));
#pragma unroll
    for (int d = 1; d < Shape::kSumGroup / 8; d *= 2) sum += shfl_xor(sum, d);
    if (p.lane % (Shape::kSumGroup / 8) == 0) sums[piece * 8 / Shape::kSumGroup * Shape::kTokens + token] = sum;
  });
}

// ---- kernel ----------------------------------------------------------------------------------------------------

// sum += scale * part and, of an asymmetric weight, (offset + zero * scale) * sum of x.
template <int kTokenTiles>
OCTAVO_DEVICE void add_group(FragC (&sum)[kTokenTiles], const FragC (&part)[kTokenTiles], float2 scale,
                                          bool asymmetric, float2 offset, float zero, const float* x_sums, int t) {
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
    sum[n].r[0] = fmaf(scale.x, part[n].r[0], sum[n].r[0]);
    sum[n].r[1] = fmaf(scale.x, part[n].r[1], sum[n].r[1]);
    sum[n].r[2] = fmaf(scale.y, part[n].r[2], sum[n].r[2]);
    sum[n].r[3] = fmaf(scale.y, part[n].r[3], sum[n].r[3]);
  }
  if (!asymmetric) return;
  offset = make_float2(fmaf(zero, scale.x, offset.x), fmaf(zero, scale.y, offset.y));
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
    const float2 x = *reinterpret_cast<const float2*>(x_sums + 8 * n + 2 * t);
    sum[n].r[0] = fmaf(offset.x, x.x, sum[n].r[0]);
    sum[n].r[1] = fmaf(offset.x, x.y, sum[n].r[1]);
    sum[n].r[2] = fmaf(offset.y, x.x, sum[n].r[2]);
    sum[n].r[3] = fmaf(offset.y, x.y, sum[n].r[3]);
  }
}

template <class X, int kBits, int kGroup, int kTokenTiles, bool kLess>
__global__ void __launch_bounds__(QuantizedShape<kBits, kTokenTiles, kLess>::kThreads,
                                  QuantizedShape<kBits, kTokenTiles, kLess>::kBlocks)
    quantized_float_kernel(const __grid_constant__ QuantizedArgs a) {
  using Shape = QuantizedFloatShape<kBits, kGroup, kTokenTiles, kLess>;
  constexpr float kZero = float(1 << (kBits - 1));
  OCTAVO_DYNAMIC_SHARED(unsigned char, shared);
  unsigned char* const x = shared + Shape::kRingBytes;
  unsigned char* const scales = x + Shape::kXBytes;
  unsigned char* const offsets = scales + Shape::kScaleBytes;
  float* const x_sums = reinterpret_cast<float*>(offsets + Shape::kScaleBytes);
  if (has_experts<Shape>(a)) pdl_wait();
  const QuantizedPlace p = place<Shape>(a);
  if (has_experts<Shape>(a) && p.tokens <= 0) return pdl_launch();
  CodeRing<Shape> ring(a, p, shared);
  ring.fill_early();
  pdl_wait();
  copy_activations<Shape>(a, p, p.first_unit, min(Shape::kChunk, p.units), x);
  ring.fill_late();

  FragC sum[2][kTokenTiles] = {}, part[2][kTokenTiles];  // one group a row has no parts
  float row_sums[kTokenTiles][2] = {};                   // of x, of an asymmetric weight with one group a row
  const unsigned char* const own_scales = scales + p.warp * 2 * Shape::kGroups * 32 + p.g * 4;
  const unsigned char* const own_x = x + p.g * Shape::kPitch + p.t * 16;

  auto end_group = [&](int r, int group) {
    if constexpr (kGroup != 0) {
      const int stored = kGroup == 32 ? group >> a.group_shift : group;
      const unsigned char* at = own_scales + (r * Shape::kGroups + stored) * 32;
      const float2 scale = unpack_f16(*reinterpret_cast<const uint32_t*>(at));
      float2 offset{};
      if (!a.layout.symmetric) offset = unpack_f16(*reinterpret_cast<const uint32_t*>(at + Shape::kScaleBytes));
      add_group(sum[r], part[r], scale, !a.layout.symmetric, offset, kZero, x_sums + group * Shape::kTokens, p.t);
    }
  };

  for (int first = 0; first < p.units; first += Shape::kChunk) {
    const int count = min(Shape::kChunk, p.units - first), unit = p.first_unit + first;
    if (first) {
      bar_sync();  // everyone has read the chunk before
      copy_activations<Shape>(a, p, unit, count, x);
    }
    if constexpr (kGroup != 0) {
      const int shift = kGroup == 32 ? a.group_shift : 0, group = unit * 64 / kGroup >> shift;
      const int groups = min(Shape::kGroups >> shift, int(a.layout.stored_groups()) - group);
      const int64_t at = a.layout.scales_at() + group * 32;
      stage_factors<Shape::kGroups * 32>(a, p, scales, at, groups * 2);
      if (!a.layout.symmetric) {
        stage_factors<Shape::kGroups * 32>(a, p, offsets, at + a.layout.factor_bytes(), groups * 2);
      }
    }
    if (first) {
      cp_wait<0>();
    } else {
      cp_wait<CodeRing<Shape>::kLate>();
    }
    sum_activations<X, Shape>(a, p, count, x, x_sums);
    bar_sync();

    for (int base = 0; base < count; base += Shape::kSlots) {
#pragma unroll
      for (int slot = 0; slot < Shape::kSlots; ++slot) {
        if (base + slot >= count) break;
        uint4 codes[2][Shape::kPlanes];
        ring.take(codes, slot);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint4 b[kTokenTiles];
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) {
            b[n] = *reinterpret_cast<const uint4*>(own_x + n * 8 * Shape::kPitch + (base + slot) * 128 + h * 64);
          }
          const bool starts = kGroup == 32 || (kGroup == 128 && h == 0 && slot % 2 == 0);
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            FragC(&d)[kTokenTiles] = kGroup ? part[r] : sum[r];
#pragma unroll
            for (int f = 0; f < 2; ++f) {
#pragma unroll
              for (int plane = 0; plane < Shape::kPlanes; ++plane) {
                const uint32_t w = word(codes[r][plane], 2 * h + f);
                const FragA weights = plane ? Unpack<X, kBits, true>::codes(w) : Unpack<X, kBits, false>::codes(w);
#pragma unroll
                for (int n = 0; n < kTokenTiles; ++n) {
                  const FragB tokens{{word(b[n], 2 * f), word(b[n], 2 * f + 1)}};
                  if (starts && f == 0 && plane == 0) {
                    mma<X>(d[n], weights, tokens, FragC{});
                  } else {
                    mma<X>(d[n], weights, tokens, d[n]);
                  }
                }
              }
            }
            if (kGroup == 32) end_group(r, 2 * (base + slot) + h);
            if (kGroup == 128 && h == 1 && slot % 2) end_group(r, (base + slot) / 2);
          }
        }
      }
    }
    if (kGroup == 128 && count % 2) {  // the last group of a row is short
      end_group(0, count / 2);
      end_group(1, count / 2);
    }
    if (kGroup == 0 && !a.layout.symmetric) {
      for (int group = 0; group * 2 < count; ++group) {
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          const float2 v = *reinterpret_cast<const float2*>(x_sums + group * Shape::kTokens + 8 * n + 2 * p.t);
          row_sums[n][0] += v.x;
          row_sums[n][1] += v.y;
        }
      }
    }
  }
  pdl_launch();
  if constexpr (kGroup == 0) scale_rows(a, p, sum, row_sums, kZero);
  finish_block<Shape>(a, p, sum, ring.own);
}

}  // namespace octavo::cuda
