// Embedding lookup (embedding.h). Bound by memory: one block a token, four elements a thread and step.
#include "elements.cuh"
#include "embedding.h"
#include "launch.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

template <bool Vector>
__global__ void __launch_bounds__(kThreads) embedding_kernel(float* out, const int32_t* ids, const void* table, DType type,
                                                             int64_t rows, int64_t width, float scale, bool add) {
  const int64_t token = blockIdx.x;
  pdl_wait();
  pdl_launch();
  const int64_t id = ids[token];
  for (int64_t i = int64_t(threadIdx.x) * 4; i < width; i += kThreads * 4) {
    const int64_t left = width - i;
    const float nan = __uint_as_float(0x7fc00000u);
    float4 v = make_float4(nan, nan, nan, nan);
    if (id >= 0 && id < rows) {
      v = load4<Vector>(table, type, id * width + i, left);
      v = make_float4(mul_rn(v.x, scale), mul_rn(v.y, scale), mul_rn(v.z, scale), mul_rn(v.w, scale));
    }
    if (add) v = load4<Vector>(out, DType::kFloat32, token * width + i, left) + v;
    store4<Vector>(out, DType::kFloat32, token * width + i, left, v);
  }
}

}  // namespace

void embedding(float* out, const int32_t* ids, const void* table, DType type, int64_t count, int64_t rows, int64_t width,
               float scale, bool add, cudaStream_t stream) {
  const bool vector = whole_groups(out, DType::kFloat32, width, width) && whole_groups(table, type, width, width);
  launch(vector ? embedding_kernel<true> : embedding_kernel<false>, dim3(unsigned(count)), dim3(kThreads), 0, stream, out,
         ids, table, type, rows, width, scale, add);
}

}  // namespace octavo::cuda
