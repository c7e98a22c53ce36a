// Ops.rms_norm and Ops.layer_norm on CUDA, and each with an addition to the residual in front.
#include "binding_cuda.h"
#include "norm.h"

namespace octavo::binding {
namespace {

void run(const TensorView& out, const TensorView& x, const Optional<TensorView>& delta, const Optional<TensorView>& weight,
         const Optional<TensorView>& bias, double eps, bool layer) {
  cuda::NormArgs a{};
  check_float32(x, "x");
  a.x_stride = row_stride(x, "x");
  a.rows = x.size(0);
  a.width = x.size(1);
  if (a.width > cuda::kMaxNormWidth) {
    TVM_FFI_THROW(ValueError) << "rows of " << a.width << " elements; a norm on CUDA takes at most " << cuda::kMaxNormWidth;
  }
  check_shape(out, "out", {a.rows, a.width});
  check_contiguous(out, "out");
  a.out_type = float_type(out, "out");
  if (delta.has_value()) {
    check_shape(*delta, "delta", {a.rows, a.width});
    check_contiguous(*delta, "delta");
    a.delta_type = float_type(*delta, "delta");
    a.delta = device_data<const void>(*delta);
  }
  a.weight = device_vector(weight, "weight", a.width);
  a.bias = device_vector(bias, "bias", a.width);
  a.x = device_data<float>(x);
  a.out = device_data<void>(out);
  a.eps = float(eps);
  a.layer = layer;
  cuda::norm(a, current_stream(x));
}

void rms_norm(TensorView out, TensorView x, TensorView weight, double eps) { run(out, x, {}, weight, {}, eps, false); }

void layer_norm(TensorView out, TensorView x, Optional<TensorView> weight, Optional<TensorView> bias, double eps) {
  run(out, x, {}, weight, bias, eps, true);
}

// residual += delta, then as above.
void add_rms_norm(TensorView out, TensorView residual, TensorView delta, TensorView weight, double eps) {
  run(out, residual, delta, weight, {}, eps, false);
}

void add_layer_norm(TensorView out, TensorView residual, TensorView delta, Optional<TensorView> weight,
                    Optional<TensorView> bias, double eps) {
  run(out, residual, delta, weight, bias, eps, true);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(rms_norm, rms_norm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(layer_norm, layer_norm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(add_rms_norm, add_rms_norm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(add_layer_norm, add_layer_norm);

}  // namespace octavo::binding
