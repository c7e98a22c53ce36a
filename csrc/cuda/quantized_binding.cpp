// Ops.pack_quantized, Ops.unpack_quantized, and Ops.linear, linear_add_ and embedding on quantised weights, on CUDA.
#include <tvm/ffi/container/array.h>

#include "binding_cuda.h"
#include "quantized.h"
#include "quantized_plan.h"

namespace octavo::binding {
namespace {

using cuda::QuantizedArgs;
using cuda::QuantizedLayout;
using cuda::QuantizedPackArgs;

// Ops.Activations
constexpr int64_t kFloat = 0, kLlmInt8 = 2;

QuantizedLayout layout_of(int64_t n, int64_t k, int64_t bits, int64_t group_size, bool symmetric, bool gated) {
  if (bits != 4 && bits != 8) TVM_FFI_THROW(ValueError) << "a quantised weight has " << bits << " bits; allowed: 4, 8";
  if (group_size != 0 && group_size != 32 && group_size != 64 && group_size != 128) {
    TVM_FFI_THROW(ValueError) << "group_size is " << group_size << "; allowed: 32, 64, 128, or 0 for one group a row";
  }
  if (n < 1 || k < 1) {
    TVM_FFI_THROW(ValueError) << "a quantised weight is [" << n << ", " << k << "]; both must be positive";
  }
  if (gated && n % 2) TVM_FFI_THROW(ValueError) << "a gated weight has " << n << " rows; it must be even";
  return {int(bits), group_size, symmetric, gated, n, k};
}

void check_packed(const TensorView& packed, const QuantizedLayout& layout) {
  if (!is(packed, kDLUInt, 8)) {
    TVM_FFI_THROW(TypeError) << "packed weight is " << dtype_text(packed.dtype()) << ", not uint8";
  }
  check_shape(packed, "packed weight", {layout.tiles(), layout.tile_bytes()});
  check_contiguous(packed, "packed weight");
}

// ---- products --------------------------------------------------------------------------------------------------

// What a product with m rows takes: {units a slice of K, bytes of scratch, counters}. slice 0: by rule.
tvm::ffi::Array<int64_t> quantized_plan(int64_t m, int64_t n, int64_t k, int64_t bits, int64_t group_size,
                                        bool symmetric, int64_t activations, bool gated, int64_t slice) {
  const QuantizedLayout layout = layout_of(n, k, bits, group_size, symmetric, gated);
  if (slice == 0) slice = cuda::slice_units(layout);
  const auto scratch = cuda::quantized_scratch(layout, m, int(slice), activations != kFloat, activations == kLlmInt8);
  return {slice, scratch.bytes(), scratch.counters};
}

struct Product {
  QuantizedArgs args;
  bool int8;
};

// scratch: uint8, counters: int32 and zero, both at least as large as quantized_plan says.
Product prepare(const TensorView& out, const TensorView& x, const TensorView& weight, const Optional<TensorView>& bias,
                int64_t n, int64_t bits, int64_t group_size, bool symmetric, int64_t activations, double threshold,
                int64_t act, bool gated, bool accumulate, const TensorView& scratch, const TensorView& counters,
                int64_t slice) {
  Product p{};
  QuantizedArgs& a = p.args;
  a.x_stride = row_stride(x, "x");
  a.m = x.size(0);
  a.layout = layout_of(n, x.size(1), bits, group_size, symmetric, gated);
  check_packed(weight, a.layout);
  a.x_type = float_type(x, "x");
  if (activations < 0 || activations > 2) {
    TVM_FFI_THROW(ValueError) << "activations " << activations << " is not one of 0..2";
  }
  p.int8 = activations != kFloat;
  const bool outliers = activations == kLlmInt8;
  if (outliers && (bits != 8 || group_size != 0 || !symmetric)) {
    TVM_FFI_THROW(ValueError) << "LLM_INT8 takes 8 bits, group_size 0, symmetric; got " << bits << " bits, group_size "
                              << group_size << (symmetric ? ", symmetric" : ", asymmetric");
  }
  // 127 * 128 * k of LLM_INT8 must fit an int32.
  constexpr int64_t kMost = 132'000;
  if (outliers && a.layout.k > kMost) {
    TVM_FFI_THROW(ValueError) << "a row of " << a.layout.k << " elements; LLM_INT8 takes " << kMost << " at most";
  }
  a.x = device_data<const void>(x);
  const int64_t piece = a.x_type == DType::kFloat32 ? 4 : 8;
  a.x_vectors = a.layout.k % piece == 0 && (a.m < 2 || a.x_stride % piece == 0) &&
                reinterpret_cast<uintptr_t>(a.x) % 16 == 0;
  a.weight = device_data<const uint8_t>(weight);
  for (int64_t size = group_size; size > 32; size /= 2) ++a.group_shift;
  a.threshold = float(threshold);

  if (act < 0 || act > 4) TVM_FFI_THROW(ValueError) << "activation " << act << " is not one of 0..4";
  a.act = cuda::Activation(act);
  if (bias.has_value()) {
    check_float32(*bias, "bias");
    check_shape(*bias, "bias", {n});
    check_contiguous(*bias, "bias");
    a.bias = device_data<const float>(*bias);
  }
  a.out_stride = row_stride(out, "out");
  check_shape(out, "out", {a.m, gated ? n / 2 : n});
  a.out_type = float_type(out, "out");
  a.accumulate = accumulate;
  if (accumulate) check_float32(out, "residual");
  a.out = device_data<void>(out);

  if (slice < 8 || slice % 8) TVM_FFI_THROW(ValueError) << "slice is " << slice << " units; it must be a multiple of 8";
  a.slice_units = int(slice);
  a.slices = int(cuda::cuts(a.layout.units(), slice));
  const auto sizes = cuda::quantized_scratch(a.layout, a.m, a.slice_units, p.int8, outliers);
  check_int32(counters, "counters");
  check_contiguous(scratch, "scratch");
  if (scratch.numel() < sizes.bytes() || counters.numel() < sizes.counters) {
    TVM_FFI_THROW(ValueError) << "scratch of " << scratch.numel() << " bytes and " << counters.numel()
                              << " counters; this product takes " << sizes.bytes() << " and " << sizes.counters;
  }
  uint8_t* memory = device_data<uint8_t>(scratch);
  if (sizes.counters) a.counters = device_data<uint32_t>(counters);
  if (sizes.partials) a.partials = reinterpret_cast<float4*>(memory);
  if (p.int8) {
    a.codes = reinterpret_cast<int8_t*>(memory + sizes.partials);
    a.factors = reinterpret_cast<float2*>(memory + sizes.partials + sizes.codes);
    if (outliers) a.outliers = reinterpret_cast<uint32_t*>(memory + sizes.partials + sizes.codes + sizes.factors);
  }
  return p;
}

void run(const Product& p, cudaStream_t stream) {
  const QuantizedArgs& a = p.args;
  if (a.m == 0) return;
  if (p.int8) {
    cuda::quantize_activations(a, stream);
    return cuda::quantized_int8(a, stream);
  }
  switch (a.x_type) {
    case DType::kFloat32: return cuda::quantized_float32(a, stream);
    case DType::kBFloat16: return cuda::quantized_bf16(a, stream);
    case DType::kFloat16: return cuda::quantized_f16(a, stream);
  }
}

void quantized_linear(TensorView out, TensorView x, TensorView weight, Optional<TensorView> bias, int64_t n,
                      int64_t bits, int64_t group_size, bool symmetric, int64_t activations, double threshold,
                      int64_t act, bool gated, TensorView scratch, TensorView counters, int64_t slice) {
  run(prepare(out, x, weight, bias, n, bits, group_size, symmetric, activations, threshold, act, gated, false, scratch,
              counters, slice),
      current_stream(out));
}

void quantized_linear_add(TensorView residual, TensorView x, TensorView weight, Optional<TensorView> bias, int64_t n,
                          int64_t bits, int64_t group_size, bool symmetric, int64_t activations, double threshold,
                          TensorView scratch, TensorView counters, int64_t slice) {
  run(prepare(residual, x, weight, bias, n, bits, group_size, symmetric, activations, threshold, 0, false, true,
              scratch, counters, slice),
      current_stream(residual));
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
