// Page dst[i] := page src[i], keys and values, in every layer: copy on write of forks and beams (pages.h).
//
// One CTA a copy, layer and tensor; each thread moves 16 bytes at a time. Bound by memory.
#include "pages.h"

#include "launch.h"
#include "prim.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) copy_kernel(PagesArgs a) {
  pdl_wait();
  pdl_launch();
  const int64_t src = a.src[blockIdx.x], dst = a.dst[blockIdx.x];
  if (src < 0 || dst < 0) return;
  unsigned char* layer = static_cast<unsigned char*>(blockIdx.z ? a.values : a.keys) +
                         int64_t(blockIdx.y) * a.num_pages * a.page_bytes;
  const uint4* from = reinterpret_cast<const uint4*>(layer + src * a.page_bytes);
  uint4* to = reinterpret_cast<uint4*>(layer + dst * a.page_bytes);
  for (int64_t i = threadIdx.x; i < a.page_bytes / 16; i += kThreads) to[i] = from[i];
}

}  // namespace

void copy_pages(const PagesArgs& a, cudaStream_t stream) {
  launch(copy_kernel, dim3(unsigned(a.copies), unsigned(a.layers), 2), dim3(kThreads), 0, stream, a);
}

}  // namespace octavo::cuda
