// Copies of pages of the KV cache; the contract is Ops.copy_pages.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace octavo::cuda {

struct PagesArgs {
  void *keys, *values;  // [layers, num_pages, page_bytes], page_bytes a multiple of 16
  int64_t layers, num_pages, page_bytes;
  const int32_t *src, *dst;  // [copies]; a copy with a negative page is left out
  int64_t copies;
};

void copy_pages(const PagesArgs& args, cudaStream_t stream);

}  // namespace octavo::cuda
