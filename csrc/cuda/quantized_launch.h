// How a product on a packed weight is cut into launches.
#pragma once

#include <type_traits>

#include "launch.h"
#include "quantized.h"

namespace octavo::cuda {

inline char* advance(const void* p, DType type, int64_t elements) {
  return static_cast<char*>(const_cast<void*>(p)) + elements * (type == DType::kFloat32 ? 4 : 2);
}

// run(args of a launch, token tiles of 8 as a constant) over all rows, kLaunchRows at a time: 8, 16, 32 or 64 tokens a
// block, the fewest that hold the launch's rows. Of experts in one launch, with what a block of theirs holds.
template <class Run>
void for_launches(const QuantizedArgs& args, const Run& run) {
  if (args.experts.blocks) {
    if (args.experts.block_rows <= 8) return run(args, std::integral_constant<int, 1>());
    return run(args, std::integral_constant<int, 8>());
  }
  for (int64_t row = 0; row < args.m; row += kLaunchRows) {
    QuantizedArgs a = args;
    a.m = args.m - row < kLaunchRows ? args.m - row : kLaunchRows;
    a.x = advance(args.x, args.x_type, row * args.x_stride);
    a.out = advance(args.out, args.out_type, row * args.out_stride);
    if (args.codes) {
      a.codes += row * args.layout.units() * 64;
      a.factors += row * (args.outliers ? 1 : args.layout.units() * 2);
      if (args.outliers) a.outliers += row * args.layout.units() * 2;
    }
    if (a.m <= 8) {
      run(a, std::integral_constant<int, 1>());
    } else if (a.m <= 16) {
      run(a, std::integral_constant<int, 2>());
    } else if (a.m <= 32) {
      run(a, std::integral_constant<int, 4>());
    } else {
      run(a, std::integral_constant<int, 8>());
    }
  }
}

inline unsigned blocks_of(int64_t size, int64_t block) { return unsigned((size + block - 1) / block); }

template <class Shape>
dim3 grid_of(const QuantizedArgs& a) {
  const unsigned tokens = a.experts.blocks ? a.experts.blocks_of(Shape::kTokens) : blocks_of(a.m, Shape::kTokens);
  return dim3(tokens, unsigned(a.slices), blocks_of(a.layout.tiles(), Shape::kTiles));
}

}  // namespace octavo::cuda
