// Ops.head_norm_ and Ops.rms_norm_add_ on CUDA.
#include "binding_cuda.h"
#include "head_norm.h"

namespace octavo::binding {
namespace {

void head_norm(TensorView x, TensorView weight, Optional<TensorView> bias, double eps, int64_t size, int64_t start,
               bool centred) {
  cuda::HeadNormArgs a{};
  a.type = float_type(x, "x");
  a.stride = row_stride(x, "x");
  a.rows = x.size(0);
  const int64_t width = weight.size(0);
  if (size < 1 || width % size || start < 0 || start + width > x.size(1)) {
    TVM_FFI_THROW(ValueError) << "columns " << start << " to " << start + width << " of " << x.size(1)
                              << " in groups of " << size << "; they must lie within x and divide evenly";
  }
  a.size = size;
  a.groups = width / size;
  a.weight = device_vector(weight, "weight", width);
  a.bias = device_vector(bias, "bias", width);
  a.eps = float(eps);
  a.centred = centred;
  a.x = device_data<char>(x) + start * (a.type == DType::kFloat32 ? 4 : 2);
  cuda::head_norm(a, current_stream(x));
}

void rms_norm_add(TensorView residual, TensorView x, TensorView weight, double eps) {
  check_float32(residual, "residual");
  check_float32(x, "x");
  check_shape(residual, "residual", {x.size(0), x.size(1)});
  check_contiguous(residual, "residual");
  cuda::HeadNormArgs a{};
  a.type = DType::kFloat32;
  a.stride = row_stride(x, "x");
  a.rows = x.size(0);
  a.groups = 1;
  a.size = x.size(1);
  a.weight = device_vector(weight, "weight", a.size);
  a.eps = float(eps);
  a.x = device_data<float>(x);
  a.add_to = device_data<float>(residual);
  cuda::head_norm(a, current_stream(x));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(head_norm, head_norm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(rms_norm_add, rms_norm_add);

}  // namespace octavo::binding
