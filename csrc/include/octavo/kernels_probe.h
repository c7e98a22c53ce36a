// What the machine gives, for benchmarks to compare with.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

struct ProbeKernels {
  // Reads every byte once and returns something that depends on all of them.
  float (*read)(const void* data, int64_t bytes);
  // `rounds` times 24 independent multiply-adds of 16 lanes; returns the floating-point operations done.
  double (*multiply_add_float32)(int64_t rounds, float* sink);
  double (*multiply_add_bfloat16)(int64_t rounds, float* sink);
  // The same of products of an unsigned and a signed byte, four a lane, added in int32.
  double (*multiply_add_int8)(int64_t rounds, float* sink);
};

OCTAVO_KERNELS(ProbeKernels, probe_kernels)

}  // namespace octavo
