// The element-wise functions of ops.Activation, in float32.
#pragma once

#include "activation.h"
#include "prim.cuh"

namespace octavo::cuda {

OCTAVO_DEVICE float activate(float x, Activation act) {
  switch (act) {
    case Activation::kRelu:
      return x > 0.f ? x : 0.f * x;  // NaN stays
    case Activation::kGelu:
      return 0.5f * x * (1.f + erff(x * 0.707106781f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.f + tanhf(0.797884561f * (x + 0.044715f * x * x * x)));
    case Activation::kSilu:
      return div_rn(x, 1.f + exp2_approx(x * -1.44269504f));
    default:
      return x;
  }
}

}  // namespace octavo::cuda
