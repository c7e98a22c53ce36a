// Ops.rms_norm, layer_norm, rms_norm_add_ and head_norm_.
#include "octavo/binding.h"
#include "octavo/kernels_norm.h"

namespace octavo::binding {
namespace {

NormArgs prepare(const TensorView& out, const TensorView& x, double eps) {
  NormArgs a{};
  check_float32(x, "x");
  a.x_stride = row_stride(x, "x");
  a.rows = x.size(0);
  a.width = x.size(1);
  check_shape(out, "out", {a.rows, a.width});
  check_contiguous(out, "out");
  const DType type = float_type(out, "out");
  if (type == DType::kFloat16) TVM_FFI_THROW(TypeError) << "out is float16; allowed: float32, bfloat16";
  a.out_bf16 = type == DType::kBFloat16;
  a.x = data<const float>(x);
  a.out = data<void>(out);
  a.eps = float(eps);
  return a;
}

void rms_norm(TensorView out, TensorView x, TensorView weight, double eps) {
  NormArgs a = prepare(out, x, eps);
  a.weight = vector_of(weight, "weight", a.width);
  pick_norm_kernels().rms_norm(a);
}

void layer_norm(TensorView out, TensorView x, Optional<TensorView> weight, Optional<TensorView> bias, double eps) {
  NormArgs a = prepare(out, x, eps);
  a.weight = vector_of(weight, "weight", a.width);
  a.bias = vector_of(bias, "bias", a.width);
  pick_norm_kernels().layer_norm(a);
}

void rms_norm_add(TensorView residual, TensorView x, TensorView weight, double eps) {
  NormArgs a = prepare(residual, x, eps);
  check_float32(residual, "residual");
  a.weight = vector_of(weight, "weight", a.width);
  pick_norm_kernels().rms_norm_add(a);
}

void head_norm(TensorView x, TensorView weight, Optional<TensorView> bias, double eps, int64_t size, int64_t start,
               bool centred) {
  HeadNormArgs a{};
  const DType type = float_type(x, "x");
  if (type == DType::kFloat16) TVM_FFI_THROW(TypeError) << "x is float16; allowed: float32, bfloat16";
  a.bf16 = type == DType::kBFloat16;
  a.stride = row_stride(x, "x");
  a.rows = x.size(0);
  const int64_t width = weight.size(0);
  if (size < 1 || width % size || start < 0 || start + width > x.size(1)) {
    TVM_FFI_THROW(ValueError) << "columns " << start << " to " << start + width << " of " << x.size(1)
                              << " in groups of " << size << "; they must lie within x and divide evenly";
  }
  a.size = size;
  a.groups = width / size;
  a.weight = vector_of(weight, "weight", width);
  a.bias = vector_of(bias, "bias", width);
  a.eps = float(eps);
  a.centred = centred;
  a.x = data<char>(x) + start * (a.bf16 ? 2 : 4);
  pick_norm_kernels().head_norm(a);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(rms_norm_add, rms_norm_add);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(head_norm, head_norm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(rms_norm, rms_norm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(layer_norm, layer_norm);

}  // namespace octavo::binding
