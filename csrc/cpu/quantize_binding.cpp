// Ops.quantize.
#include "octavo/binding.h"
#include "octavo/kernels_quantize.h"

namespace octavo::binding {
namespace {

void check_codes(const TensorView& codes, int64_t n, int64_t k) {
  if (!is(codes, kDLUInt, 8)) TVM_FFI_THROW(TypeError) << "codes is " << dtype_text(codes.dtype()) << ", not uint8";
  check_shape(codes, "codes", {n, k});
  check_contiguous(codes, "codes");
}

// Rows may be a slice of a larger stack's: all tensors are contiguous.
void quantize(TensorView codes, TensorView scales, Optional<TensorView> offsets, TensorView weight,
              int64_t group_size) {
  check_shape(weight, "weight", {-1, -1});
  check_contiguous(weight, "weight");
  QuantizeArgs args{data<uint8_t>(codes), data<void>(scales), nullptr, data<const void>(weight),
                    float_type(weight, "weight"), weight.size(0), weight.size(1)};
  check_codes(codes, args.n, args.k);
  check_contiguous(scales, "scales");
  if (group_size == 0) {
    check_float32(scales, "scales");
    check_shape(scales, "scales", {args.n, 1});
    if (offsets.has_value()) TVM_FFI_THROW(ValueError) << "8 bits are symmetric: no offsets";
    return pick_quantize_kernels().rows(args);
  }
  if (group_size != 32 && group_size != 64 && group_size != 128) {
    TVM_FFI_THROW(ValueError) << "group_size is " << group_size << "; allowed: 32, 64, 128, or 0 for the row";
  }
  int64_t count = (args.k + group_size - 1) / group_size;
  if (!is(scales, kDLFloat, 16)) TVM_FFI_THROW(TypeError) << "scales is " << dtype_text(scales.dtype()) << ", not float16";
  check_shape(scales, "scales", {args.n, count});
  if (offsets.has_value()) {
    check_same_type(scales, *offsets, "scales and offsets");
    check_shape(*offsets, "offsets", {args.n, count});
    check_contiguous(*offsets, "offsets");
    args.offsets = data<void>(*offsets);
  }
  pick_quantize_kernels().groups(args, group_size);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(quantize, quantize);

}  // namespace octavo::binding
