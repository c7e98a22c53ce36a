// Whether this library's code runs here (device.h): a kernel that is loaded, and never launched.
#include "device.h"

#include "prim.cuh"

namespace octavo::cuda {
namespace {

__global__ void __launch_bounds__(32) nothing_kernel() {
  pdl_wait();
  pdl_launch();
}

}  // namespace

cudaError_t try_device() {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) return error;
  cudaFuncAttributes attributes{};
  return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(nothing_kernel));
}

}  // namespace octavo::cuda
