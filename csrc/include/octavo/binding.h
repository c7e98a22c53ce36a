// What the binding files share: checks of tensors that came over TVM FFI, with errors that print the numbers.
// Only <family>_binding.cpp files include this; kernel files never see TVM FFI.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <initializer_list>
#include <string>

#include "octavo/dispatch.h"
#include "octavo/thread_pool.h"
#include "octavo/types.h"

namespace octavo::binding {

using tvm::ffi::Optional;
using tvm::ffi::TensorView;

inline std::string shape_text(const TensorView& t) {
  std::string text = "[";
  for (int i = 0; i < t.ndim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

inline std::string dtype_text(DLDataType d) {
  const char* kind = d.code == kDLFloat ? "float" : d.code == kDLBfloat ? "bfloat" : d.code == kDLInt ? "int" : "uint";
  return kind + std::to_string(int(d.bits));
}

inline bool is(const TensorView& t, DLDataTypeCode code, int bits) {
  return t.dtype().code == code && t.dtype().bits == bits && t.dtype().lanes == 1;
}

// The storage type of a floating tensor.
inline DType float_type(const TensorView& t, const char* name) {
  if (is(t, kDLFloat, 32)) return DType::kFloat32;
  if (is(t, kDLBfloat, 16)) return DType::kBFloat16;
  if (is(t, kDLFloat, 16)) return DType::kFloat16;
  TVM_FFI_THROW(TypeError) << name << " is " << dtype_text(t.dtype()) << "; allowed: float32, bfloat16, float16";
}

inline void check_float32(const TensorView& t, const char* name) {
  if (!is(t, kDLFloat, 32)) TVM_FFI_THROW(TypeError) << name << " is " << dtype_text(t.dtype()) << ", not float32";
}
inline void check_int32(const TensorView& t, const char* name) {
  if (!is(t, kDLInt, 32)) TVM_FFI_THROW(TypeError) << name << " is " << dtype_text(t.dtype()) << ", not int32";
}
inline void check_same_type(const TensorView& a, const TensorView& b, const char* names) {
  if (float_type(a, names) != float_type(b, names)) {
    TVM_FFI_THROW(TypeError) << names << " differ in type: " << dtype_text(a.dtype()) << " and " << dtype_text(b.dtype());
  }
}

// Sizes must match; -1 matches anything.
inline void check_shape(const TensorView& t, const char* name, std::initializer_list<int64_t> want) {
  bool same = t.ndim() == int(want.size());
  int i = 0;
  for (int64_t size : want) {
    if (!same) break;
    same = size < 0 || t.size(i) == size;
    ++i;
  }
  if (same) return;
  std::string text = "[";
  for (int64_t size : want) text += (text.size() > 1 ? ", " : "") + (size < 0 ? "*" : std::to_string(size));
  TVM_FFI_THROW(ValueError) << name << " has shape " << shape_text(t) << ", expected " << text << "]";
}

inline void check_contiguous(const TensorView& t, const char* name) {
  if (!t.IsContiguous()) TVM_FFI_THROW(ValueError) << name << " of shape " << shape_text(t) << " must be contiguous";
}

// A row of `width` float32 that may be missing, as biases and the weights of norms come; whether it is there.
inline bool check_vector(const Optional<TensorView>& t, const char* name, int64_t width) {
  if (!t.has_value()) return false;
  check_float32(*t, name);
  check_shape(*t, name, {width});
  check_contiguous(*t, name);
  return true;
}

// Reads one layer of the cache (KVLayout in ops/__init__.py) into any kernel's arguments; returns its number of pages.
template <class Args>
inline int64_t read_cache(Args& a, const TensorView& keys, const TensorView& values) {
  const bool int8 = is(keys, kDLInt, 8);
  if (int8 != is(values, kDLInt, 8)) {
    TVM_FFI_THROW(TypeError) << "keys are " << dtype_text(keys.dtype()) << ", values " << dtype_text(values.dtype());
  }
  if (int8) {
    a.cache_type = CacheType::kInt8;
  } else {
    a.cache_type = CacheType(float_type(keys, "keys"));
    check_same_type(keys, values, "keys and values");
  }
  check_shape(keys, "keys", {-1, -1, -1, -1, int8 ? 4 : a.cache_type == CacheType::kBFloat16 ? 2 : 1});
  const int64_t num_pages = keys.size(0), p = keys.size(4);
  a.num_kv_heads = keys.size(1);
  a.head_dim = (keys.size(2) - (int8 ? 2 : 0)) * p;
  a.page_size = keys.size(3);
  check_shape(values, "values", {num_pages, a.num_kv_heads, a.page_size / p, a.head_dim, p});
  check_contiguous(keys, "keys");
  check_contiguous(values, "values");
  return num_pages;
}

// A matrix whose rows are contiguous but may lie apart; returns the row stride in elements.
inline int64_t row_stride(const TensorView& t, const char* name) {
  if (t.ndim() != 2) TVM_FFI_THROW(ValueError) << name << " has shape " << shape_text(t) << ", expected two dimensions";
  if (t.size(1) > 1 && t.stride(1) != 1) {
    TVM_FFI_THROW(ValueError) << name << " of shape " << shape_text(t) << " has column stride " << t.stride(1) << ", not 1";
  }
  return t.size(0) > 1 ? t.stride(0) : t.size(1);
}

template <class T>
inline T* data(const TensorView& t) {
  return reinterpret_cast<T*>(static_cast<char*>(t.data_ptr()) + t.byte_offset());
}

inline const float* vector_of(const Optional<TensorView>& t, const char* name, int64_t width) {
  return check_vector(t, name, width) ? data<const float>(*t) : nullptr;
}

// The ids, each a row of a table of `rows`; `out` takes one row of `width` an id.
inline const int32_t* check_ids(const TensorView& out, const TensorView& ids, int64_t rows, int64_t width) {
  check_shape(ids, "ids", {-1});
  check_int32(ids, "ids");
  check_contiguous(ids, "ids");
  check_float32(out, "out");
  check_shape(out, "out", {ids.size(0), width});
  check_contiguous(out, "out");
  const int32_t* id = data<const int32_t>(ids);
  for (int64_t t = 0; t < ids.size(0); ++t) {
    if (id[t] < 0 || id[t] >= rows) {
      TVM_FFI_THROW(ValueError) << "ids[" << t << "] is " << id[t] << "; the table has " << rows << " rows";
    }
  }
  return id;
}

}  // namespace octavo::binding
