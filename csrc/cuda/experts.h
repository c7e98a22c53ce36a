// Products with a stack of weights, an expert's rows of one after another's: which rows go through which (Ops.moe_add_).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace octavo::cuda {

// Rows of a product's result are places, numbered token * top_k + rank. They are sorted by expert and cut in blocks;
// where they ended up among others decides nothing about their bits.
struct ExpertRows {
  const int4* blocks;     // {expert, first of `sorted`, how many of it}; null: one weight, and row i of x makes row i
  const int32_t* sorted;  // the places
  int count;              // of blocks, the last ones empty: it depends on the number of places alone, as a graph asks
  int block_rows;         // the most places of a block
  int share;              // places that read one row of x, side by side

  // Blocks of `tokens` places, which divide block_rows.
  unsigned blocks_of(int tokens) const { return unsigned(count) * unsigned(block_rows / tokens); }
};

}  // namespace octavo::cuda
