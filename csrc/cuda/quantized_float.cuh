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
  // Units of a part of x. Shared memory holds two: what is multiplied with, and what comes meanwhile. Copies end in the
  // order in which they began: a part of all the ring's units is there when the last unit before it is, and one of half
  // of them asks for half the ring, no more.
  static constexpr int kPart = Base::kSlots < Base::kChunk / 2 ? Base::kSlots : Base::kChunk / 2;
  static constexpr int kPitch = 2 * kPart * 128 + 64;        // 64 beyond, so that a quarter warp hits all banks
  static constexpr int kPieces = kPart * 8;                  // of 16 bytes of a token's part, a thread each
  static constexpr int kSumGroup = kGroup ? kGroup : 128;    // k of one of x's sums
  static constexpr int kGroups = kPart * 64 / kSumGroup;     // of a part
  static constexpr int kXBytes = Base::kTokens * kPitch;
  static constexpr int kRowBytes = Base::kTokens * 8;
  static constexpr int kScaleBytes = kGroup ? Base::kTiles * kGroups * 32 : 0;  // of a part
  static constexpr int kSumBytes = kGroups * Base::kTokens * 4;
  // Ring, x, where its rows are, scales; of an asymmetric weight also offsets and the sums of x.
  static constexpr int shared_bytes(bool symmetric) {
    const int bytes = Base::kRingBytes + kXBytes + kRowBytes + 2 * kScaleBytes +
                      (symmetric ? 0 : 2 * kScaleBytes + 2 * kSumBytes);
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

// How a thread brings x: of some tokens the same 16 bytes of every part.
template <class X, class Shape>
struct PartsOfX {
  static constexpr int kStep = Shape::kThreads / Shape::kPieces, kCopies = Shape::kTokens / kStep;  // tokens

  const QuantizedArgs& a;
  unsigned char* own;           // their place in the first half, of the first of these tokens
  const uint16_t* const* rows;  // where these tokens' begin
  int tokens, column;           // of the block from the first of these on; of x, what comes next

  // Writes down where rows begin, and zeros for tokens that do not exist: a barrier must follow.
  OCTAVO_DEVICE PartsOfX(const QuantizedArgs& args, const QuantizedPlace& p, unsigned char* x) : a(args) {
    const int thread = int(threadIdx.x), token = thread / Shape::kPieces, piece = thread % Shape::kPieces;
    const uint16_t** const all = reinterpret_cast<const uint16_t**>(x + Shape::kXBytes);
    own = x + token * Shape::kPitch + piece * 16;
    rows = all + token * kCopies;
    tokens = p.tokens - token;
    column = p.first_unit * 64 + piece * 8;
    if (thread < Shape::kTokens) {
      const int64_t row = x_row_of<Shape>(a, p.token + min(thread, p.tokens - 1));
      all[thread % kStep * kCopies + thread / kStep] = static_cast<const uint16_t*>(a.x) + row * a.x_stride;
    }
#pragma unroll 1
    for (int n = 0; n < kCopies; ++n) {
      if (n * kStep >= tokens) *place(n, 0) = *place(n, 1) = uint4{};
    }
  }

  OCTAVO_DEVICE uint4* place(int n, int half) const {
    return reinterpret_cast<uint4*>(own + half * Shape::kPart * 128 + n * kStep * Shape::kPitch);
  }

  // The next part on its way to its half, zeros beyond the last column.
  OCTAVO_DEVICE void fetch(int half) {
    if (a.x_vectors && column < int(a.layout.k)) {
      const uint16_t* from[kCopies];  // all read before the first copy: ptxas pays for copies that come after reads
#pragma unroll
      for (int n = 0; n < kCopies; ++n) from[n] = rows[n] + column;
#pragma unroll
      for (int n = 0; n < kCopies; ++n) {
        if (n * kStep < tokens) cp_async<16>(place(n, half), from[n]);
      }
    } else {
#pragma unroll 1
      for (int n = 0; n * kStep < min(tokens, Shape::kTokens); ++n) {
        *place(n, half) = uint4{};
        const uint16_t* const from = rows[n] + column;
#pragma unroll 1
        for (int i = 0; i < min(8, int(a.layout.k) - column); ++i) {
          reinterpret_cast<uint16_t*>(place(n, half))[i] = from[i];
        }
      }
    }
    column += Shape::kPart * 64;
  }

  // Of an asymmetric weight: the sums of x over each group of a part, out of what this thread has brought: eight
  // elements a lane in a fixed tree.
  OCTAVO_DEVICE void sum(int half, float* sums) {
    const int thread = thread_again(), k = thread % Shape::kPieces * 8;
    float* const to = sums + k / Shape::kSumGroup * Shape::kTokens + thread / Shape::kPieces;
#pragma unroll 1
    for (int n = 0; n < kCopies; ++n) {
      const uint4 v = *place(n, half);
      float total = (pair_sum<X>(v.x) + pair_sum<X>(v.y)) + (pair_sum<X>(v.z) + pair_sum<X>(v.w));
#pragma unroll
      for (int d = 1; d < Shape::kSumGroup / 8; d *= 2) total += shfl_xor(total, d);
      if (k % Shape::kSumGroup == 0) to[n * kStep] = total;
    }
  }
};

// How half a warp brings the scales of one of its tiles, and the offsets of an asymmetric weight: 16 bytes a lane. A
// weight's group of more than kGroup is there for each kGroup of it.
template <class Shape, int kGroup>
struct PartsOfScales {
  const QuantizedArgs& a;
  const uint8_t* next;  // scales

  OCTAVO_DEVICE PartsOfScales(const QuantizedArgs& args, const QuantizedPlace& p) : a(args) {
    const int piece = p.lane % 16, group = (p.first_unit * 64 / kGroup >> shift()) + (piece / 2 >> shift());
    next = tile_of(a, p, p.lane / 16) + (a.scales_at + group * 32 + piece % 2 * 16);
  }

  OCTAVO_DEVICE int shift() const { return kGroup == 32 ? a.group_shift : 0; }

  // The next part's, with `units` left from it on.
  OCTAVO_DEVICE void fetch(int units, unsigned char* to) {
    const int thread = int(threadIdx.x), piece = thread % 16;
    to += (thread / 16 * Shape::kGroups * 2 + piece) * 16;
#pragma unroll
    for (int turn = 0; turn < Shape::kGroups; turn += 8) {
      if (piece >= min(2 * Shape::kGroups, 2 * ((units * 64 + kGroup - 1) / kGroup - turn))) continue;
      const uint8_t* const from = next + (turn >> shift()) * 32;
      cp_async<16>(to + turn * 32, from);
      if (!a.layout.symmetric) cp_async<16>(to + turn * 32 + 2 * Shape::kScaleBytes, from + a.factor_bytes);
    }
    next += (Shape::kGroups >> shift()) * 32;
  }
};

// ---- kernel ----------------------------------------------------------------------------------------------------

// sum += scale * part and, of an asymmetric weight, (offset + zero * scale) * sum of x.
template <int kTokenTiles, class SumsOfX>
OCTAVO_DEVICE void add_group(FragC (&sum)[kTokenTiles], const FragC (&part)[kTokenTiles], const unsigned char* scales,
                             int offsets_at, bool asymmetric, float zero, const SumsOfX& sums_of_x) {
  const float2 scale = unpack_f16(*reinterpret_cast<const uint32_t*>(scales));
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
    sum[n].r[0] = fmaf(scale.x, part[n].r[0], sum[n].r[0]);
    sum[n].r[1] = fmaf(scale.x, part[n].r[1], sum[n].r[1]);
    sum[n].r[2] = fmaf(scale.y, part[n].r[2], sum[n].r[2]);
    sum[n].r[3] = fmaf(scale.y, part[n].r[3], sum[n].r[3]);
  }
  if (!asymmetric) return;
  const float* const x_sums = sums_of_x();
  float2 offset = unpack_f16(*reinterpret_cast<const uint32_t*>(scales + offsets_at));
  offset = make_float2(fmaf(zero, scale.x, offset.x), fmaf(zero, scale.y, offset.y));
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
    const float2 x = *reinterpret_cast<const float2*>(x_sums + 8 * n);
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
  using Ring = CodeRing<Shape, Shape::kPart>;
  constexpr float kZero = float(1 << (kBits - 1));
  OCTAVO_DYNAMIC_SHARED(unsigned char, shared);
  unsigned char* const x = shared + Shape::kRingBytes;
  unsigned char* const scales = x + Shape::kXBytes + Shape::kRowBytes;
  float* const x_sums = reinterpret_cast<float*>(scales + 4 * Shape::kScaleBytes);
  if (has_experts<Shape>(a)) pdl_wait();
  const QuantizedPlace p = place<Shape>(a, int(threadIdx.x));
  if (has_experts<Shape>(a) && p.tokens <= 0) return pdl_launch();
  Ring ring(a, p, shared);
  ring.fill_early();
  pdl_wait();
  PartsOfX<X, Shape> parts(a, p, x);
  PartsOfScales<Shape, kGroup ? kGroup : 128> factors(a, p);
  bar_sync();
  parts.fetch(0);
  if constexpr (kGroup != 0) factors.fetch(p.units, scales);
  cp_commit();
  ring.fill_late();

  FragC sum[2][kTokenTiles] = {}, part[2][kTokenTiles];  // one group a row has no parts
  float row_sums[kTokenTiles][2] = {};                   // of x, of an asymmetric weight with one group a row

  for (int half = 0; ring.left > 0; ring.end_part(), half ^= 1) {
    if (Ring::kLate != Shape::kPart && ring.left == p.units) {
      cp_wait<Ring::kLate>();
    } else {
      cp_wait<Shape::kPart>();
    }
    if (!a.layout.symmetric) parts.sum(half, x_sums + half * Shape::kGroups * Shape::kTokens);
    bar_sync();  // the part is here, and everyone has read the one before, where the next goes
    if (ring.left > Shape::kPart) {
      parts.fetch(half ^ 1);
      if constexpr (kGroup != 0) factors.fetch(ring.left - Shape::kPart, scales + (half ^ 1) * Shape::kScaleBytes);
    }
    cp_commit();
    ring.begin_part(half);
    const unsigned char* const own_x = x + half * Shape::kPart * 128 + p.g * Shape::kPitch + p.t * 16;
    const unsigned char* const own_scales =
        scales + half * Shape::kScaleBytes + p.warp * 4 * Shape::kGroups * 16 + p.g * 4;
    const auto sums_of = [&](int group) {  // of x, of the lane's tokens: seldom wanted, so that nothing of it is kept
      return x_sums + (half * Shape::kGroups + group) * Shape::kTokens + thread_again() % 4 * 2;
    };
    const auto end_group = [&](int r, int group) {
      add_group(sum[r], part[r], own_scales + (r * Shape::kGroups + group) * 32, 2 * Shape::kScaleBytes,
                !a.layout.symmetric, kZero, [&] { return sums_of(group); });
    };
    if (kGroup == 0 && !a.layout.symmetric) {
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) {
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          const float2 v = *reinterpret_cast<const float2*>(sums_of(group) + 8 * n);
          row_sums[n][0] += v.x;
          row_sums[n][1] += v.y;
        }
      }
    }
#pragma unroll
    for (int slot = 0; slot < Shape::kPart; ++slot) {
      // An odd last unit has a unit of zeros beside it, but no scales for that.
      if ((kGroup == 32 || slot % 2 == 0) && slot >= ring.left) break;
      uint4 codes[2][Shape::kPlanes];
      ring.template take<true>(codes, slot);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint4 b[kTokenTiles];
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          b[n] = *reinterpret_cast<const uint4*>(own_x + n * 8 * Shape::kPitch + slot * 128 + h * 64);
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
          if (kGroup == 32) end_group(r, 2 * slot + h);
        }
        if (kGroup == 128 && h == 1 && slot % 2) {  // after both, which takes fewer registers
          end_group(0, slot / 2);
          end_group(1, slot / 2);
        }
      }
    }
  }
  pdl_launch();
  const int thread = thread_again();
  const QuantizedPlace end = place<Shape>(a, thread);
  if constexpr (kGroup == 0) scale_rows(a, end, sum, row_sums, kZero);
  finish_block<Shape>(a, end, sum, shared + thread * 16);
}

}  // namespace octavo::cuda
