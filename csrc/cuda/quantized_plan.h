// How quantised products are cut, and the memory that takes. No device code.
#pragma once

#include "quantized.h"

namespace octavo::cuda {

inline int64_t cuts(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// Units a slice of K. It depends on the weight's shape alone, so that a row's sum is cut in the same places in every
// batch: the longest power of two times 512 of K that leaves 400 blocks of 128 outputs, 3 for each SM of an H100.
inline int slice_units(const QuantizedLayout& layout) {
  int64_t units = 8;
  while (units < layout.units() && cuts(layout.tiles(), 8) * cuts(layout.units(), 2 * units) >= 400) units *= 2;
  return int(units);
}

struct QuantizedScratch {
  int64_t partials, codes, factors, outliers;  // bytes, multiples of 256
  int64_t counters;                            // elements
  int64_t bytes() const { return partials + codes + factors + outliers; }
};

inline QuantizedScratch quantized_scratch(const QuantizedLayout& layout, int64_t m, int slice_units, bool int8,
                                          bool outliers) {
  const auto rounded = [](int64_t bytes) { return cuts(bytes, 256) * 256; };
  QuantizedScratch s{};
  const int64_t slices = cuts(layout.units(), slice_units);
  if (slices > 1) {
    // Blocks make 8 tiles of 8 tokens, or 16 tiles of at most 64.
    const int64_t rows = m < kLaunchRows ? m : kLaunchRows, tokens = m <= 8 ? 8 : cuts(rows, 64) * 64;
    s.partials = rounded(slices * cuts(layout.tiles(), 16) * 256 * tokens * 4);
    s.counters = cuts(layout.tiles(), 8) * cuts(rows, 8);
  }
  if (int8) {
    s.codes = rounded(m * layout.units() * 64);
    s.factors = rounded(outliers ? m * 8 : m * layout.units() * 16);
    s.outliers = outliers ? rounded(m * layout.units() * 8) : 0;
  }
  return s;
}

}  // namespace octavo::cuda
