// RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), with the residual's addition in front where asked (norm.h).
//
// One block a row, the row in registers: it is read once, also for LayerNorm's second pass and the output. Thread t holds
// the groups of four elements t, t + threads, ...; lanes add up by a butterfly, then the warps' sums by one more.
#include "elements.cuh"
#include "launch.h"
#include "norm.h"
#include "reduce.cuh"

namespace octavo::cuda {
namespace {

template <int Groups, bool Vector>
__global__ void __launch_bounds__(1024) norm_kernel(NormArgs a) {
  OCTAVO_SHARED(float, room, [2][32]);
  const int64_t row = blockIdx.x;
  float* x = a.x + row * a.x_stride;
  float4 v[Groups];
  pdl_wait();
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < Groups; ++j) {
    const int64_t i = (int64_t(j) * blockDim.x + threadIdx.x) * 4, left = a.width - i;
    v[j] = make_float4(0.f, 0.f, 0.f, 0.f);
    if (left <= 0) continue;
    v[j] = load4<Vector>(x, DType::kFloat32, i, left);
    if (a.delta) {
      v[j] = v[j] + load4<Vector>(a.delta, a.delta_type, row * a.width + i, left);
      store4<Vector>(x, DType::kFloat32, i, left, v[j]);
    }
    if (a.layer) {
      sum += (v[j].x + v[j].y) + (v[j].z + v[j].w);
    } else {
      sum = fma_rn(v[j].w, v[j].w, fma_rn(v[j].z, v[j].z, fma_rn(v[j].y, v[j].y, fma_rn(v[j].x, v[j].x, sum))));
    }
  }
  sum = sum_block(sum, room[0]);
  if (a.layer) {
    const float mean = div_rn(sum, float(a.width));
    sum = 0.f;
#pragma unroll
    for (int j = 0; j < Groups; ++j) {
      const int64_t left = a.width - (int64_t(j) * blockDim.x + threadIdx.x) * 4;
      v[j] = make_float4(v[j].x - mean, v[j].y - mean, v[j].z - mean, v[j].w - mean);
      if (left > 0) sum = fma_rn(v[j].x, v[j].x, sum);
      if (left > 1) sum = fma_rn(v[j].y, v[j].y, sum);
      if (left > 2) sum = fma_rn(v[j].z, v[j].z, sum);
      if (left > 3) sum = fma_rn(v[j].w, v[j].w, sum);
    }
    sum = sum_block(sum, room[1]);
  }
  pdl_launch();
  const float scale = div_rn(1.f, sqrt_rn(div_rn(sum, float(a.width)) + a.eps));
#pragma unroll
  for (int j = 0; j < Groups; ++j) {
    const int64_t i = (int64_t(j) * blockDim.x + threadIdx.x) * 4, left = a.width - i;
    if (left <= 0) continue;
    float4 y = make_float4(v[j].x * scale, v[j].y * scale, v[j].z * scale, v[j].w * scale);
    if (a.weight) {
      const float4 w = load4<Vector>(a.weight, DType::kFloat32, i, left);
      y = make_float4(y.x * w.x, y.y * w.y, y.z * w.z, y.w * w.w);
    }
    if (a.bias) y = y + load4<Vector>(a.bias, DType::kFloat32, i, left);
    store4<Vector>(a.out, a.out_type, row * a.width + i, left, y);
  }
}

}  // namespace

void norm(const NormArgs& a, cudaStream_t stream) {
  const bool vector = whole_groups(a.x, DType::kFloat32, a.x_stride, a.width) &&
                      whole_groups(a.out, a.out_type, a.width, a.width) &&
                      whole_groups(a.weight, DType::kFloat32, 0, a.width) &&
                      whole_groups(a.bias, DType::kFloat32, 0, a.width) &&
                      whole_groups(a.delta, a.delta_type, a.width, a.width);
  const int64_t groups = a.width <= 16384 ? 4 : 8, threads = (a.width + 128 * groups - 1) / (128 * groups) * 32;
  const auto kernel = groups == 8 ? norm_kernel<8, true> : vector ? norm_kernel<4, true> : norm_kernel<4, false>;
  if (groups == 8 && !vector) throw std::invalid_argument("a norm of more than 16384 elements needs rows on 16 bytes");
  launch(kernel, dim3(unsigned(a.rows)), dim3(unsigned(threads)), 0, stream, a);
}

}  // namespace octavo::cuda
