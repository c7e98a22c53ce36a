// What every binding that takes a quantised weight shares: the checks of its data and of the rows it multiplies.
#pragma once

#include "octavo/binding_linear.h"
#include "octavo/kernels_quantized.h"

namespace octavo::binding {

// Ops.Activations
enum class QuantizedActivations : int64_t { kFloat = 0, kInt8 = 1, kLlmInt8 = 2 };

// data is [panels, bytes of a panel] uint8.
inline QuantizedLayout quantized_layout(const TensorView& data, int64_t n, int64_t k, int64_t bits, int64_t group_size,
                                        bool symmetric) {
  if (bits != 4 && bits != 8) TVM_FFI_THROW(ValueError) << "a quantised weight has " << bits << " bits; allowed: 4, 8";
  if (group_size != 0 && group_size != 32 && group_size != 64 && group_size != 128) {
    TVM_FFI_THROW(ValueError) << "group_size is " << group_size << "; allowed: 32, 64, 128, or 0 for one group a row";
  }
  if (n < 1 || k < 1) {
    TVM_FFI_THROW(ValueError) << "a quantised weight is [" << n << ", " << k << "]; both must be positive";
  }
  QuantizedLayout layout{int(bits), group_size, symmetric, n, k};
  if (!is(data, kDLUInt, 8)) {
    TVM_FFI_THROW(TypeError) << "packed weight is " << dtype_text(data.dtype()) << ", not uint8";
  }
  check_shape(data, "packed weight", {layout.panels(), layout.panel_bytes()});
  check_contiguous(data, "packed weight");
  return layout;
}

inline QuantizedArgs quantized_args(const TensorView& x, const TensorView& packed, int64_t n, int64_t bits,
                                    int64_t group_size, bool symmetric, int64_t activations, double threshold) {
  QuantizedArgs args{};
  args.x_stride = row_stride(x, "x");
  args.m = x.size(0);
  args.layout = quantized_layout(packed, n, x.size(1), bits, group_size, symmetric);
  DType x_type = float_type(x, "x");
  if (x_type == DType::kFloat16) {
    TVM_FFI_THROW(TypeError) << "x is float16; a quantised weight takes bfloat16 or float32";
  }
  if (activations < 0 || activations > 2) {
    TVM_FFI_THROW(ValueError) << "activations " << activations << " is not one of 0..2";
  }
  args.outliers = activations == int64_t(QuantizedActivations::kLlmInt8);
  if (args.outliers && (bits != 8 || group_size != 0 || !symmetric)) {
    TVM_FFI_THROW(ValueError) << "LLM_INT8 takes 8 bits, group_size 0, symmetric; got " << bits << " bits, group_size "
                              << group_size << (symmetric ? ", symmetric" : ", asymmetric");
  }
  // 255 * 127 * k must fit an int32.
  constexpr int64_t kMost = 66'000;
  if (activations != 0 && args.layout.group() > kMost) {
    TVM_FFI_THROW(ValueError) << "a group of " << args.layout.group() << " elements; int8 activations take " << kMost
                              << " at most: set group_size";
  }
  args.x_bf16 = x_type == DType::kBFloat16;
  args.threshold = float(threshold);
  args.x = data<const void>(x);
  args.weight = data<const uint8_t>(packed);
  return args;
}

}  // namespace octavo::binding
