// The primitives' launches for Python. Words are int32 tensors.
#include <tvm/ffi/string.h>

#include "binding_cuda.h"
#include "primitives.h"

namespace octavo::binding {
namespace {

using tvm::ffi::String;

uint32_t* words(const TensorView& t, int64_t count) {
  check_int32(t, "words");
  check_contiguous(t, "words");
  if (t.numel() != count)
    TVM_FFI_THROW(ValueError) << "words has shape " << shape_text(t) << ", expected " << count << " elements";
  return device_data<uint32_t>(t);
}

void mma(int64_t type, TensorView d, TensorView a, TensorView b, Optional<TensorView> c) {
  uint32_t* out = words(d, 128);
  cuda::primitives::run_mma(cuda::primitives::Mma(type), out, words(a, 128), words(b, 64),
                            c.has_value() ? words(c.value(), 128) : nullptr);
}

void ldmatrix(int64_t matrices, bool trans, TensorView r, TensorView from, int64_t stride) {
  cuda::primitives::run_ldmatrix(int(matrices), trans, words(r, 32 * matrices),
                                 reinterpret_cast<uint16_t*>(words(from, 32 * matrices)), int(stride));
}

void elementwise(String name, TensorView out, TensorView a, TensorView b, TensorView c) {
  const auto run = cuda::primitives::find_elementwise(name.c_str());
  if (!run) TVM_FFI_THROW(ValueError) << "no primitive '" << std::string(name) << "'";
  const int64_t n = out.numel();
  run(words(out, n), words(a, n), words(b, n), words(c, n), int(n));
}

void lanes(String name, TensorView out, TensorView a, int64_t operand) {
  const auto run = cuda::primitives::find_lanes(name.c_str());
  if (!run) TVM_FFI_THROW(ValueError) << "no primitive '" << std::string(name) << "'";
  run(words(out, 32), words(a, 32), int(operand));
}

void copy(int64_t bytes, TensorView out, TensorView in, int64_t valid) {
  cuda::primitives::run_copy(int(bytes), device_data<void>(out), device_data<void>(in), int(out.numel() / bytes),
                             int(valid));
}

void atomics(TensorView narrow, TensorView wide) {
  cuda::primitives::run_atomics(words(narrow, 2), device_data<uint64_t>(wide));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(primitive_mma, mma);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(primitive_ldmatrix, ldmatrix);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(primitive_elementwise, elementwise);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(primitive_lanes, lanes);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(primitive_copy, copy);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(primitive_atomics, atomics);

}  // namespace octavo::binding
