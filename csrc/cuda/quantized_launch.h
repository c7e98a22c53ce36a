// How a product on a packed weight is cut into launches.
#pragma once

#include <type_traits>

#include "launch.h"
#include "quantized.h"

namespace octavo::cuda {

// What a block of so many token tiles may take, static variables and all.
constexpr int64_t kMostShared = 160 * 1024;
constexpr int64_t shared_of(int token_tiles, bool less) { return less || token_tiles <= 2 ? kLeastShared : kMostShared; }

inline char* advance(const void* p, DType type, int64_t elements) {
  return static_cast<char*>(const_cast<void*>(p)) + elements * (type == DType::kFloat32 ? 4 : 2);
}

// run(args of a launch, token tiles of 8 as a constant, kLess as a constant) over all rows, kLaunchRows at a time: 8, 16, 32
// or 64 tokens a block, the fewest that hold the launch's rows. Of experts in one launch, with what a block of theirs
// holds. With little shared memory 17 to 32 tokens are two blocks of 16, and 64 take kLess.
template <class Run>
void for_launches(QuantizedArgs args, const Run& run) {
  args.tiles = int(args.layout.tiles());
  args.tile_bytes = int(args.layout.tile_bytes());
  args.scales_at = int(args.layout.scales_at());
  args.factor_bytes = int(args.layout.factor_bytes());
  args.stored_groups = int(args.layout.stored_groups());
  constexpr std::integral_constant<int, 1> k8;
  constexpr std::integral_constant<int, 2> k16;
  constexpr std::integral_constant<int, 4> k32;
  constexpr std::integral_constant<int, 8> k64;
  const bool less = block_shared() < kMostShared;
  const auto run_64 = [&](const QuantizedArgs& a) { less ? run(a, k64, std::true_type()) : run(a, k64, std::false_type()); };
  if (args.experts.blocks) {
    if (args.experts.block_rows <= 8) return run(args, k8, std::false_type());
    return run_64(args);
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
      run(a, k8, std::false_type());
    } else if (a.m <= 16 || (a.m <= 32 && less)) {
      run(a, k16, std::false_type());
    } else if (a.m <= 32) {
      run(a, k32, std::false_type());
    } else {
      run_64(a);
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
