// W4A8, W8A8 and LLM.int8() (arXiv 2208.07339) on tensor cores: int8 activations (ops.Activations), one scale for each
// 32 elements of a row, or one a row where what is beyond a threshold stays in float (quantized_activations.cu).
//
// One mma takes the 32 k that share an activation's scale, so its int32 sum is exact and needs no state:
//   sum = fma(weight scale, x scale * (sum of codes), sum)              one group a row: sum = fma(x scale, ..., sum),
//   sum = fma(offset + zero scale, x scale * (sum of x's codes), sum)   scaled once at the end
// 4 bit codes are multiplied in the upper half of a byte, 16 (code - 8), and a sixteenth goes to the scale of x.
// LLM.int8() adds int32 over the slice. An outlier is a float32 product of its own, in the order of k, read from x
// itself; tokens that have none at that k add an exact zero.
#include "launch.h"
#include "quantized_launch.h"
#include "quantized_tile.cuh"

namespace octavo::cuda {
namespace {

// ---- weights ---------------------------------------------------------------------------------------------------

// A operand of half a unit from words f and f + 1: 16 (code - 8), or code - 128.
template <int kBits>
OCTAVO_DEVICE FragA unpack_int8(const uint4 (&codes)[kBits / 4], int f) {
  FragA a;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t low = word(codes[0], f + i);
    if constexpr (kBits == 4) {
      a.r[2 * i] = lop3<0x6A>(low << 4, 0xF0F0F0F0, 0x80808080);
      a.r[2 * i + 1] = lop3<0x6A>(low, 0xF0F0F0F0, 0x80808080);
    } else {
      const uint32_t high = word(codes[1], f + i);
      a.r[2 * i] = lop3<0xE4>(low, high << 4, 0x0F0F0F0F) ^ 0x80808080;
      a.r[2 * i + 1] = lop3<0xE4>(low >> 4, high, 0x0F0F0F0F) ^ 0x80808080;
    }
  }
  return a;
}

// ---- product ---------------------------------------------------------------------------------------------------

enum class Scales { kGroups, kRow, kOutliers };  // of the weight; kOutliers: one a row, and LLM.int8()

template <int kBits, Scales kScales, int kTokenTiles, bool kLess>
struct QuantizedInt8Shape : QuantizedShape<kBits, kTokenTiles, kLess> {
  using Base = QuantizedShape<kBits, kTokenTiles, kLess>;
  static constexpr int kPitch = Base::kChunk * 64 + 64;  // 64 beyond, so that a quarter warp hits all banks
  static constexpr int kXBytes = Base::kTokens * kPitch;
  static constexpr int kFactorPitch = Base::kTokens + 2;  // so that lanes that stage blocks hit all banks
  static constexpr int kFactorBytes = Base::kChunk * 2 * kFactorPitch * 4;  // [block of 32, a lane each][token]
  static constexpr int kScaleBytes = kScales == Scales::kGroups ? Base::kTiles * Base::kChunk * 2 * 32 : 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  // Two planes of codes and 32 tokens leave no registers for a second block: sm_80 takes some more than sm_90.
  static constexpr int kBlocks = kBits == 8 && kTokenTiles == 4 ? 1 : Base::kBlocks;
#endif
  // Ring, x, its scales (or outliers), the weight's scales; of an asymmetric weight x's sums and offsets too.
  static constexpr int shared_bytes(bool symmetric) {
    const int bytes = Base::kRingBytes + kXBytes + (kFactorBytes + kScaleBytes) * (symmetric || !kScaleBytes ? 1 : 2);
    return bytes > Base::kSumsBytes ? bytes : Base::kSumsBytes;
  }
};

// A chunk of x's codes on its way to shared memory, zeros where there are no tokens.
template <class Shape>
OCTAVO_DEVICE void copy_codes(const QuantizedArgs& a, const QuantizedPlace& p, int unit, int units, unsigned char* x) {
#pragma unroll 1
  for (int token = p.warp; token < Shape::kTokens; token += Shape::kWarps) {
    const bool there = token < p.tokens;
    const int64_t row = there ? x_row_of<Shape>(a, p.token + token) : 0;
    const int8_t* from = a.codes + (row * a.layout.units() + unit) * 64;
#pragma unroll
    for (int i = 0; i < Shape::kChunk * 4; i += 32) {
      const int piece = i + p.lane;
      if (piece < units * 4) cp_async<16>(x + token * Shape::kPitch + piece * 16, from + piece * 16, there);
    }
  }
  cp_commit();
}

// Its scales times `factor` and, of an asymmetric weight, sums; or its outliers.
template <Scales kScales, class Shape>
OCTAVO_DEVICE void stage_x_factors(const QuantizedArgs& a, const QuantizedPlace& p, int unit, int units,
                                   unsigned char* factors, float* sums, float factor) {
#pragma unroll 1
  for (int token = p.warp; token < Shape::kTokens; token += Shape::kWarps) {
    const bool there = token < p.tokens && p.lane < units * 2;
    const int64_t row = there ? x_row_of<Shape>(a, p.token + token) : 0;
    const int64_t from = (row * a.layout.units() + unit) * 2 + p.lane;
    const int at = p.lane * Shape::kFactorPitch + token;
    if (p.lane >= Shape::kChunk * 2) continue;
    if constexpr (kScales == Scales::kOutliers) {
      reinterpret_cast<uint32_t*>(factors)[at] = there ? a.outliers[from] : 0u;
    } else {
      const float2 v = there ? a.factors[from] : make_float2(0.f, 0.f);
      reinterpret_cast<float*>(factors)[at] = v.x * factor;
      if (kScales == Scales::kGroups && !a.layout.symmetric) sums[at] = v.y;
    }
  }
}

// The sums of the slice's elements of each token, for the offset of a whole row.
template <class Shape, int kTokenTiles>
OCTAVO_DEVICE void sum_rows(const QuantizedArgs& a, const QuantizedPlace& p, float (&sums)[kTokenTiles][2]) {
#pragma unroll
  for (int i = 0; i < 2 * kTokenTiles; ++i) {
    const int token = 8 * (i / 2) + 2 * p.t + i % 2;
    if (token >= p.tokens) continue;
    const float2* factors = a.factors + (x_row_of<Shape>(a, p.token + token) * a.layout.units() + p.first_unit) * 2;
#pragma unroll 1
    for (int block = 0; block < 2 * p.units; ++block) sums[i / 2][i % 2] += factors[block].y;
  }
}

OCTAVO_DEVICE float load_one(const QuantizedArgs& a, int64_t row, int64_t k) {
  const int64_t at = row * a.x_stride + k;
  if (a.x_type == DType::kFloat32) return static_cast<const float*>(a.x)[at];
  const uint32_t word = static_cast<const uint16_t*>(a.x)[at];
  return a.x_type == DType::kFloat16 ? unpack_f16(word).x : unpack_bf16(word).x;
}

// What stays in float of the 32 k from `k` on, masks[token], added to sum in the order of k. Few columns of x have
// any, so their codes are read once more, from L2, rather than held while the tensor cores need the registers.
template <class Shape, int kTokenTiles>
OCTAVO_DEVICE void add_outliers(const QuantizedArgs& a, const QuantizedPlace& p, int64_t k, const uint32_t* masks,
                                FragC (&sum)[2][kTokenTiles]) {
  uint32_t left = 0;
  for (int i = p.lane % Shape::kTokens; i < Shape::kTokens; i += 32) left |= masks[i];
  if (!any(left != 0)) return;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) left |= shfl_xor(left, d);
#pragma unroll 1
  for (; left != 0; left &= left - 1) {
    const int at = __ffs(int(left)) - 1;
    float w[2][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        w[r][half] = float(read_code(a.layout, tile_of(a, p, r), p.g + 8 * half, k + at) - 128);
      }
    }
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int token = 8 * n + 2 * p.t + e;
        const float x = masks[token] >> at & 1u ? load_one(a, x_row_of<Shape>(a, p.token + token), k + at) : 0.f;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          sum[r][n].r[e] = fmaf(w[r][0], x, sum[r][n].r[e]);
          sum[r][n].r[2 + e] = fmaf(w[r][1], x, sum[r][n].r[2 + e]);
        }
      }
    }
  }
}

