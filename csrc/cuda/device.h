// Whether this library's code runs here.
#pragma once

#include <cuda_runtime_api.h>

namespace octavo::cuda {

// Of the current device: cudaErrorInsufficientDriver where the driver is older than the runtime that is linked in,
// cudaErrorNoKernelImageForDevice and cudaErrorUnsupportedPtxVersion where it can't load the code.
cudaError_t try_device();

}  // namespace octavo::cuda
