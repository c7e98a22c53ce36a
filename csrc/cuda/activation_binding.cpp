// What follows a product of float weights on CUDA.
#include "activation.h"
#include "binding_cuda.h"

namespace octavo::binding {
namespace {

// out = act(y + bias), gated act(gate) * up, or with `add` out (float32) += act(y + bias).
void linear_epilogue(TensorView out, TensorView y, Optional<TensorView> bias, int64_t act, bool gated, bool add) {
  cuda::EpilogueArgs a{};
  a.y_stride = row_stride(y, "y");
  a.out_stride = row_stride(out, "out");
  a.rows = y.size(0);
  a.width = gated ? y.size(1) / 2 : y.size(1);
  if (gated && y.size(1) % 2) TVM_FFI_THROW(ValueError) << "a gated product has " << y.size(1) << " columns; it must be even";
  if (gated && add) TVM_FFI_THROW(ValueError) << "a gated product is not added to a residual";
  check_shape(out, "out", {a.rows, a.width});
  a.out_type = float_type(out, "out");
  a.y_type = float_type(y, "y");
  if (add) check_float32(out, "out");
  a.bias = device_vector(bias, "bias", y.size(1));
  if (act < 0 || act > 4) TVM_FFI_THROW(ValueError) << "activation " << act << "; allowed: 0 to 4";
  a.act = cuda::Activation(act);
  a.gated = gated;
  a.add = add;
  a.y = device_data<const void>(y);
  a.out = device_data<void>(out);
  cuda::epilogue(a, current_stream(out));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(linear_epilogue, linear_epilogue);

}  // namespace octavo::binding
