// Runs one case of counted.cu by its name.
#include <tvm/ffi/string.h>

#include "binding_cuda.h"
#include "counted.h"

namespace octavo::binding {
namespace {

void counted_run(tvm::ffi::String name, TensorView out, TensorView in) {
  const counted::Memory memory{device_data<float>(out), device_data<const float>(in)};
  for (int i = 0; i < counted::num_cases; ++i) {
    if (name == counted::cases[i].name) return counted::cases[i].run(memory);
  }
  TVM_FFI_THROW(ValueError) << "no counted case '" << std::string(name) << "'";
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(counted_run, counted_run);

}  // namespace octavo::binding
