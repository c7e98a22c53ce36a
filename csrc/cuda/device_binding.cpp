// What is wrong with the driver or the device, for Python to say before anything else is called.
#include <tvm/ffi/string.h>

#include "binding_cuda.h"
#include "device.h"

namespace octavo::binding {
namespace {

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

// Empty where the current device runs this library's code.
tvm::ffi::String device_mistake() {
  const cudaError_t error = cuda::try_device();
  if (error == cudaSuccess) return "";
  int runtime = 0, driver = 0;  // a driver of 0: there is none
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  return "it is built with CUDA " + version_text(runtime) + ", the driver is of CUDA " + version_text(driver) + ": " +
         cudaGetErrorName(error) + ", " + cudaGetErrorString(error);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(device_mistake, device_mistake);

}  // namespace octavo::binding
