// What the CUDA bindings share, on top of octavo/binding.h. Under OCTAVO_SIMT tensors are on the CPU and stand for
// device memory.
#pragma once

#include <cuda_runtime.h>
#include <tvm/ffi/extra/c_env_api.h>

#include "octavo/binding.h"

#ifdef OCTAVO_SIMT
namespace simt {
void device_memory(const void* p, size_t bytes, bool permanent);
}
#endif

namespace octavo::binding {

#ifdef OCTAVO_SIMT
constexpr DLDeviceType kDevice = kDLCPU;
#else
constexpr DLDeviceType kDevice = kDLCUDA;
#endif

// The tensor's first element, as kernels see it. The emulator lets a kernel touch exactly the bytes of the tensors
// named this way since the last launch of an earlier call: name all of a call's tensors before its first launch.
template <class T>
T* device_data(const TensorView& t) {
  if (t.device().device_type != kDevice) {
    TVM_FFI_THROW(ValueError) << "a tensor of shape " << shape_text(t) << " is on device type "
                              << int(t.device().device_type) << ", not on " << int(kDevice) << " as this library needs";
  }
  T* p = data<T>(t);
#ifdef OCTAVO_SIMT
  int64_t last = 0, count = 1;
  for (int i = 0; i < t.ndim(); ++i) {
    last += (t.size(i) - 1) * t.stride(i);
    count *= t.size(i);
  }
  if (count) simt::device_memory(p, size_t(last + 1) * size_t(t.dtype().bits) * t.dtype().lanes / 8, false);
#endif
  return p;
}

inline const float* device_vector(const Optional<TensorView>& t, const char* name, int64_t width) {
  return check_vector(t, name, width) ? device_data<const float>(*t) : nullptr;
}

// The stream that Python has made current for the tensor's device.
inline cudaStream_t current_stream(const TensorView& t) {
#ifdef OCTAVO_SIMT
  (void)t;
  return nullptr;
#else
  return static_cast<cudaStream_t>(TVMFFIEnvGetStream(t.device().device_type, t.device().device_id));
#endif
}

}  // namespace octavo::binding
