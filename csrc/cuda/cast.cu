// float32 to bfloat16 or float16 (cast.h). Bound by memory: one thread an element pair, consecutive threads side by side.
#include "cast.h"

#include "launch.h"
#include "prim.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

template <bool Bf16>
__global__ void __launch_bounds__(kThreads) cast_kernel(uint16_t* out, const float* x, int64_t x_stride, int64_t width) {
  const int64_t row = blockIdx.y, i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * 2;
  pdl_wait();
  pdl_launch();
  if (i >= width) return;
  const float* from = x + row * x_stride + i;
  uint16_t* to = out + row * width + i;
  const bool pair = i + 1 < width;
  const float low = from[0], high = pair ? from[1] : 0.f;
  const uint32_t word = Bf16 ? pack_bf16(low, high) : pack_f16(low, high);
  to[0] = uint16_t(word);
  if (pair) to[1] = uint16_t(word >> 16);
}

}  // namespace

void cast(void* out, DType type, const float* x, int64_t x_stride, int64_t rows, int64_t width, cudaStream_t stream) {
  const dim3 grid(unsigned((width + 2 * kThreads - 1) / (2 * kThreads)), unsigned(rows));
  const auto kernel = type == DType::kBFloat16 ? cast_kernel<true> : cast_kernel<false>;
  launch(kernel, grid, dim3(kThreads), 0, stream, static_cast<uint16_t*>(out), x, x_stride, width);
}

}  // namespace octavo::cuda
