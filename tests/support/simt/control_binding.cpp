// What tests set and ask of the emulator itself.
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include "runtime.h"

namespace {

// order: "ascending", "descending" or "random"; os_threads only counts in a build without checks.
void configure(tvm::ffi::String order, int64_t seed, int64_t os_threads) {
  const std::string name = order;
  if (name == "ascending") {
    simt::settings.order = simt::Order::kAscending;
  } else if (name == "descending") {
    simt::settings.order = simt::Order::kDescending;
  } else if (name == "random") {
    simt::settings.order = simt::Order::kRandom;
  } else {
    TVM_FFI_THROW(ValueError) << "order is '" << name << "'; allowed: ascending, descending, random";
  }
  simt::settings.seed = uint64_t(seed);
  simt::settings.os_threads = int(os_threads);
}

// The device that launches are held to and that launchers ask about, "sm_90" at first; code: the virtual architecture, 80
// or 90, that its kernels were compiled for: those for 80 have no pdl_wait.
void set_device(tvm::ffi::String name, int64_t code) {
  if (!simt::set_device(name, int(code))) {
    TVM_FFI_THROW(ValueError) << "no device '" << std::string(name)
                              << "'; allowed: sm_80, sm_86, sm_89, sm_90, sm_100, sm_120";
  }
}

// Of the latest launch that failed: one of kind_name's words, "none" before.
tvm::ffi::String last_error() { return simt::kind_name(simt::last_error); }

bool checking() { return simt::kChecking; }

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(simt_configure, configure);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(simt_device, set_device);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(simt_last_error, last_error);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(simt_checking, checking);
