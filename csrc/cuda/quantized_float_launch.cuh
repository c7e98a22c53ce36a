// The instances of quantized_float_kernel for one type of activations.
#pragma once

#include "quantized_float.cuh"
#include "quantized_launch.h"

namespace octavo::cuda {

template <class X, int kBits, int kGroup>
void launch_quantized_float(const QuantizedArgs& args, cudaStream_t stream) {
  for_launches(args, [&](const QuantizedArgs& a, auto token_tiles, auto less) {
    constexpr int kTokenTiles = decltype(token_tiles)::value;
    constexpr bool kLess = decltype(less)::value;
    using Shape = QuantizedFloatShape<kBits, kGroup, kTokenTiles, kLess>;
    static_assert(Shape::shared_bytes(false) + 16 <= shared_of(kTokenTiles, kLess));
    launch(quantized_float_kernel<X, kBits, kGroup, kTokenTiles, kLess>, grid_of<Shape>(a), dim3(Shape::kThreads),
           Shape::shared_bytes(a.layout.symmetric), stream, a);
  });
}

// Groups of 64, and of 128 in 8 bits, are rare: they run scaled every 32, which costs a few instructions.
template <class X>
void launch_quantized_float(const QuantizedArgs& a, cudaStream_t stream) {
  const int64_t group = a.layout.group_size;
  if (a.layout.bits == 8) {
    return group ? launch_quantized_float<X, 8, 32>(a, stream) : launch_quantized_float<X, 8, 0>(a, stream);
  }
  if (group == 0) return launch_quantized_float<X, 4, 0>(a, stream);
  if (group == 128) return launch_quantized_float<X, 4, 128>(a, stream);
  launch_quantized_float<X, 4, 32>(a, stream);
}

}  // namespace octavo::cuda
