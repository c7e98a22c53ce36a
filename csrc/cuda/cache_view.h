// One layer of the paged cache as CUDA's bindings read it: keys and values [P, Hkv, B, D] of bfloat16, float16 or
// float32; of int8 and float8_e4m3fn [P, Hkv, B * D + 2 * B], each block B * D codes and then B float16 scales.
#pragma once

#include "binding_cuda.h"

namespace octavo::binding {

inline CacheType cache_type(const TensorView& t, const char* name) {
  if (is(t, kDLInt, 8)) return CacheType::kInt8;
  if (is(t, kDLFloat8_e4m3fn, 8)) return CacheType::kFloat8;
  return CacheType(float_type(t, name));
}

// Reads the sizes into any kernel's arguments. head_dim: what the caller knows it to be.
template <class Args>
inline void read_cuda_cache(Args& a, const TensorView& keys, const TensorView& values, int64_t head_dim) {
  a.cache_type = cache_type(keys, "keys");
  if (cache_type(values, "values") != a.cache_type) {
    TVM_FFI_THROW(TypeError) << "keys are " << dtype_text(keys.dtype()) << ", values " << dtype_text(values.dtype());
  }
  const bool packed = a.cache_type == CacheType::kInt8 || a.cache_type == CacheType::kFloat8;
  if (packed) {
    check_shape(keys, "keys", {-1, -1, -1});
    check_shape(values, "values", {keys.size(0), keys.size(1), keys.size(2)});
  } else {
    check_shape(keys, "keys", {-1, -1, -1, head_dim});
    check_shape(values, "values", {keys.size(0), keys.size(1), keys.size(2), head_dim});
  }
  check_contiguous(keys, "keys");
  check_contiguous(values, "values");
  const int64_t page_size = packed ? keys.size(2) / (head_dim + 2) : keys.size(2);
  if (page_size < 1 || page_size % 16 || (packed && keys.size(2) != page_size * (head_dim + 2))) {
    TVM_FFI_THROW(ValueError) << "keys have shape " << shape_text(keys) << ", which no page of head size " << head_dim
                              << " and a multiple of 16 tokens has";
  }
  if (head_dim % 2 || head_dim < 2 || head_dim > 256) {
    TVM_FFI_THROW(ValueError) << "head size " << head_dim << "; allowed: an even number in 2..256";
  }
  a.num_kv_heads = int32_t(keys.size(1));
  a.page_size = int32_t(page_size);
  a.head_dim = int32_t(head_dim);
  a.keys = device_data<void>(keys);
  a.values = device_data<void>(values);
}

inline const int32_t* device_indices(const TensorView& t, const char* name, std::initializer_list<int64_t> shape) {
  check_int32(t, name);
  check_shape(t, name, shape);
  check_contiguous(t, name);
  return device_data<const int32_t>(t);
}

}  // namespace octavo::binding
