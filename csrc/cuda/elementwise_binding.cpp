// Ops.softcap_, clip_, scale_rows_ and gated_add_ on CUDA.
#include "binding_cuda.h"
#include "elementwise.h"

namespace octavo::binding {
namespace {

void check_positive(double value, const char* name) {
  if (!(value > 0)) TVM_FFI_THROW(ValueError) << name << " is " << value << "; it must be positive";
}

void softcap(TensorView x, double cap) {
  check_float32(x, "x");
  check_contiguous(x, "x");
  check_positive(cap, "cap");
  cuda::softcap(device_data<float>(x), x.numel(), float(cap), current_stream(x));
}

void clip(TensorView x, double limit) {
  const DType type = float_type(x, "x");
  check_positive(limit, "limit");
  const int64_t stride = row_stride(x, "x");
  cuda::clip(device_data<void>(x), type, stride, x.size(0), x.size(1), float(limit), current_stream(x));
}

// Positions lie on the device, so one outside the table can't be refused here; its row stays as it is.
void scale_rows(TensorView x, TensorView positions, TensorView table, int64_t columns) {
  const DType type = float_type(x, "x");
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
  const int32_t* at = device_data<const int32_t>(positions);
  const float* factors = device_data<const float>(table);
  cuda::scale_rows(device_data<void>(x), type, stride, rows, columns, at, factors, table.size(0), current_stream(x));
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
  const float *added = device_data<const float>(x), *gates = device_data<const float>(gate);
  cuda::gated_add(device_data<float>(residual), added, gates, residual.size(0), residual.size(1),
                  current_stream(residual));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(softcap, softcap);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(clip, clip);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(scale_rows, scale_rows);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(gated_add, gated_add);

}  // namespace octavo::binding
