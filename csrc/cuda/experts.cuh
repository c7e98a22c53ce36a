// What kernels that multiply by single weights and by stacks of them ask of experts.h.
#pragma once

#include "experts.h"
#include "prim.cuh"

namespace octavo::cuda {

// {expert, first of `sorted`, how many} of a block of kTokens places, none or fewer where there are no more. Behind
// pdl_wait: a kernel wrote the table.
template <int kTokens>
OCTAVO_DEVICE int4 expert_block(const ExpertRows& e, int index) {
  const int each = e.block_rows / kTokens, skip = index % each * kTokens;
  int4 block = e.blocks[index / each];
  block.y += skip;
  block.z -= skip;
  return block;
}

// The row of x, and of the result, of row `i` of a launch.
OCTAVO_DEVICE int64_t x_row(const ExpertRows& e, int64_t i) { return e.blocks ? e.sorted[i] / e.share : i; }
OCTAVO_DEVICE int64_t out_row(const ExpertRows& e, int64_t i) { return e.blocks ? e.sorted[i] : i; }

}  // namespace octavo::cuda
