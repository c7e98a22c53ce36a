// Ops.softcap_, clip_, scale_rows_ and gated_add_.
#include "octavo/binding.h"
#include "octavo/kernels_elementwise.h"

namespace octavo::binding {
namespace {

void check_positive(double value, const char* name) {
  if (!(value > 0)) TVM_FFI_THROW(ValueError) << name << " is " << value << "; it must be positive";
}

void softcap(TensorView x, double cap) {
  check_float32(x, "x");
  check_contiguous(x, "x");
  check_positive(cap, "cap");
  pick_elementwise_kernels().softcap(data<float>(x), x.numel(), float(cap));
}

void clip(TensorView x, double limit) {
  const DType type = float_type(x, "x");
  if (type == DType::kFloat16) TVM_FFI_THROW(TypeError) << "x is float16; allowed: float32, bfloat16";
  check_positive(limit, "limit");
  const int64_t stride = row_stride(x, "x");
  pick_elementwise_kernels().clip(data<void>(x), type == DType::kBFloat16, stride, x.size(0), x.size(1), float(limit));
}

void scale_rows(TensorView x, TensorView positions, TensorView table, int64_t columns) {
  const DType type = float_type(x, "x");
  if (type == DType::kFloat16) TVM_FFI_THROW(TypeError) << "x is float16; allowed: float32, bfloat16";
  const int64_t stride = row_stride(x, "x"), rows = x.size(0);
  if (columns < 0 || columns > x.size(1)) {
    TVM_FFI_THROW(ValueError) << columns << " columns of x, which has " << x.size(1);
  }
  check_shape(positions, "positions", {rows});
  check_int32(positions, "positions");
  check_contiguous(positions, "positions");
  check_float32(table, "table");
  check_shape(table, "table", {-1});
  check_contiguous(table, "table");
  const int32_t* at = data<const int32_t>(positions);
  for (int64_t row = 0; row < rows; ++row) {
    if (at[row] < 0 || at[row] >= table.size(0)) {
      TVM_FFI_THROW(ValueError) << "positions[" << row << "] is " << at[row] << "; the table has " << table.size(0);
    }
  }
  pick_elementwise_kernels().scale_rows(data<void>(x), type == DType::kBFloat16, stride, rows, columns, at,
                                        data<const float>(table));
}

void gated_add(TensorView residual, TensorView x, TensorView gate) {
  check_float32(residual, "residual");
  check_float32(x, "x");
  check_float32(gate, "gate");
  check_shape(residual, "residual", {-1, -1});
  check_shape(x, "x", {residual.size(0), residual.size(1)});
  check_shape(gate, "gate", {residual.size(0), 1});
  check_contiguous(residual, "residual");
  check_contiguous(x, "x");
  check_contiguous(gate, "gate");
  pick_elementwise_kernels().gated_add(data<float>(residual), data<const float>(x), data<const float>(gate),
                                       residual.size(0), residual.size(1));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(softcap, softcap);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(clip, clip);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(scale_rows, scale_rows);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(gated_add, gated_add);

}  // namespace octavo::binding
