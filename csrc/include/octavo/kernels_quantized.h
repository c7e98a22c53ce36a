// Matrix products on 4 and 8 bit weights. The layout is ops.QuantizedLinear, the arithmetic ops.QuantizedWeight and
// ops.Activations.
#pragma once

#include "octavo/kernels_linear.h"

namespace octavo {

// How a packed weight lies in memory: panels of 32 outputs, each a sequence of groups of codes, scales and offsets.
struct QuantizedLayout {
  int bits;            // 4 or 8
  int64_t group_size;  // 0: the whole row
  bool symmetric;      // codes count from 2^(bits-1), else there are offsets
  int64_t n, k;

  // Always inline, as everything that several instruction sets compile.
#define OCTAVO_LAYOUT __attribute__((always_inline)) int64_t
  OCTAVO_LAYOUT group() const { return group_size ? group_size : k; }
  OCTAVO_LAYOUT groups() const { return group_size ? (k + group_size - 1) / group_size : 1; }
  OCTAVO_LAYOUT step() const { return bits == 4 ? 8 : 4; }  // k of two lines
  OCTAVO_LAYOUT code_bytes(int64_t width) const { return (width + step() - 1) / step() * 128; }
  OCTAVO_LAYOUT scale_bytes() const { return group_size ? 64 : 128; }  // 32 float16, or 32 float32
  OCTAVO_LAYOUT group_bytes(int64_t width) const { return code_bytes(width) + scale_bytes() * (symmetric ? 1 : 2); }
  OCTAVO_LAYOUT panel_bytes() const {
    int64_t last = k - (groups() - 1) * group();
    return (groups() - 1) * group_bytes(group()) + group_bytes(last);
  }
  OCTAVO_LAYOUT panels() const { return (n + 31) / 32; }
#undef OCTAVO_LAYOUT
};

// y = x . w, out of activations in int8 or as they are.
struct QuantizedArgs {
  const void* x;  // [m, k]
  int64_t x_stride;
  bool x_bf16;  // else float32
  int64_t m;
  const uint8_t* weight;
  QuantizedLayout layout;
  bool outliers;    // of int8 activations: |x| >= threshold stay in float
  float threshold;
  LinearOutput y;
};

// quantized_int8.cpp
struct QuantizedInt8Kernels {
  void (*linear)(const QuantizedArgs& args);
};
OCTAVO_KERNELS(QuantizedInt8Kernels, quantized_int8_kernels)

// quantized_float.cpp
struct QuantizedFloatKernels {
  void (*linear)(const QuantizedArgs& args);
};
OCTAVO_KERNELS(QuantizedFloatKernels, quantized_float_kernels)

struct QuantizedPackArgs {
  uint8_t* packed;
  QuantizedLayout layout;
  bool gated;
  uint8_t* codes;  // [n, k]
  void* scales;    // [n, groups] float16, or float32 when the group is the row
  void* offsets;   // likewise, null when symmetric
};

// quantized_pack.cpp
struct QuantizedPackKernels {
  void (*pack)(const QuantizedPackArgs& args);
  void (*unpack)(const QuantizedPackArgs& args);
  // out[t, :] = w[ids[t], :] * scale, float32 [rows, k]; ids were checked, the weight is not gated.
  void (*embedding)(float* out, const int32_t* ids, int64_t rows, const uint8_t* packed, const QuantizedLayout& layout,
                    float scale);
};
OCTAVO_KERNELS(QuantizedPackKernels, quantized_pack_kernels)

}  // namespace octavo
