// Between plain quantised weights and the packed layout of quantized.h, and rows of it as floats. Memory is all they
// take; the weights of a model pass once.
#include "launch.h"
#include "quantized_launch.h"
#include "quantized_tile.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

// A thread a word: (tile, unit, plane, lane, f).
__global__ void __launch_bounds__(kThreads) pack_codes_kernel(const __grid_constant__ QuantizedPackArgs a) {
  const QuantizedLayout& layout = a.layout;
  pdl_wait();
  const int planes = layout.bits / 4;
  const int64_t words = layout.units() * planes * 128, index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t tile = index / words, at = index % words, unit = at / (128 * planes);
  const int plane = int(at / 128 % planes), lane = int(at % 128 / 4), f = int(at % 4), zero = 1 << (layout.bits - 1);
  if (tile < layout.tiles()) {
    uint32_t word = 0;
    for (int nibble = 0; nibble < 8; ++nibble) {
      const int i = nibble % 4;
      const int64_t row = layout.plain_row(tile, lane / 4 + 8 * (i % 2));
      const int64_t k = unit * 64 + f / 2 * 32 + lane % 4 * 8 + f % 2 * 4 + i / 2 * 2 + nibble / 4;
      const int code = row < layout.n && k < layout.k ? a.codes[row * layout.k + k] : zero;
      word |= uint32_t(code >> 4 * plane & 15) << 4 * nibble;
    }
    reinterpret_cast<uint32_t*>(a.packed + tile * layout.tile_bytes())[at] = word;
  }
  pdl_launch();
}

// Elements of a tile's scales, or of its offsets: [group][g][row g, row g + 8].
template <class T, bool kPack>
__global__ void __launch_bounds__(kThreads) copy_factors_kernel(const __grid_constant__ QuantizedPackArgs a) {
  const QuantizedLayout& layout = a.layout;
  pdl_wait();
  const int64_t each = layout.stored_groups() * 16, index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t tile = index / each, at = index % each, group = at / 16;
  if (tile < layout.tiles()) {
    const int64_t row = layout.plain_row(tile, int(at % 16 / 2 + at % 2 * 8));
    const bool there = row < layout.n && group < layout.groups();
    for (int offsets = 0; offsets < (layout.symmetric ? 1 : 2); ++offsets) {
      T* packed = reinterpret_cast<T*>(a.packed + tile * layout.tile_bytes() + layout.scales_at() +
                                       offsets * layout.factor_bytes()) + at;
      T* plain = static_cast<T*>(offsets ? a.offsets : a.scales) + row * layout.groups() + group;
      if (kPack) {
        *packed = there ? *plain : T(0);
      } else if (there) {
        *plain = *packed;
      }
    }
  }
  pdl_launch();
}

// The bytes between a tile's factors and the next tile.
__global__ void __launch_bounds__(128) pad_kernel(const __grid_constant__ QuantizedPackArgs a) {
  pdl_wait();
  const int64_t end = a.layout.scales_at() + a.layout.factor_bytes() * (a.layout.symmetric ? 1 : 2) + threadIdx.x;
  if (end < a.layout.tile_bytes()) a.packed[blockIdx.x * a.layout.tile_bytes() + end] = 0;
  pdl_launch();
}

__global__ void __launch_bounds__(kThreads) unpack_codes_kernel(const __grid_constant__ QuantizedPackArgs a) {
  const QuantizedLayout& layout = a.layout;
  pdl_wait();
  const int64_t each = 16 * layout.k, index = int64_t(blockIdx.x) * kThreads + threadIdx.x, tile = index / each;
  if (tile < layout.tiles()) {
    const int r = int(index % each / layout.k);
    const int64_t k = index % layout.k, row = layout.plain_row(tile, r);
    if (row < layout.n) {
      a.codes[row * layout.k + k] = uint8_t(read_code(layout, a.packed + tile * layout.tile_bytes(), r, k));
    }
  }
  pdl_launch();
}

// The element that `code` stands for, in one rounding.
OCTAVO_DEVICE float element(const QuantizedLayout& layout, const uint8_t* tile, int row, int64_t k, int code) {
  const int64_t at = (layout.group_size ? k / layout.group_size : 0) * 16 + row % 8 * 2 + row / 8;
  const uint8_t *scales = tile + layout.scales_at(), *offsets = scales + layout.factor_bytes();
  float scale, offset = 0.f;
  if (layout.group_size) {
    scale = unpack_f16(reinterpret_cast<const uint16_t*>(scales)[at]).x;
    if (!layout.symmetric) offset = unpack_f16(reinterpret_cast<const uint16_t*>(offsets)[at]).x;
  } else {
    scale = reinterpret_cast<const float*>(scales)[at];
    if (!layout.symmetric) offset = reinterpret_cast<const float*>(offsets)[at];
  }
  return layout.symmetric ? mul_rn(scale, float(code - (1 << (layout.bits - 1)))) : fmaf(scale, float(code), offset);
}

