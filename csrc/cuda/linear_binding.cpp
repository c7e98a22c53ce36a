// Products of float weights whose rows do not know of each other, on CUDA.
#include "binding_cuda.h"
#include "linear.h"

namespace octavo::binding {
namespace {

// out = act(x @ weight.T + bias), gated act(gate) * up, or with `add` out (float32) += x @ weight.T + bias.
// `wide`: the tile for many rows of x, however few there are; for tests, as the bits are the same.
void linear(TensorView out, TensorView x, TensorView weight, Optional<TensorView> bias, int64_t act, bool gated, bool add,
            bool wide) {
  cuda::LinearArgs a{};
  a.x_stride = row_stride(x, "x");
  a.out_stride = row_stride(out, "out");
  a.m = x.size(0);
  a.k = x.size(1);
  check_shape(weight, "weight", {-1, a.k});
  check_contiguous(weight, "weight");
  a.n = weight.size(0);
  if (gated && a.n % 2) TVM_FFI_THROW(ValueError) << "a gated weight has " << a.n << " rows; it must be even";
  if (gated && add) TVM_FFI_THROW(ValueError) << "a gated product is not added to a residual";
  if (a.n > 65535 * 8) TVM_FFI_THROW(ValueError) << "a weight of " << a.n << " rows; at most " << 65535 * 8 << " on CUDA";
  check_shape(out, "out", {a.m, gated ? a.n / 2 : a.n});
  check_same_type(x, weight, "x and weight");
  a.type = float_type(weight, "weight");
  a.out_type = float_type(out, "out");
  if (add) check_float32(out, "out");
  a.bias = device_vector(bias, "bias", a.n);
  if (act < 0 || act > 4) TVM_FFI_THROW(ValueError) << "activation " << act << "; allowed: 0 to 4";
  a.act = cuda::Activation(act);
  a.gated = gated;
  a.up_row = a.n / 2;
  a.add = add;
  a.wide = wide;
  a.x = device_data<const void>(x);
  a.weight = device_data<const void>(weight);
  a.out = device_data<void>(out);
  cuda::linear(a, current_stream(out));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(linear, linear);

}  // namespace octavo::binding
