// Row normalisation: float32 in, float32 or bfloat16 out.
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

struct NormKernels {
  void (*rms_norm)(const NormArgs& args);
  void (*layer_norm)(const NormArgs& args);
};

OCTAVO_KERNELS(NormKernels, norm_kernels)

}  // namespace octavo
