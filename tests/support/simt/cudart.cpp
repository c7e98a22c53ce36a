// The calls of the CUDA runtime that launchers and bindings make, on the host: no stream ever runs late.
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "device.h"

namespace simt {
namespace {

constexpr Device kDevices[] = {
    {"sm_80", 8, 0, 163 << 10, 164 << 10}, {"sm_86", 8, 6, 99 << 10, 100 << 10},
    {"sm_89", 8, 9, 99 << 10, 100 << 10},  {"sm_90", 9, 0, 227 << 10, 228 << 10},
    {"sm_100", 10, 0, 227 << 10, 228 << 10}, {"sm_120", 12, 0, 99 << 10, 100 << 10},
};
std::mutex asked_mutex;
std::unordered_map<const void*, size_t> asked;

}  // namespace

const Device* device = &kDevices[3];
int code_version = 90;

bool set_device(const std::string& name, int code) {
  for (const Device& d : kDevices) {
    if (name != d.name) continue;
    device = &d;
    code_version = code;
    return true;
  }
  return false;
}

size_t asked_shared(const void* function) {
  const std::lock_guard<std::mutex> lock(asked_mutex);
  const auto found = asked.find(function);
  return found == asked.end() ? 0 : found->second;
}

std::string shared_mistake(size_t dynamic, size_t all, size_t asked) {
  const bool too_much = all > device->block_shared;
  if (!too_much && (all <= kUnaskedShared || dynamic <= asked)) return "";
  return "cudaErrorInvalidValue: " + std::to_string(all) + " bytes of shared memory, static variables included; " +
         (too_much ? std::string("a block of ") + device->name + " has up to " + std::to_string(device->block_shared)
                   : "the kernel has not asked for " + std::to_string(dynamic) + " dynamic ones");
}

}  // namespace simt

extern "C" {

cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!*p) return cudaErrorMemoryAllocation;
  memset(*p, 0xFF, bytes);
  simt::device_memory(*p, bytes, true);
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  simt::forget_device_memory(p);
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
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : error == cudaErrorInvalidValue ? "cudaErrorInvalidValue" : "cudaError";
}
const char* cudaGetErrorString(cudaError_t) { return "of the emulator"; }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = simt::code_version;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || size_t(value) > simt::device->block_shared) {
    return cudaErrorInvalidValue;
  }
  const std::lock_guard<std::mutex> lock(simt::asked_mutex);
  simt::asked[function] = size_t(value);
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 4; return cudaSuccess;  // few, so that persistent kernels loop
    case cudaDevAttrComputeCapabilityMajor: *value = simt::device->major; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = simt::device->minor; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(simt::device->block_shared); return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = int(simt::device->sm_shared); return cudaSuccess;
    default: return cudaErrorInvalidValue;
  }
}

}  // extern "C"
