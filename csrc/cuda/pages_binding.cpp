// Ops.copy_pages on CUDA.
#include "cache_view.h"
#include "pages.h"

namespace octavo::binding {
namespace {

void copy_pages(TensorView keys, TensorView values, TensorView src, TensorView dst) {
  cuda::PagesArgs a{};
  a.copies = src.size(0);
  a.src = device_indices(src, "src", {-1});
  a.dst = device_indices(dst, "dst", {a.copies});
  cache_type(keys, "keys");
  if (keys.ndim() < 4) TVM_FFI_THROW(ValueError) << "keys have shape " << shape_text(keys) << "; expected all layers";
  bool same = keys.ndim() == values.ndim() && keys.dtype().bits == values.dtype().bits;
  a.page_bytes = keys.dtype().bits / 8;
  for (int i = 0; same && i < keys.ndim(); ++i) {
    same = keys.size(i) == values.size(i);
    if (i >= 2) a.page_bytes *= keys.size(i);
  }
  if (!same) {
    TVM_FFI_THROW(ValueError) << "keys and values have shapes " << shape_text(keys) << " and " << shape_text(values);
  }
  check_contiguous(keys, "keys");
  check_contiguous(values, "values");
  if (a.page_bytes % 16) {
    TVM_FFI_THROW(ValueError) << "a page of " << a.page_bytes << " bytes; expected a multiple of 16";
  }
  a.layers = keys.size(0);
  a.num_pages = keys.size(1);
  a.keys = device_data<void>(keys);
  a.values = device_data<void>(values);
  if (a.copies > 0) cuda::copy_pages(a, current_stream(keys));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(copy_pages, copy_pages);

}  // namespace octavo::binding
