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

// What a launch may ask besides its size. `overlap`: programmatic dependent launch (sm_90 and up): the kernel may start
// when every block of its predecessor has called pdl_launch or ended. It must call pdl_wait before it writes anything, or
// reads what its predecessor writes. What kernels before that one wrote is there from the start, as long as each of them
// waits too, in every thread, and calls pdl_launch after its own wait. Nothing of that holds behind a kernel of others'
// (torch's): what may be read early are weights, which none of them writes between a model's load and its end.
struct LaunchOptions {
  bool overlap = true;
};

#ifdef OCTAVO_SIMT
template <class... P, class... A>
void launch(LaunchOptions options, void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared, cudaStream_t,
            A&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  simt::launch(options.overlap, kernel, grid, block, dynamic_shared, static_cast<A&&>(arguments)...);
}
#else
// A process drives one device. Drivers before 12.3 can't have such launches in a graph.
inline bool can_overlap() {
  static const bool can = [] {
    int driver = 0;
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    return driver >= 12030 && device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  }();
  return can;
}

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
  config.numAttrs = options.overlap && can_overlap() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), "kernel launch");
}
#endif

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared, cudaStream_t stream, A&&... arguments) {
  launch(LaunchOptions{}, kernel, grid, block, dynamic_shared, stream, static_cast<A&&>(arguments)...);
}

}  // namespace octavo::cuda
