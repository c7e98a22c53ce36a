// From the residual stream's float32 to an activation type.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

struct CastKernels {
  // out[i, :] = x[i, :], rounded to nearest even; out [rows, width] contiguous, rows of x lie x_stride apart.
  void (*to_bf16)(void* out, const float* x, int64_t x_stride, int64_t rows, int64_t width);
};

OCTAVO_KERNELS(CastKernels, cast_kernels)

}  // namespace octavo
