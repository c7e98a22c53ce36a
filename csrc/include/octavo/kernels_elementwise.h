// What has no product to be fused behind: caps, clips and gates, in place.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

struct ElementwiseKernels {
  // x[0:count] = cap * tanh(x / cap)
  void (*softcap)(float* x, int64_t count, float cap);
  // x[row, 0:columns] = max(-limit, min(limit, x)), rows `stride` elements apart; bfloat16 or float32.
  void (*clip)(void* x, bool bf16, int64_t stride, int64_t rows, int64_t columns, float limit);
  // x[row, 0:columns] *= table[positions[row]], rows `stride` elements apart; bfloat16 or float32.
  void (*scale_rows)(void* x, bool bf16, int64_t stride, int64_t rows, int64_t columns, const int32_t* positions,
                     const float* table);
  // residual[row, :] += sigmoid(gate[row]) * x[row, :], all contiguous.
  void (*gated_add)(float* residual, const float* x, const float* gate, int64_t rows, int64_t width);
};

OCTAVO_KERNELS(ElementwiseKernels, elementwise_kernels)

}  // namespace octavo
