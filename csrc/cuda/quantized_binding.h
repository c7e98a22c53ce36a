// What the bindings of products on packed weights share: a weight's form read and checked, and its product started.
#pragma once

#include "binding_cuda.h"
#include "quantized.h"
#include "quantized_plan.h"

namespace octavo::binding {

using cuda::QuantizedArgs;
using cuda::QuantizedLayout;

// Ops.Activations
constexpr int64_t kFloat = 0, kLlmInt8 = 2;

inline QuantizedLayout layout_of(int64_t n, int64_t k, int64_t bits, int64_t group_size, bool symmetric, bool gated) {
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

// Of a stack of `stack` weights of that layout.
inline void check_packed(const TensorView& packed, const QuantizedLayout& layout, int64_t stack = 1) {
  if (!is(packed, kDLUInt, 8)) {
    TVM_FFI_THROW(TypeError) << "packed weight is " << dtype_text(packed.dtype()) << ", not uint8";
  }
  check_shape(packed, "packed weight", {stack * layout.tiles(), layout.tile_bytes()});
  check_contiguous(packed, "packed weight");
}

struct QuantizedForm {
  int64_t bits, group_size;
  bool symmetric;
  int64_t activations;
  double threshold;
};

struct Product {
  QuantizedArgs args;
  bool int8, outliers;
};

// All that x and the weight's form say.
inline Product begin_product(const TensorView& x, const QuantizedLayout& layout, const QuantizedForm& form) {
  Product p{};
  QuantizedArgs& a = p.args;
  a.x_stride = row_stride(x, "x");
  a.m = x.size(0);
  a.layout = layout;
  a.x_type = float_type(x, "x");
  if (form.activations < 0 || form.activations > 2) {
    TVM_FFI_THROW(ValueError) << "activations " << form.activations << " is not one of 0..2";
  }
  p.int8 = form.activations != kFloat;
  p.outliers = form.activations == kLlmInt8;
  if (p.outliers && (form.bits != 8 || form.group_size != 0 || !form.symmetric)) {
    TVM_FFI_THROW(ValueError) << "LLM_INT8 takes 8 bits, group_size 0, symmetric; got " << form.bits
                              << " bits, group_size " << form.group_size
                              << (form.symmetric ? ", symmetric" : ", asymmetric");
  }
  // 127 * 128 * k of LLM_INT8 must fit an int32.
  constexpr int64_t kMost = 132'000;
  if (p.outliers && a.layout.k > kMost) {
    TVM_FFI_THROW(ValueError) << "a row of " << a.layout.k << " elements; LLM_INT8 takes " << kMost << " at most";
  }
  const int64_t piece = a.x_type == DType::kFloat32 ? 4 : 8;
  a.x = device_data<const void>(x);
  a.x_vectors = a.layout.k % piece == 0 && (a.m < 2 || a.x_stride % piece == 0) &&
                reinterpret_cast<uintptr_t>(a.x) % 16 == 0;
  for (int64_t size = form.group_size; size > 32; size /= 2) ++a.group_shift;
  a.threshold = float(form.threshold);
  return p;
}

// Lays out the scratch of a product whose slice_units are known.
inline void take_scratch(Product& p, uint8_t* memory, int64_t bytes, uint32_t* counters, int64_t count) {
  QuantizedArgs& a = p.args;
  a.slices = int(cuda::cuts(a.layout.units(), a.slice_units));
  const auto sizes = cuda::quantized_scratch(a.layout, a.m, a.slice_units, p.int8, p.outliers);
  if (bytes < sizes.bytes() || count < sizes.counters) {
    TVM_FFI_THROW(ValueError) << "scratch of " << bytes << " bytes and " << count << " counters; this product takes "
                              << sizes.bytes() << " and " << sizes.counters;
  }
  if (sizes.counters) a.counters = counters;
  if (sizes.partials) a.partials = reinterpret_cast<float4*>(memory);
  if (p.int8) {
    a.codes = reinterpret_cast<int8_t*>(memory + sizes.partials);
    a.factors = reinterpret_cast<float2*>(memory + sizes.partials + sizes.codes);
    if (p.outliers) a.outliers = reinterpret_cast<uint32_t*>(memory + sizes.partials + sizes.codes + sizes.factors);
  }
}

inline void run(const Product& p, cudaStream_t stream) {
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

}  // namespace octavo::binding