template <int kBits, Scales kScales, int kTokenTiles, bool kLess>
__global__ void __launch_bounds__(QuantizedShape<kBits, kTokenTiles, kLess>::kThreads,
                                  QuantizedInt8Shape<kBits, kScales, kTokenTiles, kLess>::kBlocks)
    quantized_int8_kernel(const __grid_constant__ QuantizedArgs a) {
  using Shape = QuantizedInt8Shape<kBits, kScales, kTokenTiles, kLess>;
  constexpr float kZero = float(1 << (kBits - 1));
  OCTAVO_DYNAMIC_SHARED(unsigned char, shared);
  unsigned char* const x = shared + Shape::kRingBytes;
  unsigned char* const factors = x + Shape::kXBytes;
  unsigned char* const scales = factors + Shape::kFactorBytes;
  unsigned char* const offsets = scales + Shape::kScaleBytes;
  float* const x_sums = reinterpret_cast<float*>(offsets + Shape::kScaleBytes);
  if (has_experts<Shape>(a)) pdl_wait();
  const QuantizedPlace p = place<Shape>(a, int(threadIdx.x));
  if (has_experts<Shape>(a) && p.tokens <= 0) return pdl_launch();
  CodeRing<Shape> ring(a, p, shared);
  ring.fill_early();
  pdl_wait();
  copy_codes<Shape>(a, p, p.first_unit, min(Shape::kChunk, p.units), x);
  ring.fill_late();

  FragC sum[2][kTokenTiles] = {};  // kOutliers: of the outliers
  FragI whole[2][kTokenTiles] = {};  // kOutliers only
  const unsigned char* const own_scales = scales + p.warp * 2 * Shape::kChunk * 64 + p.g * 4;
  const unsigned char* const own_x = x + p.g * Shape::kPitch + p.t * 16;

  for (int first = 0; first < p.units; first += Shape::kChunk) {
    const int count = min(Shape::kChunk, p.units - first), unit = p.first_unit + first;
    if (first) {
      bar_sync();  // everyone has read the chunk before
      copy_codes<Shape>(a, p, unit, count, x);
    }
    stage_x_factors<kScales, Shape>(a, p, unit, count, factors, x_sums, kBits == 4 ? 0.0625f : 1.f);
    if constexpr (kScales == Scales::kGroups) {
      const int group = unit * 2 >> a.group_shift;
      const int groups = min(Shape::kChunk * 2 >> a.group_shift, int(a.layout.stored_groups()) - group);
      const int64_t at = a.layout.scales_at() + group * 32;
      stage_factors<Shape::kChunk * 64>(a, p, scales, at, groups * 2);
      if (!a.layout.symmetric) {
        stage_factors<Shape::kChunk * 64>(a, p, offsets, at + a.layout.factor_bytes(), groups * 2);
      }
    }
    if (first) {
      cp_wait<0>();
    } else {
      cp_wait<CodeRing<Shape>::kLate>();
    }
    bar_sync();

    for (int base = 0; base < count; base += Shape::kSlots) {
#pragma unroll
      for (int slot = 0; slot < Shape::kSlots; ++slot) {
        if (base + slot >= count) break;
        uint4 codes[2][Shape::kPlanes];
        ring.take(codes, slot);
        uint4 b[kTokenTiles];
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          b[n] = *reinterpret_cast<const uint4*>(own_x + n * 8 * Shape::kPitch + (base + slot) * 64);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const FragA weights[2] = {unpack_int8<kBits>(codes[0], 2 * h), unpack_int8<kBits>(codes[1], 2 * h)};
          const int block = 2 * (base + slot) + h;
          if constexpr (kScales == Scales::kOutliers) {
#pragma unroll
            for (int n = 0; n < kTokenTiles; ++n) {
              const FragB tokens{{word(b[n], 2 * h), word(b[n], 2 * h + 1)}};
              mma_s8(whole[0][n], weights[0], tokens, whole[0][n]);
              mma_s8(whole[1][n], weights[1], tokens, whole[1][n]);
            }
            continue;
          }
          float2 scale[2] = {}, offset[2] = {};
          if constexpr (kScales == Scales::kGroups) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const unsigned char* at = own_scales + (r * Shape::kChunk * 2 + (block >> a.group_shift)) * 32;
              scale[r] = unpack_f16(*reinterpret_cast<const uint32_t*>(at));
              if (!a.layout.symmetric) {
                offset[r] = unpack_f16(*reinterpret_cast<const uint32_t*>(at + Shape::kScaleBytes));
                offset[r] = make_float2(fmaf(kZero, scale[r].x, offset[r].x), fmaf(kZero, scale[r].y, offset[r].y));
              }
            }
          }
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) {
            const FragB tokens{{word(b[n], 2 * h), word(b[n], 2 * h + 1)}};
            const int at = block * Shape::kFactorPitch + 8 * n + 2 * p.t;
            const float2 x_scale = *reinterpret_cast<const float2*>(reinterpret_cast<const float*>(factors) + at);
            float2 x_sum{};
            if (kScales == Scales::kGroups && !a.layout.symmetric) {
              x_sum = *reinterpret_cast<const float2*>(x_sums + at);
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              FragI d;
              mma_s8(d, weights[r], tokens, FragI{});
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                const float v = float(d.r[j]), token_scale = j % 2 ? x_scale.y : x_scale.x;
                float& total = sum[r][n].r[j];
                if constexpr (kScales == Scales::kGroups) {
                  total = fmaf(j < 2 ? scale[r].x : scale[r].y, v * token_scale, total);
                  if (!a.layout.symmetric) {
                    total = fmaf(j < 2 ? offset[r].x : offset[r].y, j % 2 ? x_sum.y : x_sum.x, total);
                  }
                } else {
                  total = fmaf(v, token_scale, total);
                }
              }
            }
          }
        }
      }
      ring.end_part();
    }
    if constexpr (kScales == Scales::kOutliers) {
#pragma unroll 1
      for (int block = 0; block < 2 * count; ++block) {
        add_outliers<Shape>(a, p, int64_t(unit) * 64 + block * 32,
                            reinterpret_cast<const uint32_t*>(factors) + block * Shape::kFactorPitch, sum);
      }
    }
  }
  pdl_launch();
  const int thread = thread_again();
  const QuantizedPlace end = place<Shape>(a, thread);
  if constexpr (kScales == Scales::kOutliers) {
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int token = 8 * n + 2 * end.t + e;
        const float x_scale = token < end.tokens ? a.factors[x_row_of<Shape>(a, end.token + token)].x : 0.f;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          sum[r][n].r[e] = fmaf(x_scale, float(whole[r][n].r[e]), sum[r][n].r[e]);
          sum[r][n].r[2 + e] = fmaf(x_scale, float(whole[r][n].r[2 + e]), sum[r][n].r[2 + e]);
        }
      }
    }
  }
  if constexpr (kScales != Scales::kGroups) {
    float row_sums[kTokenTiles][2] = {};
    if (!a.layout.symmetric) sum_rows<Shape>(a, end, row_sums);
    scale_rows(a, end, sum, row_sums, kZero);
  }
  finish_block<Shape>(a, end, sum, shared + thread * 16);
}

