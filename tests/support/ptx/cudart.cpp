// The CUDA runtime's calls that nvcc's host code and our launchers make. Kernels come from the PTX in the fat binary.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "machine.h"

namespace {

struct FatBinary {  // what nvcc's host code registers
  int magic, version;
  const char* data;
  void* unused;
};
struct FatBinaryHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;
};

struct Module {
  std::string_view text;
  std::map<std::string, std::string_view> entries;
};
struct Function {
  Module* module;
  std::string name;
  std::unique_ptr<ptx::Kernel> kernel;
};
std::unordered_map<const void*, Function>& functions() {
  static std::unordered_map<const void*, Function> all;
  return all;
}

const ptx::Kernel& kernel_of(const void* stub) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  const auto found = functions().find(stub);
  if (found == functions().end()) ptx::fail("a kernel that was not registered");
  Function& f = found->second;
  if (!f.kernel) {  // only this one is read: head of the module, and the entry
    const std::string_view text = f.module->text;
    const size_t name = text.find(" " + f.name + "(");
    if (name == std::string_view::npos) ptx::fail("no entry " + f.name);
    const size_t from = text.rfind('\n', name) + 1, to = std::min(text.find(".entry ", name), text.size());
    std::string part;
    for (size_t at = text.find("\n.extern .shared"); at != std::string_view::npos; at = text.find("\n.extern .shared", at + 1)) {
      part += std::string(text.substr(at + 1, text.find('\n', at + 1) - at));
    }
    auto kernels = ptx::parse(part + std::string(text.substr(from, to - from)));
    f.kernel = std::make_unique<ptx::Kernel>(std::move(kernels.at(0)));
  }
  return *f.kernel;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  const auto* fat = static_cast<const FatBinary*>(wrapper);
  FatBinaryHeader header;
  std::memcpy(&header, fat->data, sizeof header);
  const std::string_view all(fat->data, header.header_bytes + header.bytes);
  const size_t at = all.find("\n.version ");
  auto* module = new Module;
  if (at != std::string_view::npos) module->text = all.substr(at, all.find('\0', at) - at);
  return reinterpret_cast<void**>(module);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  functions()[host] = {reinterpret_cast<Module*>(handle), name, nullptr};
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
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
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
