// Ops.copy_pages.
#include "octavo/binding.h"
#include "octavo/kernels_pages.h"

namespace octavo::binding {
namespace {

void copy_pages(TensorView keys, TensorView values, TensorView src, TensorView dst) {
  check_shape(src, "src", {-1});
  check_shape(dst, "dst", {src.size(0)});
  for (const TensorView* t : {&src, &dst}) {
    check_int32(*t, "src or dst");
    check_contiguous(*t, "src or dst");
  }
  const int32_t *from = data<const int32_t>(src), *to = data<const int32_t>(dst);
  for (const TensorView* cache : {&keys, &values}) {
    check_shape(*cache, "keys or values", {-1, -1, -1, -1, -1, -1});
    check_contiguous(*cache, "keys or values");
    const int64_t layers = cache->size(0), num_pages = cache->size(1);
    for (int64_t i = 0; i < src.size(0); ++i) {
      if (from[i] < 0 || from[i] >= num_pages || to[i] < 0 || to[i] >= num_pages) {
        TVM_FFI_THROW(ValueError) << "copy " << i << " is from page " << from[i] << " to " << to[i] << " of " << num_pages;
      }
    }
    const int64_t page_bytes =
        cache->size(2) * cache->size(3) * cache->size(4) * cache->size(5) * (cache->dtype().bits / 8);
    pick_pages_kernels().copy_pages(data<void>(*cache), layers, num_pages, page_bytes, from, to, src.size(0));
  }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(copy_pages, copy_pages);

}  // namespace octavo::binding
