// The device that the runtime's calls tell of (cudart.cpp), and what they hold a launch to.
#pragma once

#include <cstddef>
#include <string>

namespace simt {

constexpr size_t kMaxShared = 227 << 10;     // of a block, the most that any device has
constexpr size_t kUnaskedShared = 48 << 10;  // of that, static variables included, what a kernel has without asking

struct Device {
  const char* name;
  int major, minor;
  size_t block_shared, sm_shared;
};
extern const Device* device;
extern int code_version;  // 80 or 90: the virtual architecture that the kernels were compiled for
bool set_device(const std::string& name, int code);

size_t asked_shared(const void* function);  // dynamic bytes, by cudaFuncSetAttribute
// What is wrong with so much shared memory, `all` of it with static variables, as cudaLaunchKernelEx finds it; empty if
// nothing is.
std::string shared_mistake(size_t dynamic, size_t all, size_t asked);

// Told of cudaMalloc's and cudaFree's memory, and by bindings of tensors.
void device_memory(const void* p, size_t bytes, bool permanent);
void forget_device_memory(const void* p);

}  // namespace simt
