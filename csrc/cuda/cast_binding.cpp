// Ops.cast on CUDA.
#include "binding_cuda.h"
#include "cast.h"

namespace octavo::binding {
namespace {

void cast(TensorView out, TensorView x) {
  check_float32(x, "x");
  const int64_t stride = row_stride(x, "x");
  check_shape(out, "out", {x.size(0), x.size(1)});
  check_contiguous(out, "out");
  const DType type = float_type(out, "out");
  if (type == DType::kFloat32) TVM_FFI_THROW(TypeError) << "out is float32; allowed: bfloat16, float16";
  cuda::cast(device_data<void>(out), type, device_data<const float>(x), stride, x.size(0), x.size(1), current_stream(x));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(cast, cast);

}  // namespace octavo::binding
