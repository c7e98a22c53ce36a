// Runs one planted case by its name.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/string.h>

#include "binding_cuda.h"
#include "planted.h"

namespace octavo::binding {
namespace {

using tvm::ffi::Array;
using tvm::ffi::String;

Array<String> planted_names() {
  Array<String> names;
  for (int i = 0; i < planted::num_cases; ++i) names.push_back(planted::cases[i].name);
  return names;
}

void planted_run(String name, bool good, TensorView out, TensorView in, TensorView counters, TensorView host) {
  const planted::Memory memory{device_data<float>(out), device_data<const float>(in), device_data<uint32_t>(counters),
                               data<const float>(host)};
  for (int i = 0; i < planted::num_cases; ++i) {
    if (name == planted::cases[i].name) return planted::cases[i].run(memory, good);
  }
  TVM_FFI_THROW(ValueError) << "no planted case '" << std::string(name) << "'";
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(planted_names, planted_names);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(planted_run, planted_run);

}  // namespace octavo::binding
