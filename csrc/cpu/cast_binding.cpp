// Ops.cast.
#include "octavo/binding.h"
#include "octavo/kernels_cast.h"

namespace octavo::binding {
namespace {

void cast(TensorView out, TensorView x) {
  check_float32(x, "x");
  const int64_t stride = row_stride(x, "x");
  check_shape(out, "out", {x.size(0), x.size(1)});
  check_contiguous(out, "out");
  if (float_type(out, "out") != DType::kBFloat16) {
    TVM_FFI_THROW(TypeError) << "out is " << dtype_text(out.dtype()) << "; allowed: bfloat16";
  }
  pick_cast_kernels().to_bf16(data<void>(out), data<const float>(x), stride, x.size(0), x.size(1));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(cast, cast);

}  // namespace octavo::binding
