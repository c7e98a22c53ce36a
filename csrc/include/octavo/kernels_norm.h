// Row normalisation: float32 in, float32 or bfloat16 out; and of parts of a row in place, for queries and keys.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

struct NormArgs {
  void* out;  // [rows, width]
  bool out_bf16;
  const float* x;  // [rows, width]
  int64_t x_stride;
  const float* weight;  // [width] or null
  const float* bias;    // [width] or null
  float eps;
  int64_t rows, width;
};

// x[row, 0:groups * size] in place, each `size` columns normalised by themselves.
struct HeadNormArgs {
  void* x;
  bool bf16;  // else float32
  int64_t stride;  // elements from row to row
  int64_t rows, groups, size;
  const float* weight;  // [groups * size]
  const float* bias;    // [groups * size] or null
  float eps;
  bool centred;  // LayerNorm, else RMSNorm
};

struct NormKernels {
  void (*rms_norm)(const NormArgs& args);
  void (*layer_norm)(const NormArgs& args);
  // out, float32, += what rms_norm would write there; rows of out lie `width` apart.
  void (*rms_norm_add)(const NormArgs& args);
  void (*head_norm)(const HeadNormArgs& args);
};

OCTAVO_KERNELS(NormKernels, norm_kernels)

}  // namespace octavo
