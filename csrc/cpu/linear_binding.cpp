// Ops.linear, Ops.linear_add_, Ops.pack_linear and Ops.unpack_linear.
#include "octavo/binding_linear.h"
#include "octavo/kernels_linear.h"

namespace octavo::binding {
namespace {

constexpr int64_t kPanel = 32;

// data is [ceil(n/32), ceil(k/p), 32, p].
DType check_packed(const TensorView& packed, int64_t n, int64_t k) {
  DType type = float_type(packed, "packed weight");
  int64_t p = type == DType::kBFloat16 ? 2 : 1;
  check_shape(packed, "packed weight", {(n + kPanel - 1) / kPanel, (k + p - 1) / p, kPanel, p});
  check_contiguous(packed, "packed weight");
  return type;
}

LinearArgs prepare(const TensorView& x, const TensorView& weight, int64_t n) {
  LinearArgs args{};
  args.x_stride = row_stride(x, "x");
  args.m = x.size(0);
  args.k = x.size(1);
  args.n = n;
  args.weight_type = check_packed(weight, n, args.k);
  bool wants_bf16 = args.weight_type == DType::kBFloat16;
  if ((float_type(x, "x") == DType::kBFloat16) != wants_bf16 || float_type(x, "x") == DType::kFloat16) {
    TVM_FFI_THROW(TypeError) << "x is " << dtype_text(x.dtype()) << "; a " << dtype_text(weight.dtype())
                             << " weight takes " << (wants_bf16 ? "bfloat16" : "float32");
  }
  args.x = data<const void>(x);
  args.weight = data<const void>(weight);
  return args;
}

void linear(TensorView out, TensorView x, TensorView weight, Optional<TensorView> bias, int64_t n, int64_t act,
            bool gated) {
  LinearArgs args = prepare(x, weight, n);
  args.y = linear_output(out, bias, args.m, n, act, gated, false);
  pick_linear_kernels().linear(args);
}

void linear_add(TensorView residual, TensorView x, TensorView weight, Optional<TensorView> bias, int64_t n) {
  LinearArgs args = prepare(x, weight, n);
  args.y = linear_output(residual, bias, args.m, n, 0, false, true);
  pick_linear_kernels().linear(args);
}

PackArgs prepare_pack(const TensorView& packed, const TensorView& plain, bool gated) {
  check_shape(plain, "weight", {-1, -1});
  check_contiguous(plain, "weight");
  PackArgs args{data<void>(packed), data<void>(plain), float_type(plain, "weight"), plain.size(0), plain.size(1), gated};
  check_same_type(packed, plain, "packed weight and weight");
  check_packed(packed, args.n, args.k);
  if (gated && args.n % 2) TVM_FFI_THROW(ValueError) << "a gated weight has " << args.n << " rows; it must be even";
  return args;
}

void pack_linear(TensorView packed, TensorView plain, bool gated) {
  pick_linear_kernels().pack(prepare_pack(packed, plain, gated));
}

void unpack_linear(TensorView plain, TensorView packed, bool gated) {
  pick_linear_kernels().unpack(prepare_pack(packed, plain, gated));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(linear, linear);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(linear_add, linear_add);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(pack_linear, pack_linear);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(unpack_linear, unpack_linear);

}  // namespace octavo::binding
