// Float weights rounded to 4 or 8 bit codes at load. The definition, to the bit, is ops/reference_rounding.py.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

struct QuantizeArgs {
  uint8_t* codes;  // [n, k]
  void* scales;    // [n, groups] float16, or [n] float32 when the group is the row
  void* offsets;   // [n, groups] float16, null when symmetric
  const void* weight;  // [n, k]
  DType type;
  int64_t n, k;
};

struct QuantizeKernels {
  // 4 bits, group_size 32, 64 or 128. The scale of a group with an infinity or NaN is NaN.
  void (*groups)(const QuantizeArgs& args, int64_t group_size);
  // 8 bits, a scale a row; NaN likewise.
  void (*rows)(const QuantizeArgs& args);
};
OCTAVO_KERNELS(QuantizeKernels, quantize_kernels)

}  // namespace octavo
