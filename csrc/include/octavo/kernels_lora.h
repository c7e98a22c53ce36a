// Low-rank adapters (LoRA, arXiv 2106.09685): y += scale * up(down(x)), each row by the adapter that it names.
#pragma once

#include "octavo/dispatch.h"
#include "octavo/kernels_linear.h"

namespace octavo {

struct LoraArgs {
  float* y;  // [m, n], rows y_stride elements apart
  int64_t y_stride;
  const void* x;  // [m, k], as the adapters bfloat16 or float32
  int64_t x_stride;
  bool bf16;
  int64_t m, k;
  const int32_t* adapters;  // [m], -1 for none
  // Of each adapter and part of the layer: address of down [rank, k], address of up [rank, columns], rank, columns;
  // rank 0: the adapter leaves this part as it is.
  const int64_t* entries;  // [num_adapters, parts, 4]
  const float* scales;     // [num_adapters, parts]
  int64_t num_adapters, parts;
  // Columns of y: the first, how many, of which part, the first of that part's.
  const int32_t* segments;  // [num_segments, 4]
  int64_t num_segments;
};

// What write_tile does behind a product, for a product that lies in memory: y [m, panels of 32], see linear_output.h.
struct FinishArgs {
  const float* y;
  int64_t y_stride, m;
  LinearOutput out;
};

struct LoraKernels {
  void (*add)(const LoraArgs& args);
  void (*finish)(const FinishArgs& args);
};

OCTAVO_KERNELS(LoraKernels, lora_kernels)

}  // namespace octavo