// A block a row.
__global__ void __launch_bounds__(kThreads)
    embedding_quantized_kernel(float* out, const int32_t* ids, const uint8_t* packed,
                               const __grid_constant__ QuantizedLayout layout, float factor) {
  pdl_wait();
  const int64_t id = ids[blockIdx.x];
  const bool there = id >= 0 && id < layout.n;
  const int row = there ? int(id % 16) : 0;
  const uint8_t* tile = packed + (there ? id / 16 : 0) * layout.tile_bytes();
  for (int64_t k = threadIdx.x; k < layout.k; k += kThreads) {
    const float w = element(layout, tile, row, k, read_code(layout, tile, row, k));
    out[int64_t(blockIdx.x) * layout.k + k] = there ? mul_rn(w, factor) : __int_as_float(0x7FC00000);
  }
  pdl_launch();
}

// A thread 8 consecutive k of a row, which are two words of each plane; neighbours in a warp are neighbours in the row.
template <bool kBf16>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(uint16_t* out, const uint8_t* packed, const __grid_constant__ QuantizedLayout layout) {
  pdl_wait();
  const int64_t each = layout.units() * 8, index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t tile = index / each / 16, k = index % each * 8;
  const int row = int(index / each % 16);
  const int64_t plain = tile < layout.tiles() ? layout.plain_row(tile, row) : layout.n;
  if (plain < layout.n && k < layout.k) {
    const uint8_t* from = packed + tile * layout.tile_bytes();
    const uint8_t* at = from + k / 64 * layout.unit_bytes() + (row % 8 * 4 + k % 32 / 8) * 16 + k % 64 / 32 * 8;
    const uint2 low = *reinterpret_cast<const uint2*>(at);
    const uint2 high = layout.bits == 8 ? *reinterpret_cast<const uint2*>(at + 512) : make_uint2(0, 0);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float pair[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int shift = 4 * (row / 8 + i % 2 * 2 + e * 4);
        const int code = int((i < 2 ? low.x : low.y) >> shift & 15) | int((i < 2 ? high.x : high.y) >> shift & 15) << 4;
        pair[e] = element(layout, from, row, k, code);
      }
      words[i] = kBf16 ? pack_bf16(pair[0], pair[1]) : pack_f16(pair[0], pair[1]);
    }
    uint16_t* to = out + plain * layout.k + k;
    if (layout.k % 8 == 0) {
      *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (k + i < layout.k) to[i] = uint16_t(words[i / 2] >> 16 * (i % 2));
      }
    }
  }
  pdl_launch();
}

}  // namespace

void pack_quantized(const QuantizedPackArgs& a, cudaStream_t stream) {
  const QuantizedLayout& layout = a.layout;
  const int64_t factors = layout.tiles() * layout.stored_groups() * 16;
  launch(pack_codes_kernel, dim3(blocks_of(layout.tiles() * layout.units() * layout.unit_bytes() / 4, kThreads)),
         dim3(kThreads), 0, stream, a);
  launch(layout.group_size ? copy_factors_kernel<uint16_t, true> : copy_factors_kernel<uint32_t, true>,
         dim3(blocks_of(factors, kThreads)), dim3(kThreads), 0, stream, a);
  launch(pad_kernel, dim3(unsigned(layout.tiles())), dim3(128), 0, stream, a);
}

void unpack_quantized(const QuantizedPackArgs& a, cudaStream_t stream) {
  const QuantizedLayout& layout = a.layout;
  const int64_t factors = layout.tiles() * layout.stored_groups() * 16;
  launch(unpack_codes_kernel, dim3(blocks_of(layout.tiles() * 16 * layout.k, kThreads)), dim3(kThreads), 0, stream, a);
  launch(layout.group_size ? copy_factors_kernel<uint16_t, false> : copy_factors_kernel<uint32_t, false>,
         dim3(blocks_of(factors, kThreads)), dim3(kThreads), 0, stream, a);
}

void embedding_quantized(float* out, const int32_t* ids, int64_t rows, const uint8_t* packed,
                         const QuantizedLayout& layout, float scale, cudaStream_t stream) {
  launch(embedding_quantized_kernel, dim3(unsigned(rows)), dim3(kThreads), 0, stream, out, ids, packed, layout, scale);
}

void dequantize(void* out, DType type, const uint8_t* packed, const QuantizedLayout& layout, cudaStream_t stream) {
  launch(type == DType::kBFloat16 ? dequantize_kernel<true> : dequantize_kernel<false>,
         dim3(blocks_of(layout.tiles() * 16 * layout.units() * 8, kThreads)), dim3(kThreads), 0, stream,
         static_cast<uint16_t*>(out), packed, layout);
}

}  // namespace octavo::cuda
