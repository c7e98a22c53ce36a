// RMSNorm and LayerNorm of the float32 residual.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "octavo/types.h"

namespace octavo::cuda {

constexpr int64_t kMaxNormWidth = 32768;

struct NormArgs {
  void* out;  // [rows, width] contiguous
  DType out_type;
  float* x;  // [rows, width], rows x_stride elements apart; written only where there is a delta
  int64_t x_stride;
  const float* weight;  // [width] or null
  const float* bias;    // [width] or null
  int64_t rows, width;  // width <= kMaxNormWidth; beyond 16384, all rows on multiples of 16 bytes
  float eps;
  bool layer;         // LayerNorm, else RMSNorm
  const void* delta;  // [rows, width] contiguous or null: x += delta first
  DType delta_type;
};

// A row is reduced in an order that depends on its width alone.
void norm(const NormArgs& args, cudaStream_t stream);

}  // namespace octavo::cuda
