// Copies of cache pages, for forks that write to a shared page.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

struct PagesKernels {
  // In each of `layers` blocks of num_pages pages: page dst[i] := page src[i].
  void (*copy_pages)(void* cache, int64_t layers, int64_t num_pages, int64_t page_bytes, const int32_t* src,
                     const int32_t* dst, int64_t count);
};

OCTAVO_KERNELS(PagesKernels, pages_kernels)

}  // namespace octavo
