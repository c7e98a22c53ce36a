// 4 and 8 bit weights with float32 activations, for float32 models: no tensor core multiplies float32 exactly, and
// nothing here is tuned.
//
// A warp makes 16 outputs (a tile) of kTokens tokens. Each lane multiplies its own codes, so a sum is 4 chains, one a
// lane of a row, over k in order, each (scale, part and offset as in quantized_float.cuh) by groups; the lanes are
// added at the end in a fixed tree. A token's result is the same in every batch.
#include "launch.h"
#include "quantized_launch.h"
#include "quantized_tile.cuh"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4, kTokens = 4;

// Codes less zero of row g + 8 * upper: the 4 k of word f.
template <int kBits>
OCTAVO_DEVICE void unpack_words(const uint4 (&codes)[kBits / 4], int f, bool upper, float (&values)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int shift = 4 * (upper + j / 2 * 2 + j % 2 * 4);
    int code = int(word(codes[0], f) >> shift & 15);
    if (kBits == 8) code |= int(word(codes[kBits / 4 - 1], f) >> shift & 15) << 4;
    values[j] = float(code - (1 << (kBits - 1)));
  }
}

template <int kBits>
__global__ void __launch_bounds__(32 * kWarps, 1) quantized_float32_kernel(const __grid_constant__ QuantizedArgs a) {
  constexpr float kZero = float(1 << (kBits - 1));
  const QuantizedLayout& layout = a.layout;
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int tiles_each = layout.gated ? 2 : 1;  // a warp makes gate and up
  const int64_t first_tile = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * tiles_each;
  pdl_wait();
  int64_t token = int64_t(blockIdx.y) * kTokens, end = a.m, stack = 0;
  if (a.experts.blocks) {
    const int4 block = expert_block<kTokens>(a.experts, int(blockIdx.y));
    token = block.y;
    end = int64_t(block.y) + block.z;
    stack = block.x * layout.tiles();
  }
  if (first_tile < layout.tiles() && token < end) {
    const float* x[kTokens];
#pragma unroll
    for (int m = 0; m < kTokens; ++m) {
      x[m] = static_cast<const float*>(a.x) + x_row(a.experts, min(token + m, end - 1)) * a.x_stride;
    }
    float sum[2][kTokens][2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (r >= tiles_each) break;
      const uint8_t* tile = a.weight + (stack + first_tile + r) * layout.tile_bytes();
      float part[kTokens][2] = {}, x_sum[kTokens] = {};
      for (int64_t k = 0; k < layout.units() * 64; k += 32) {
        uint4 codes[kBits / 4];
#pragma unroll
        for (int plane = 0; plane < kBits / 4; ++plane) {
          codes[plane] = reinterpret_cast<const uint4*>(tile + (k / 64 * (kBits / 4) + plane) * 512)[lane];
        }
#pragma unroll
        for (int f = 0; f < 2; ++f) {
          float w[2][4];
          const int at = int(k % 64 / 32 * 2) + f;
          unpack_words<kBits>(codes, at, false, w[0]);
          unpack_words<kBits>(codes, at, true, w[1]);
#pragma unroll
          for (int m = 0; m < kTokens; ++m) {
            if (token + m >= end) break;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const int64_t column = k + 8 * t + 4 * f + j;
              const float v = column < layout.k ? x[m][column] : 0.f;
              part[m][0] = fmaf(v, w[0][j], part[m][0]);
              part[m][1] = fmaf(v, w[1][j], part[m][1]);
              x_sum[m] += v;
            }
          }
        }
        const int64_t group_end = layout.group_size ? (k + 32) % layout.group_size : layout.units() * 64 - (k + 32);
        if (group_end != 0 && k + 32 < layout.units() * 64) continue;
        const int64_t group = layout.group_size ? k / layout.group_size : 0;
        float2 scale, offset{};
        if (layout.group_size) {
          const uint8_t* at = tile + layout.scales_at() + group * 32 + g * 4;
          scale = unpack_f16(*reinterpret_cast<const uint32_t*>(at));
          if (!layout.symmetric) offset = unpack_f16(*reinterpret_cast<const uint32_t*>(at + layout.factor_bytes()));
        } else {
          const uint8_t* at = tile + layout.scales_at() + g * 8;
          scale = *reinterpret_cast<const float2*>(at);
          if (!layout.symmetric) offset = *reinterpret_cast<const float2*>(at + layout.factor_bytes());
        }
        if (!layout.symmetric) offset = make_float2(fmaf(kZero, scale.x, offset.x), fmaf(kZero, scale.y, offset.y));
#pragma unroll
        for (int m = 0; m < kTokens; ++m) {
          sum[r][m][0] = fmaf(scale.x, part[m][0], sum[r][m][0]);
          sum[r][m][1] = fmaf(scale.y, part[m][1], sum[r][m][1]);
          if (!layout.symmetric) {
            sum[r][m][0] = fmaf(offset.x, x_sum[m], sum[r][m][0]);
            sum[r][m][1] = fmaf(offset.y, x_sum[m], sum[r][m][1]);
          }
          part[m][0] = part[m][1] = x_sum[m] = 0.f;
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kTokens; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float v = sum[0][m][half], up = sum[1][m][half];
#pragma unroll
        for (int d = 1; d < 4; d *= 2) {
          v += shfl_xor(v, d);
          up += shfl_xor(up, d);
        }
        if (t == 0 && token + m < end) finish_output<true>(a, token + m, int(first_tile), g + 8 * half, v, up);
      }
    }
  }
  pdl_launch();
}

}  // namespace

void quantized_float32(const QuantizedArgs& a, cudaStream_t stream) {
  const int64_t warps = a.layout.gated ? a.layout.tiles() / 2 : a.layout.tiles();
  const auto kernel = a.layout.bits == 4 ? quantized_float32_kernel<4> : quantized_float32_kernel<8>;
  if (a.experts.blocks) {
    return launch(kernel, dim3(blocks_of(warps, kWarps), a.experts.blocks_of(kTokens)), dim3(32 * kWarps), 0, stream, a);
  }
  // The grid's second dimension ends at 65535.
  constexpr int64_t kRows = 65535 * kTokens;
  for (int64_t row = 0; row < a.m; row += kRows) {
    QuantizedArgs part = a;
    part.m = a.m - row < kRows ? a.m - row : kRows;
    part.x = advance(a.x, a.x_type, row * a.x_stride);
    part.out = advance(a.out, a.out_type, row * a.out_stride);
    launch(kernel, dim3(blocks_of(warps, kWarps), blocks_of(part.m, kTokens)), dim3(32 * kWarps), 0, stream, part);
  }
}

}  // namespace octavo::cuda
