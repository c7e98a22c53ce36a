// What the bindings of every weight format share: the checks of a linear layer's output and bias.
#pragma once

#include "octavo/binding.h"
#include "octavo/kernels_linear.h"

namespace octavo::binding {

inline LinearOutput linear_output(const TensorView& out, const Optional<TensorView>& bias, int64_t m, int64_t n,
                                  int64_t act, bool gated, bool accumulate) {
  LinearOutput y{};
  if (gated && n % 2) TVM_FFI_THROW(ValueError) << "a gated weight has " << n << " rows; it must be even";
  if (act < 0 || act > 4) TVM_FFI_THROW(ValueError) << "activation " << act << " is not one of 0..4";
  if (bias.has_value()) {
    check_float32(*bias, "bias");
    check_shape(*bias, "bias", {n});
    check_contiguous(*bias, "bias");
    y.bias = data<const float>(*bias);
  }
  y.n = n;
  y.act = static_cast<Activation>(act);
  y.gated = gated;
  y.out_stride = row_stride(out, "out");
  check_shape(out, "out", {m, gated ? n / 2 : n});
  DType out_type = float_type(out, "out");
  if (out_type == DType::kFloat16 || (accumulate && out_type == DType::kBFloat16)) {
    TVM_FFI_THROW(TypeError) << "out is " << dtype_text(out.dtype()) << "; allowed: float32"
                             << (accumulate ? "" : ", bfloat16");
  }
  y.out_bf16 = out_type == DType::kBFloat16;
  y.accumulate = accumulate;
  y.out = data<void>(out);
  return y;
}

}  // namespace octavo::binding