template <int kBits, Scales kScales>
void launch_quantized_int8(const QuantizedArgs& args, cudaStream_t stream) {
  for_launches(args, [&](const QuantizedArgs& a, auto token_tiles, auto less) {
    constexpr int kTokenTiles = decltype(token_tiles)::value;
    constexpr bool kLess = decltype(less)::value;
    using Shape = QuantizedInt8Shape<kBits, kScales, kTokenTiles, kLess>;
    static_assert(Shape::shared_bytes(false) + 16 <= shared_of(kTokenTiles, kLess));
    launch(quantized_int8_kernel<kBits, kScales, kTokenTiles, kLess>, grid_of<Shape>(a), dim3(Shape::kThreads),
           Shape::shared_bytes(a.layout.symmetric), stream, a);
  });
}

}  // namespace

void quantized_int8(const QuantizedArgs& a, cudaStream_t stream) {
  if (a.outliers) return launch_quantized_int8<8, Scales::kOutliers>(a, stream);
  if (a.layout.bits == 8) {
    return a.layout.group_size ? launch_quantized_int8<8, Scales::kGroups>(a, stream)
                               : launch_quantized_int8<8, Scales::kRow>(a, stream);
  }
  a.layout.group_size ? launch_quantized_int8<4, Scales::kGroups>(a, stream)
                      : launch_quantized_int8<4, Scales::kRow>(a, stream);
}

}  // namespace octavo::cuda
