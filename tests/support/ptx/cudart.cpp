// The CUDA runtime's calls that nvcc's host code and our launchers make. Kernels come from the PTX beside the library.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "machine.h"

namespace simt {
void device_memory(const void*, size_t, bool) {}  // the emulator's, whose bindings these are, watches what they name
}  // namespace simt

namespace {

std::unordered_map<const void*, std::string>& names() {  // of kernels, by what stands for them on the host
  static std::unordered_map<const void*, std::string> all;
  return all;
}

// The text of NAME.ptx where this library is NAME.so, by entry.
class Texts {
 public:
  Texts() {
    Dl_info library{};
    dladdr(reinterpret_cast<const void*>(&names), &library);
    const std::string path = std::string(library.dli_fname);
    std::ifstream file(path.substr(0, path.rfind('.')) + ".ptx");
    text_.assign(std::istreambuf_iterator<char>(file), {});
    for (size_t at = text_.find("\n.extern .shared"); at != text_.npos; at = text_.find("\n.extern .shared", at + 1)) {
      dynamic_ += text_.substr(at + 1, text_.find('\n', at + 1) - at);
    }
    for (size_t at = text_.find(kEntry); at != text_.npos;) {
      const size_t name = at + kEntry.size(), next = std::min(text_.find(kEntry, name), text_.size());
      entries_[text_.substr(name, text_.find('(', name) - name)] = std::string_view(text_).substr(at, next - at);
      at = next == text_.size() ? text_.npos : next;
    }
  }
  ptx::Kernel kernel(const std::string& name) const {
    const auto found = entries_.find(name);
    if (found == entries_.end()) ptx::fail("no entry " + name);
    return std::move(ptx::parse(dynamic_ + std::string(found->second)).at(0));
  }

 private:
  static constexpr std::string_view kEntry = ".entry ";
  std::string text_, dynamic_;
  std::unordered_map<std::string, std::string_view> entries_;
};

const ptx::Kernel& kernel_of(const void* stub) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  static const Texts texts;
  static std::unordered_map<const void*, std::unique_ptr<ptx::Kernel>> kernels;
  auto& kernel = kernels[stub];
  if (!kernel) kernel = std::make_unique<ptx::Kernel>(texts.kernel(names().at(stub)));
  return *kernel;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  names()[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaSuccess; }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { return cudaErrorNotSupported; }

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub, void** arguments) {
  const unsigned grid[3] = {config->gridDim.x, config->gridDim.y, config->gridDim.z};
  const unsigned block[3] = {config->blockDim.x, config->blockDim.y, config->blockDim.z};
  ptx::launch(kernel_of(stub), grid, block, config->dynamicSmemBytes, arguments);
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*p) memset(*p, 0xFF, bytes);
  return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* p) {
  free(p);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  memset(p, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }
const char* cudaGetErrorString(cudaError_t) { return "of the PTX machine"; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 4; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(ptx::kMaxShared); return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; return cudaSuccess;
    default: return cudaErrorInvalidValue;
  }
}

}  // extern "C"
