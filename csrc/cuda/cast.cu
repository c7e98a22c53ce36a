// float32 to bfloat16 or float16 (cast.h). Bound by memory: one block a row, four elements a thread and step.
#include "cast.h"

#include "elements.cuh"
#include "launch.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

template <bool Vector>
__global__ void __launch_bounds__(kThreads) cast_kernel(void* out, DType type, const float* x, int64_t x_stride,
                                                        int64_t width) {
  const int64_t row = blockIdx.x;
  pdl_wait();
  pdl_launch();
  for (int64_t i = int64_t(threadIdx.x) * 4; i < width; i += kThreads * 4) {
    const float4 v = load4<Vector>(x, DType::kFloat32, row * x_stride + i, width - i);
    store4<Vector>(out, type, row * width + i, width - i, v);
  }
}

}  // namespace

void cast(void* out, DType type, const float* x, int64_t x_stride, int64_t rows, int64_t width, cudaStream_t stream) {
  const bool vector = whole_groups(x, DType::kFloat32, x_stride, width) && whole_groups(out, type, width, width);
  launch(vector ? cast_kernel<true> : cast_kernel<false>, dim3(unsigned(rows)), dim3(kThreads), 0, stream, out, type, x,
         x_stride, width);
}

}  // namespace octavo::cuda
