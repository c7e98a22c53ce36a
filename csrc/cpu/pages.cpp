// Page copies over all layers. Memory-bound: one item is one page of one layer.
#include "octavo/kernels_pages.h"

#include <string.h>

#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

void copy_pages(void* cache, int64_t layers, int64_t num_pages, int64_t page_bytes, const int32_t* src, const int32_t* dst,
                int64_t count) {
  char* bytes = static_cast<char*>(cache);
  parallel_for(layers * count, 8, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t layer = item / count, i = item % count;
      char* base = bytes + layer * num_pages * page_bytes;
      memcpy(base + dst[i] * page_bytes, base + src[i] * page_bytes, size_t(page_bytes));
    }
  });
}

}  // namespace

const PagesKernels pages_kernels = {copy_pages};

}  // namespace octavo::OCTAVO_ISA
