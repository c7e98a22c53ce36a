// Four neighbouring elements of a row of any float type, as float32. A whole warp branches the same way on `type`.
#pragma once

#include "octavo/types.h"
#include "prim.cuh"

namespace octavo::cuda {

// Whether four elements at a time can be moved in one access: rows start on multiples of four elements.
inline bool whole_groups(const void* p, DType type, int64_t stride, int64_t width) {
  const int64_t bytes = type == DType::kFloat32 ? 16 : 8;
  return !p || (width % 4 == 0 && stride % 4 == 0 && reinterpret_cast<uintptr_t>(p) % uintptr_t(bytes) == 0);
}

// Elements i .. i + 3 of p; with Vector all of them exist and i is a multiple of 4, else the first `count` do.
template <bool Vector>
OCTAVO_DEVICE float4 load4(const void* p, DType type, int64_t i, int64_t count) {
  if (type == DType::kFloat32) {
    const float* x = static_cast<const float*>(p) + i;
    if constexpr (Vector) return *reinterpret_cast<const float4*>(x);
    return make_float4(x[0], count > 1 ? x[1] : 0.f, count > 2 ? x[2] : 0.f, count > 3 ? x[3] : 0.f);
  }
  const uint16_t* x = static_cast<const uint16_t*>(p) + i;
  uint2 words;
  if constexpr (Vector) {
    words = *reinterpret_cast<const uint2*>(x);
  } else {
    words.x = x[0] | (count > 1 ? uint32_t(x[1]) << 16 : 0u);
    words.y = (count > 2 ? uint32_t(x[2]) : 0u) | (count > 3 ? uint32_t(x[3]) << 16 : 0u);
  }
  const bool bf16 = type == DType::kBFloat16;
  const float2 low = bf16 ? unpack_bf16(words.x) : unpack_f16(words.x);
  const float2 high = bf16 ? unpack_bf16(words.y) : unpack_f16(words.y);
  return make_float4(low.x, low.y, high.x, high.y);
}

template <bool Vector>
OCTAVO_DEVICE void store4(void* p, DType type, int64_t i, int64_t count, float4 v) {
  if (type == DType::kFloat32) {
    float* x = static_cast<float*>(p) + i;
    if constexpr (Vector) {
      *reinterpret_cast<float4*>(x) = v;
    } else {
      x[0] = v.x;
      if (count > 1) x[1] = v.y;
      if (count > 2) x[2] = v.z;
      if (count > 3) x[3] = v.w;
    }
    return;
  }
  const bool bf16 = type == DType::kBFloat16;
  const uint2 words = bf16 ? make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w))
                           : make_uint2(pack_f16(v.x, v.y), pack_f16(v.z, v.w));
  uint16_t* x = static_cast<uint16_t*>(p) + i;
  if constexpr (Vector) {
    *reinterpret_cast<uint2*>(x) = words;
  } else {
    x[0] = uint16_t(words.x);
    if (count > 1) x[1] = uint16_t(words.x >> 16);
    if (count > 2) x[2] = uint16_t(words.y);
    if (count > 3) x[3] = uint16_t(words.y >> 16);
  }
}

OCTAVO_DEVICE float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

}  // namespace octavo::cuda
