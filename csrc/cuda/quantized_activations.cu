// int8 activations (ops.Activations), for quantized_int8.cu: one scale for each 32 elements of a row, or, of LLM.int8()
// (arXiv 2208.07339), one a row where what is beyond a threshold stays in float.
//
// A row's codes are written so that a lane finds its B operands of a unit in 16 bytes: code k of a unit lies at word
// 4 (k % 32 / 8) + 2 (k / 32) + k % 8 / 4, and within a word in the order 0, 2, 1, 3, in which the packed weights' nibbles
// come out of a mask. Bound by memory.
#include "elements.cuh"
#include "launch.h"
#include "quantized_launch.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128;

// x[row, k ... k + 3], zeros beyond the last column.
OCTAVO_DEVICE float4 load_four(const QuantizedArgs& a, int64_t row, int64_t k) {
  if (k >= a.layout.k) return make_float4(0.f, 0.f, 0.f, 0.f);
  const int64_t at = row * a.x_stride + k;
  return a.x_vectors ? load4<true>(a.x, a.x_type, at, 4) : load4<false>(a.x, a.x_type, at, a.layout.k - k);
}

// The larger, NaN if either is.
OCTAVO_DEVICE float larger(float a, float b) { return b > a || b != b ? b : a; }

// What turns x into codes. Below this largest magnitude 127 / absmax would leave float32: such elements count as zeros.
OCTAVO_DEVICE float inverse_scale(float absmax) { return absmax < 1e-36f ? 0.f : div_rn(127.f, absmax); }

// -127..127, rounded half to even; 0 where x or the scale is not finite, whose NaN comes through the scale.
OCTAVO_DEVICE int code_of(float x, float inverse) {
  const float v = mul_rn(x, inverse);
  return fabsf(v) <= 127.5f ? int(rintf(v)) : 0;
}

// Four codes from k on, at their place in a row's codes.
OCTAVO_DEVICE void store_codes(const QuantizedArgs& a, int64_t row, int64_t k, const int (&codes)[4]) {
  const int in_unit = int(k % 64), at = in_unit % 32 / 8 * 4 + in_unit / 32 * 2 + in_unit % 8 / 4;
  const uint32_t bytes = uint32_t(codes[0] & 255) | uint32_t(codes[2] & 255) << 8 | uint32_t(codes[1] & 255) << 16 |
                         uint32_t(codes[3] & 255) << 24;
  reinterpret_cast<uint32_t*>(a.codes + (row * a.layout.units() + k / 64) * 64)[at] = bytes;
}

// Eight lanes a block of 32, four elements each.
__global__ void __launch_bounds__(kThreads) quantize_blocks_kernel(const __grid_constant__ QuantizedArgs a) {
  pdl_wait();
  const int64_t row = blockIdx.x, k = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * 4;
  const float4 x = load_four(a, row, k);
  float absmax = larger(larger(fabsf(x.x), fabsf(x.y)), larger(fabsf(x.z), fabsf(x.w)));
#pragma unroll
  for (int d = 1; d < 8; d *= 2) absmax = larger(absmax, shfl_xor(absmax, d));
  const float inverse = inverse_scale(absmax), scale = div_rn(absmax, 127.f);
  const int codes[4] = {code_of(x.x, inverse), code_of(x.y, inverse), code_of(x.z, inverse), code_of(x.w, inverse)};
  int sum = codes[0] + codes[1] + codes[2] + codes[3];
#pragma unroll
  for (int d = 1; d < 8; d *= 2) sum += shfl_xor(sum, d);
  if (k < a.layout.units() * 64) {
    store_codes(a, row, k, codes);
    if (threadIdx.x % 8 == 0) {
      a.factors[row * a.layout.units() * 2 + k / 32] = make_float2(scale, mul_rn(scale, float(sum)));
    }
  }
  pdl_launch();
}

// A block a row: first the largest magnitude under the threshold, then codes and, a bit an element, what stays in
// float.
__global__ void __launch_bounds__(kThreads) quantize_rows_kernel(const __grid_constant__ QuantizedArgs a) {
  OCTAVO_SHARED(float, largest, [kThreads / 32]);
  pdl_wait();
  const int64_t row = blockIdx.x, width = a.layout.units() * 64;
  const float threshold = a.threshold;
  float absmax = 0.f;
  for (int64_t k = threadIdx.x * 4; k < width; k += kThreads * 4) {
    const float4 x = load_four(a, row, k);
    const float magnitudes[4] = {fabsf(x.x), fabsf(x.y), fabsf(x.z), fabsf(x.w)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!(magnitudes[i] >= threshold)) absmax = larger(absmax, magnitudes[i]);
    }
  }
#pragma unroll
  for (int d = 1; d < 32; d *= 2) absmax = larger(absmax, shfl_xor(absmax, d));
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = absmax;
  bar_sync();
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) absmax = larger(absmax, largest[i]);
  const float inverse = inverse_scale(absmax);
  if (threadIdx.x == 0) a.factors[row] = make_float2(div_rn(absmax, 127.f), 0.f);
  for (int64_t base = 0; base < width; base += kThreads * 4) {
    const int64_t k = base + threadIdx.x * 4;
    const float4 x = load_four(a, row, k);
    const float values[4] = {x.x, x.y, x.z, x.w};
    int codes[4];
    uint32_t mask = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool outlier = fabsf(values[i]) >= threshold;
      codes[i] = outlier ? 0 : code_of(values[i], inverse);
      mask |= uint32_t(outlier) << (threadIdx.x % 8 * 4 + i);
    }
#pragma unroll
    for (int d = 1; d < 8; d *= 2) mask |= shfl_xor(mask, d);
    if (k < width) {
      store_codes(a, row, k, codes);
      if (threadIdx.x % 8 == 0) a.outliers[row * a.layout.units() * 2 + k / 32] = mask;
    }
  }
  pdl_launch();
}

}  // namespace

void quantize_activations(const QuantizedArgs& a, cudaStream_t stream) {
  if (a.outliers) return launch(quantize_rows_kernel, dim3(unsigned(a.m)), dim3(kThreads), 0, stream, a);
  launch(quantize_blocks_kernel, dim3(unsigned(a.m), blocks_of(a.layout.units() * 64, kThreads * 4)),
         dim3(kThreads), 0, stream, a);
}

}  // namespace octavo::cuda
