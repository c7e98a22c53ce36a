// Launching a kernel: the only <<<>>> of the CUDA side, and under OCTAVO_SIMT a call of the emulator.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef OCTAVO_SIMT
#include "simt.h"
#endif

namespace octavo::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}
inline int sm_count() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// What a launch may ask besides its size. `overlap`: programmatic dependent launch (sm_90): the kernel may start before
// its predecessor ends; it must call pdl_wait before it touches anything that a kernel before it reads or writes.
struct LaunchOptions {
  bool overlap = false;
};

#ifdef OCTAVO_SIMT
template <class... P, class... A>
void launch(LaunchOptions, void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared, cudaStream_t,
            A&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  simt::launch(kernel, grid, block, dynamic_shared, static_cast<A&&>(arguments)...);
}
#else
template <class... P, class... A>
void launch(LaunchOptions options, void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared,
            cudaStream_t stream, A&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (dynamic_shared > 48 * 1024) {  // more than every kernel may have without asking
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(dynamic_shared)),
          "cudaFuncSetAttribute(MaxDynamicSharedMemorySize)");
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = options.overlap ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), "kernel launch");
}
#endif

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared, cudaStream_t stream, A&&... arguments) {
  launch(LaunchOptions{}, kernel, grid, block, dynamic_shared, stream, static_cast<A&&>(arguments)...);
}

}  // namespace octavo::cuda
