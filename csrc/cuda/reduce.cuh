// Sums and maxima of a warp and of a block, the same bits in every thread, and floats as whole numbers of their order.
#pragma once

#include "prim.cuh"

namespace octavo::cuda {

template <class T>
OCTAVO_DEVICE T max_warp(T v) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const T other = shfl_xor(v, lanes);
    v = other > v ? other : v;
  }
  return v;
}
// By a butterfly.
template <class T>
OCTAVO_DEVICE T sum_warp(T v) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) v += shfl_xor(v, lanes);
  return v;
}
// The warps' sums by one more. `room` is used by one call only.
OCTAVO_DEVICE float sum_block(float v, float (&room)[32]) {
  v = sum_warp(v);
  if (blockDim.x == 32) return v;
  const int lane = int(threadIdx.x) % 32;
  if (lane == 0) room[threadIdx.x / 32] = v;
  bar_sync();
  return sum_warp(lane < int(blockDim.x / 32) ? room[lane] : 0.f);
}

// Rises with x; both zeros are one, and NaN is -infinity.
OCTAVO_DEVICE uint32_t key_of(float x) {
  const uint32_t word = __float_as_uint(x == x ? add_rn(x, 0.f) : -__builtin_inff());
  return word ^ (word >> 31 ? 0xffffffffu : 0x80000000u);
}

}  // namespace octavo::cuda
