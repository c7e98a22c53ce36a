// The calls of nvcc's host code, and a launch; the CUDA runtime's other calls are the emulator's. Kernels come from the PTX
// beside the library.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "../simt/device.h"
#include "machine.h"

namespace simt {
void device_memory(const void*, size_t, bool) {}  // the emulator's, whose bindings these are, watches what they name
void forget_device_memory(const void*) {}
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
  const ptx::Kernel& kernel = kernel_of(stub);
  const size_t dynamic = config->dynamicSmemBytes;
  const auto mistake = simt::shared_mistake(dynamic, dynamic + kernel.static_shared, simt::asked_shared(stub));
  if (!mistake.empty()) ptx::fail(kernel.name + ": " + mistake);
  ptx::launch(kernel, grid, block, dynamic, arguments);
  return cudaSuccess;
}

}  // extern "C"
