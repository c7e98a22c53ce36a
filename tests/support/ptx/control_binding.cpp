// A text of PTX by itself, for the machine's own tests.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>

#include "machine.h"

namespace {

// The text's first entry, whose parameters are the tensors' addresses, in a grid of one dimension.
void run(tvm::ffi::String text, int64_t blocks, int64_t threads, int64_t dynamic_shared,
         tvm::ffi::Array<tvm::ffi::Tensor> tensors) {
  const auto kernels = ptx::parse(std::string_view(text.data(), text.size()));
  if (kernels.empty()) ptx::fail("a text without an entry");
  std::vector<void*> addresses;
  for (const auto& tensor : tensors) addresses.push_back(tensor.data_ptr());
  if (addresses.size() != kernels[0].parameters.size()) ptx::fail("another number of parameters");
  std::vector<void*> arguments;
  for (auto& address : addresses) arguments.push_back(&address);
  const unsigned grid[3] = {unsigned(blocks), 1, 1}, block[3] = {unsigned(threads), 1, 1};
  ptx::launch(kernels[0], grid, block, size_t(dynamic_shared), arguments.data());
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(ptx_run, run);
