// Launching a kernel: the only <<<>>> of the CUDA side, and under OCTAVO_SIMT a call of the emulator.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>

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

// Bytes of shared memory that a block may have, static variables and all: 227 KB on sm_90 and sm_100, 163 on sm_80 and
// sm_87, and 99 on GPUs of desktops (sm_86, sm_89, sm_120), for which every kernel that takes more has a smaller shape.
inline int64_t block_shared() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }
constexpr int64_t kLeastShared = 99 * 1024;

// Blocks that an SM holds, at most `most`, of so much shared memory, of which the system takes 1 KB a block besides.
inline int blocks_of_sm(int64_t shared, int most) {
  const int64_t fit = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / (shared + 1024);
  return fit < 1 ? 1 : fit < most ? int(fit) : most;
}

// What a launch may ask besides its size. `overlap`: programmatic dependent launch (sm_90 and up): the kernel may start
// when every block of its predecessor has called pdl_launch or ended. It must call pdl_wait before it writes anything, or
// reads what its predecessor writes. What kernels before that one wrote is there from the start, as long as each of them
// waits too, in every thread, and calls pdl_launch after its own wait. Nothing of that holds behind a kernel of others'
// (torch's): what may be read early are weights, which none of them writes between a model's load and its end.
struct LaunchOptions {
  bool overlap = true;
};

// Whether kernels may overlap at all. The device must know how, the driver have such launches in graphs, and the code that
// runs have been compiled for sm_90 or later: what a driver makes of sm_80's PTX has no pdl_wait in it.
inline bool overlaps(const void* kernel) {
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  cudaFuncAttributes code{};
  check(cudaFuncGetAttributes(&code, kernel), "cudaFuncGetAttributes");
  return driver >= 12030 && device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9 && code.ptxVersion >= 90;
}
inline bool can_overlap(const void* kernel) {
#ifdef OCTAVO_SIMT
  return overlaps(kernel);  // tests change the device
#else
  static const bool can = overlaps(kernel);  // a process drives one device, and all kernels are compiled for the same ones
  return can;
#endif
}

// Without asking, a block has 48 KB of shared memory, its static variables included: 16 KB are theirs. What a kernel has
// asked for is never lowered, for a graph may hold a launch that needs it.
inline void ask_for_shared(const void* kernel, size_t dynamic_shared) {
  if (dynamic_shared <= 32 * 1024) return;
  static std::mutex mutex;
  static std::unordered_map<const void*, size_t> asked;
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = asked[kernel];
  if (dynamic_shared <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(dynamic_shared)),
        "cudaFuncSetAttribute(MaxDynamicSharedMemorySize)");
  most = dynamic_shared;
}

template <class... P, class... A>
void launch(LaunchOptions options, void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared,
            [[maybe_unused]] cudaStream_t stream, A&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const void* const address = reinterpret_cast<const void*>(kernel);
  ask_for_shared(address, dynamic_shared);
  const bool overlap = options.overlap && can_overlap(address);
#ifdef OCTAVO_SIMT
  simt::launch(overlap, kernel, grid, block, dynamic_shared, static_cast<A&&>(arguments)...);
#else
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), "kernel launch");
#endif
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared, cudaStream_t stream, A&&... arguments) {
  launch(LaunchOptions{}, kernel, grid, block, dynamic_shared, stream, static_cast<A&&>(arguments)...);
}

}  // namespace octavo::cuda
