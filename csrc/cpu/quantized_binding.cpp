// Ops.pack_quantized, Ops.unpack_quantized, and Ops.linear, linear_add_ and embedding on quantised weights.
#include "octavo/binding_quantized.h"

namespace octavo::binding {
namespace {

void run(const QuantizedArgs& args, int64_t activations) {
  if (activations == int64_t(QuantizedActivations::kFloat)) return pick_quantized_float_kernels().linear(args);
  pick_quantized_int8_kernels().linear(args);
}

void quantized_linear(TensorView out, TensorView x, TensorView weight, Optional<TensorView> bias, int64_t n,
                      int64_t bits, int64_t group_size, bool symmetric, int64_t activations, double threshold,
                      int64_t act, bool gated) {
  QuantizedArgs args = quantized_args(x, weight, n, bits, group_size, symmetric, activations, threshold);
  args.y = linear_output(out, bias, args.m, n, act, gated, false);
  run(args, activations);
}

void quantized_linear_add(TensorView residual, TensorView x, TensorView weight, Optional<TensorView> bias, int64_t n,
                          int64_t bits, int64_t group_size, bool symmetric, int64_t activations, double threshold) {
  QuantizedArgs args = quantized_args(x, weight, n, bits, group_size, symmetric, activations, threshold);
  args.y = linear_output(residual, bias, args.m, n, 0, false, true);
  run(args, activations);
}

// scales or offsets: [n, groups] float16, or [n, 1] float32 where the group is the row.
void* check_factors(const TensorView& t, const char* name, const QuantizedLayout& layout) {
  bool half = layout.group_size != 0;
  if (!is(t, kDLFloat, half ? 16 : 32)) {
    TVM_FFI_THROW(TypeError) << name << " is " << dtype_text(t.dtype()) << "; group_size " << layout.group_size
                             << " takes " << (half ? "float16" : "float32");
  }
  check_shape(t, name, {layout.n, layout.groups()});
  check_contiguous(t, name);
  return data<void>(t);
}

QuantizedPackArgs prepare_pack(const TensorView& packed, const TensorView& codes, const TensorView& scales,
                               const Optional<TensorView>& offsets, int64_t bits, int64_t group_size, bool gated) {
  check_shape(codes, "codes", {-1, -1});
  check_contiguous(codes, "codes");
  if (!is(codes, kDLUInt, 8)) TVM_FFI_THROW(TypeError) << "codes are " << dtype_text(codes.dtype()) << ", not uint8";
  QuantizedPackArgs args{};
  args.layout = quantized_layout(packed, codes.size(0), codes.size(1), bits, group_size, !offsets.has_value());
  if (gated && args.layout.n % 2) {
    TVM_FFI_THROW(ValueError) << "a gated weight has " << args.layout.n << " rows; it must be even";
  }
  args.packed = data<uint8_t>(packed);
  args.gated = gated;
  args.codes = data<uint8_t>(codes);
  args.scales = check_factors(scales, "scales", args.layout);
  args.offsets = offsets.has_value() ? check_factors(*offsets, "offsets", args.layout) : nullptr;
  return args;
}

void pack_quantized(TensorView packed, TensorView codes, TensorView scales, Optional<TensorView> offsets, int64_t bits,
                    int64_t group_size, bool gated) {
  pick_quantized_pack_kernels().pack(prepare_pack(packed, codes, scales, offsets, bits, group_size, gated));
}

void unpack_quantized(TensorView packed, TensorView codes, TensorView scales, Optional<TensorView> offsets,
                      int64_t bits, int64_t group_size, bool gated) {
  pick_quantized_pack_kernels().unpack(prepare_pack(packed, codes, scales, offsets, bits, group_size, gated));
}

// Bytes of a panel, which the caller allocates.
int64_t quantized_panel_bytes(int64_t n, int64_t k, int64_t bits, int64_t group_size, bool symmetric) {
  return QuantizedLayout{int(bits), group_size, symmetric, n, k}.panel_bytes();
}

void embedding_quantized(TensorView out, TensorView ids, TensorView packed, int64_t rows, int64_t width, int64_t bits,
                         int64_t group_size, bool symmetric, double scale) {
  QuantizedLayout layout = quantized_layout(packed, rows, width, bits, group_size, symmetric);
  const int32_t* id = check_ids(out, ids, rows, width);
  pick_quantized_pack_kernels().embedding(data<float>(out), id, ids.size(0), data<const uint8_t>(packed), layout,
                                          float(scale));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(quantized_linear, quantized_linear);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(quantized_linear_add, quantized_linear_add);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(pack_quantized, pack_quantized);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(unpack_quantized, unpack_quantized);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(quantized_panel_bytes, quantized_panel_bytes);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(embedding_quantized, embedding_quantized);

}  // namespace octavo::binding
