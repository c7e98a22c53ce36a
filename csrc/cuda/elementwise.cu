// Caps, clips, gates and factors (elementwise.h). Bound by memory: four elements a thread, a block for 1024 of a row.
#include "elementwise.h"

#include "elements.cuh"
#include "launch.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256, kBlock = 4 * kThreads;

OCTAVO_DEVICE int64_t first_column() { return int64_t(blockIdx.y) * kBlock + int64_t(threadIdx.x) * 4; }

template <bool Vector>
__global__ void __launch_bounds__(kThreads) softcap_kernel(float* x, int64_t count, float cap) {
  const int64_t i = int64_t(blockIdx.x) * kBlock + int64_t(threadIdx.x) * 4, left = count - i;
  pdl_wait();
  pdl_launch();
  if (left <= 0) return;
  const float4 v = load4<Vector>(x, DType::kFloat32, i, left);
  const float4 y = make_float4(cap * tanhf(div_rn(v.x, cap)), cap * tanhf(div_rn(v.y, cap)),
                               cap * tanhf(div_rn(v.z, cap)), cap * tanhf(div_rn(v.w, cap)));
  store4<Vector>(x, DType::kFloat32, i, left, y);
}

OCTAVO_DEVICE float held(float v, float limit) { return v > limit ? limit : v < -limit ? -limit : v; }

template <bool Vector>
__global__ void __launch_bounds__(kThreads) clip_kernel(void* x, DType type, int64_t stride, int64_t columns,
                                                        float limit) {
  const int64_t i = first_column(), left = columns - i, at = int64_t(blockIdx.x) * stride + i;
  pdl_wait();
  pdl_launch();
  if (left <= 0) return;
  const float4 v = load4<Vector>(x, type, at, left);
  store4<Vector>(x, type, at, left,
                 make_float4(held(v.x, limit), held(v.y, limit), held(v.z, limit), held(v.w, limit)));
}

template <bool Vector>
__global__ void __launch_bounds__(kThreads) scale_rows_kernel(void* x, DType type, int64_t stride, int64_t columns,
                                                              const int32_t* positions, const float* table,
                                                              int64_t entries) {
  const int64_t i = first_column(), left = columns - i, at = int64_t(blockIdx.x) * stride + i;
  pdl_wait();
  pdl_launch();
  const int32_t position = positions[blockIdx.x];
  if (left <= 0 || position < 0 || position >= entries) return;
  const float factor = table[position];
  const float4 v = load4<Vector>(x, type, at, left);
  store4<Vector>(x, type, at, left, make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor));
}

template <bool Vector>
__global__ void __launch_bounds__(kThreads) gated_add_kernel(float* residual, const float* x, const float* gate,
                                                             int64_t width) {
  const int64_t i = first_column(), left = width - i, at = int64_t(blockIdx.x) * width + i;
  pdl_wait();
  pdl_launch();
  if (left <= 0) return;
  const float share = div_rn(1.f, 1.f + exp2_approx(gate[blockIdx.x] * -1.44269504f));
  const float4 v = load4<Vector>(x, DType::kFloat32, at, left), to = load4<Vector>(residual, DType::kFloat32, at, left);
  store4<Vector>(residual, DType::kFloat32, at, left,
                 make_float4(fma_rn(share, v.x, to.x), fma_rn(share, v.y, to.y), fma_rn(share, v.z, to.z),
                             fma_rn(share, v.w, to.w)));
}

dim3 blocks(int64_t rows, int64_t columns) { return dim3(unsigned(rows), unsigned((columns + kBlock - 1) / kBlock)); }

}  // namespace

void softcap(float* x, int64_t count, float cap, cudaStream_t stream) {
  const bool vector = whole_groups(x, DType::kFloat32, 0, count);
  launch(vector ? softcap_kernel<true> : softcap_kernel<false>, dim3(unsigned((count + kBlock - 1) / kBlock)),
         dim3(kThreads), 0, stream, x, count, cap);
}

void clip(void* x, DType type, int64_t stride, int64_t rows, int64_t columns, float limit, cudaStream_t stream) {
  launch(whole_groups(x, type, stride, columns) ? clip_kernel<true> : clip_kernel<false>, blocks(rows, columns),
         dim3(kThreads), 0, stream, x, type, stride, columns, limit);
}

void scale_rows(void* x, DType type, int64_t stride, int64_t rows, int64_t columns, const int32_t* positions,
                const float* table, int64_t entries, cudaStream_t stream) {
  launch(whole_groups(x, type, stride, columns) ? scale_rows_kernel<true> : scale_rows_kernel<false>,
         blocks(rows, columns), dim3(kThreads), 0, stream, x, type, stride, columns, positions, table, entries);
}

void gated_add(float* residual, const float* x, const float* gate, int64_t rows, int64_t width, cudaStream_t stream) {
  const bool vector =
      whole_groups(x, DType::kFloat32, width, width) && whole_groups(residual, DType::kFloat32, width, width);
  launch(vector ? gated_add_kernel<true> : gated_add_kernel<false>, blocks(rows, width), dim3(kThreads), 0, stream,
         residual, x, gate, width);
}

}  // namespace octavo::cuda
