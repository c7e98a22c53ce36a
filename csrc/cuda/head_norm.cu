// Norms of groups of columns (head_norm.h). One block a row and group, which is read twice: of up to 8192 elements the
// second time from L1. Thread t takes the elements 4 t .. 4 t + 3, and those one block's stride further; lanes add up by a
// butterfly, then the warps' sums by one more.
#include "head_norm.h"

#include "elements.cuh"
#include "launch.h"
#include "reduce.cuh"

namespace octavo::cuda {
namespace {

constexpr int kMostThreads = 512;

template <bool Vector>
__global__ void __launch_bounds__(kMostThreads) head_norm_kernel(HeadNormArgs a) {
  OCTAVO_SHARED(float, room, [2][32]);
  const unsigned groups = unsigned(a.groups);
  const int64_t row = blockIdx.x / groups, column = int64_t(blockIdx.x % groups) * a.size;
  const int64_t at = row * a.stride + column, step = int64_t(blockDim.x) * 4;
  pdl_wait();
  float mean = 0.f;
  if (a.centred) {
    float sum = 0.f;
    for (int64_t i = int64_t(threadIdx.x) * 4; i < a.size; i += step) {
      const float4 v = load4<Vector>(a.x, a.type, at + i, a.size - i);
      sum += (v.x + v.y) + (v.z + v.w);
    }
    mean = div_rn(sum_block(sum, room[0]), float(a.size));
  }
  float squares = 0.f;
  for (int64_t i = int64_t(threadIdx.x) * 4; i < a.size; i += step) {
    const float4 v = load4<Vector>(a.x, a.type, at + i, a.size - i);
    const float d[4] = {v.x - mean, v.y - mean, v.z - mean, v.w - mean};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (i + j < a.size) squares = fma_rn(d[j], d[j], squares);
    }
  }
  squares = sum_block(squares, room[1]);
  const float scale = div_rn(1.f, sqrt_rn(div_rn(squares, float(a.size)) + a.eps));
  pdl_launch();
  for (int64_t i = int64_t(threadIdx.x) * 4; i < a.size; i += step) {
    const int64_t left = a.size - i;
    const float4 v = load4<Vector>(a.x, a.type, at + i, left);
    const float4 w = load4<Vector>(a.weight, DType::kFloat32, column + i, left);
    float4 y = make_float4((v.x - mean) * scale * w.x, (v.y - mean) * scale * w.y, (v.z - mean) * scale * w.z,
                           (v.w - mean) * scale * w.w);
    if (a.bias) y = y + load4<Vector>(a.bias, DType::kFloat32, column + i, left);
    if (a.add_to) {
      const int64_t to = row * a.groups * a.size + column + i;
      store4<Vector>(a.add_to, DType::kFloat32, to, left, load4<Vector>(a.add_to, DType::kFloat32, to, left) + y);
    } else {
      store4<Vector>(a.x, a.type, at + i, left, y);
    }
  }
}

}  // namespace

void head_norm(const HeadNormArgs& a, cudaStream_t stream) {
  const int64_t width = a.groups * a.size;
  const bool vector = a.size % 4 == 0 && whole_groups(a.x, a.type, a.stride, width) &&
                      whole_groups(a.weight, DType::kFloat32, 0, width) &&
                      whole_groups(a.bias, DType::kFloat32, 0, width) &&
                      whole_groups(a.add_to, DType::kFloat32, width, width);
  const int64_t whole = (a.size + 127) / 128 * 32, threads = whole < kMostThreads ? whole : kMostThreads;
  launch(vector ? head_norm_kernel<true> : head_norm_kernel<false>, dim3(unsigned(a.rows * a.groups)),
         dim3(unsigned(threads)), 0, stream, a);
}

}  // namespace octavo::cuda
