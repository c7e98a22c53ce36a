// Ops.pack_quantized, Ops.unpack_quantized, and Ops.linear, linear_add_ and embedding on quantised weights, on CUDA.
#include <tvm/ffi/container/array.h>

#include "quantized_binding.h"

namespace octavo::binding {
namespace {

using cuda::QuantizedPackArgs;

// ---- products --------------------------------------------------------------------------------------------------

// What a product with m rows takes: {units a slice of K, bytes of scratch, counters}. slice 0: by rule.
tvm::ffi::Array<int64_t> quantized_plan(int64_t m, int64_t n, int64_t k, int64_t bits, int64_t group_size,
                                        bool symmetric, int64_t activations, bool gated, int64_t slice) {
  const QuantizedLayout layout = layout_of(n, k, bits, group_size, symmetric, gated);
  if (slice == 0) slice = cuda::slice_units(layout);
  const auto scratch = cuda::quantized_scratch(layout, m, int(slice), activations != kFloat, activations == kLlmInt8);
  return {slice, scratch.bytes(), scratch.counters};
}

// scratch: uint8, counters: int32 and zero, both at least as large as quantized_plan says.
Product prepare(const TensorView& out, const TensorView& x, const TensorView& weight, const Optional<TensorView>& bias,
                int64_t n, const QuantizedForm& form, int64_t act, bool gated, bool accumulate,
                const TensorView& scratch, const TensorView& counters, int64_t slice) {
  Product p = begin_product(x, layout_of(n, x.size(1), form.bits, form.group_size, form.symmetric, gated), form);
  QuantizedArgs& a = p.args;
  check_packed(weight, a.layout);
  a.weight = device_data<const uint8_t>(weight);

  if (act < 0 || act > 4) TVM_FFI_THROW(ValueError) << "activation " << act << " is not one of 0..4";
  a.act = cuda::Activation(act);
  a.bias = device_vector(bias, "bias", n);
  a.out_stride = row_stride(out, "out");
  check_shape(out, "out", {a.m, gated ? n / 2 : n});
  a.out_type = float_type(out, "out");
  a.accumulate = accumulate;
  if (accumulate) check_float32(out, "residual");
  a.out = device_data<void>(out);

  if (slice < 8 || slice % 8) TVM_FFI_THROW(ValueError) << "slice is " << slice << " units; it must be a multiple of 8";
  a.slice_units = int(slice);
  check_int32(counters, "counters");
  check_contiguous(scratch, "scratch");
  take_scratch(p, device_data<uint8_t>(scratch), scratch.numel(), device_data<uint32_t>(counters), counters.numel());
  return p;
}

void quantized_linear(TensorView out, TensorView x, TensorView weight, Optional<TensorView> bias, int64_t n,
                      int64_t bits, int64_t group_size, bool symmetric, int64_t activations, double threshold,
                      int64_t act, bool gated, TensorView scratch, TensorView counters, int64_t slice) {
  const QuantizedForm form{bits, group_size, symmetric, activations, threshold};
  run(prepare(out, x, weight, bias, n, form, act, gated, false, scratch, counters, slice), current_stream(out));
}

void quantized_linear_add(TensorView residual, TensorView x, TensorView weight, Optional<TensorView> bias, int64_t n,
                          int64_t bits, int64_t group_size, bool symmetric, int64_t activations, double threshold,
                          TensorView scratch, TensorView counters, int64_t slice) {
  const QuantizedForm form{bits, group_size, symmetric, activations, threshold};
  run(prepare(residual, x, weight, bias, n, form, 0, false, true, scratch, counters, slice), current_stream(residual));
}

// ---- packing ---------------------------------------------------------------------------------------------------

tvm::ffi::Array<int64_t> quantized_packed_shape(int64_t n, int64_t k, int64_t bits, int64_t group_size, bool symmetric,
                                                bool gated) {
  const QuantizedLayout layout = layout_of(n, k, bits, group_size, symmetric, gated);
  return {layout.tiles(), layout.tile_bytes()};
}

// scales or offsets: [n, groups] float16, or [n, 1] float32 where the group is the row.
void* check_factors(const TensorView& t, const char* name, const QuantizedLayout& layout) {
  const bool half = layout.group_size != 0;
  if (!is(t, kDLFloat, half ? 16 : 32)) {
    TVM_FFI_THROW(TypeError) << name << " is " << dtype_text(t.dtype()) << "; group_size " << layout.group_size
                             << " takes " << (half ? "float16" : "float32");
  }
  check_shape(t, name, {layout.n, layout.groups()});
  check_contiguous(t, name);
  return device_data<void>(t);
}

QuantizedPackArgs prepare_pack(const TensorView& packed, const TensorView& codes, const TensorView& scales,
                               const Optional<TensorView>& offsets, int64_t bits, int64_t group_size, bool gated) {
  check_shape(codes, "codes", {-1, -1});
  check_contiguous(codes, "codes");
  if (!is(codes, kDLUInt, 8)) TVM_FFI_THROW(TypeError) << "codes are " << dtype_text(codes.dtype()) << ", not uint8";
  QuantizedPackArgs args{};
  args.layout = layout_of(codes.size(0), codes.size(1), bits, group_size, !offsets.has_value(), gated);
  check_packed(packed, args.layout);
  args.packed = device_data<uint8_t>(packed);
  args.codes = device_data<uint8_t>(codes);
  args.scales = check_factors(scales, "scales", args.layout);
  args.offsets = offsets.has_value() ? check_factors(*offsets, "offsets", args.layout) : nullptr;
  return args;
}

void pack_quantized(TensorView packed, TensorView codes, TensorView scales, Optional<TensorView> offsets, int64_t bits,
                    int64_t group_size, bool gated) {
  cuda::pack_quantized(prepare_pack(packed, codes, scales, offsets, bits, group_size, gated), current_stream(packed));
}

void unpack_quantized(TensorView packed, TensorView codes, TensorView scales, Optional<TensorView> offsets,
                      int64_t bits, int64_t group_size, bool gated) {
  cuda::unpack_quantized(prepare_pack(packed, codes, scales, offsets, bits, group_size, gated), current_stream(packed));
}

void embedding_quantized(TensorView out, TensorView ids, TensorView packed, int64_t rows, int64_t width, int64_t bits,
                         int64_t group_size, bool symmetric, double scale) {
  const QuantizedLayout layout = layout_of(rows, width, bits, group_size, symmetric, false);
  check_packed(packed, layout);
  check_shape(ids, "ids", {-1});
  check_int32(ids, "ids");
  check_contiguous(ids, "ids");
  check_float32(out, "out");
  check_shape(out, "out", {ids.size(0), width});
  check_contiguous(out, "out");
  cuda::embedding_quantized(device_data<float>(out), device_data<const int32_t>(ids), ids.size(0),
                            device_data<const uint8_t>(packed), layout, float(scale), current_stream(out));
}

void dequantize(TensorView out, TensorView packed, int64_t bits, int64_t group_size, bool symmetric, bool gated) {
  check_shape(out, "out", {-1, -1});
  check_contiguous(out, "out");
  const DType type = float_type(out, "out");
  if (type == DType::kFloat32) TVM_FFI_THROW(TypeError) << "out is float32; allowed: bfloat16, float16";
  const QuantizedLayout layout = layout_of(out.size(0), out.size(1), bits, group_size, symmetric, gated);
  check_packed(packed, layout);
  cuda::dequantize(device_data<void>(out), type, device_data<const uint8_t>(packed), layout, current_stream(out));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(quantized_plan, quantized_plan);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(quantized_linear, quantized_linear);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(quantized_linear_add, quantized_linear_add);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(quantized_packed_shape, quantized_packed_shape);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(pack_quantized, pack_quantized);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(unpack_quantized, unpack_quantized);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(embedding_quantized, embedding_quantized);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(dequantize, dequantize);

}  // namespace octavo::binding
