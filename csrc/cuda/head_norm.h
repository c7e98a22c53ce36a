// RMSNorm and LayerNorm of groups of columns: heads of q and k in place, or a block's result into the residual.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "octavo/types.h"

namespace octavo::cuda {

struct HeadNormArgs {
  void* x;  // [rows, groups * size], rows `stride` elements apart; changed in place where there is no `add_to`
  DType type;
  int64_t stride, rows, groups, size;
  const float* weight;  // [groups * size]
  const float* bias;    // [groups * size] or null
  float eps;
  bool centred;   // LayerNorm, else RMSNorm
  float* add_to;  // [rows, groups * size] contiguous or null: += what would be written to x
};

// A group is reduced in an order that depends on `size` alone.
void head_norm(const HeadNormArgs& args, cudaStream_t stream);

}  // namespace octavo::cuda
