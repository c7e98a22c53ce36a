// From the residual stream's float32 to an activation type.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "octavo/types.h"

namespace octavo::cuda {

// out[i, :] = x[i, :], rounded to nearest even; out [rows, width] contiguous, rows of x lie x_stride elements apart.
// `type` is of out: bfloat16 or float16.
void cast(void* out, DType type, const float* x, int64_t x_stride, int64_t rows, int64_t width, cudaStream_t stream);

}  // namespace octavo::cuda
