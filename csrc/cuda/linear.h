// Products of float weights whose rows do not know of each other: for the engine's invariant mode, and of experts.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "activation.h"
#include "experts.h"

namespace octavo::cuda {

struct LinearArgs {
  void* out;  // [m, gated ? n / 2 : n], rows out_stride elements apart
  DType out_type;
  int64_t out_stride;
  const void* x;  // [m, k], rows x_stride elements apart
  int64_t x_stride;
  const void* weight;  // [n, k] contiguous; gated: gate rows, then up rows. Of experts a stack of such gates, then ups
  DType type;          // of x and weight
  const float* bias;   // [n] or null
  int64_t m, n, k;
  Activation act;
  bool gated;  // out = act(gate) * up
  bool add;    // out (float32) += act(x weight^T + bias)
  bool wide;   // tests: the tile for many rows, however few there are
  ExpertRows experts;
  int64_t up_row;  // from a gate row to its up row
};

// Sums in float32. K is cut into 8 slices, whatever m: each is summed in order of k, then they are added in order. So a
// row of the result depends on that row of x alone, to the bit.
void linear(const LinearArgs& args, cudaStream_t stream);

}  // namespace octavo::cuda
