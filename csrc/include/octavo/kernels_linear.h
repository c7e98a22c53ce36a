// Matrix products on prepacked weights, and the packing itself.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

enum class Activation : int32_t { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4 };

// Where a product goes: act(product + bias), see Ops.linear. The stride is in elements.
struct LinearOutput {
  const float* bias;  // [n] or null; as stacked when gated
  int64_t n;
  Activation act;
  bool gated;       // the output has n / 2 columns
  void* out;        // [m, n or n / 2]
  int64_t out_stride;
  bool out_bf16;    // else float32
  bool accumulate;  // out += instead of out =; float32 only
};

// y[m, n] = x[m, :] . w[n, :]
struct LinearArgs {
  const void* x;  // [m, k], bfloat16 when the weight is, else float32
  int64_t x_stride;
  const void* weight;  // panels of 32 outputs: [ceil(n/32)][ceil(k/p)][32][p]
  DType weight_type;
  int64_t m, n, k;
  LinearOutput y;
};

struct PackArgs {
  void* packed;
  void* plain;  // [n, k] contiguous
  DType type;
  int64_t n, k;
  bool gated;
};

struct LinearKernels {
  void (*linear)(const LinearArgs& args);
  void (*pack)(const PackArgs& args);
  void (*unpack)(const PackArgs& args);
};

OCTAVO_KERNELS(LinearKernels, linear_kernels)

}  // namespace octavo
