// Mixtures of experts (Ops.moe_add_) around their products: which experts a token has, its places sorted by expert, and
// their weighted sum. The products are linear.h's and quantized.h's, with ExpertRows. Nothing waits for the device and
// every grid depends on the numbers of tokens and experts alone, so a graph can hold it all.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "experts.h"

namespace octavo::cuda {

constexpr int64_t kMostExperts = 4096;

struct MoeArgs {
  int64_t tokens, experts, top_k;
  const float* scores;  // [tokens, experts]
  bool renormalise;
  int32_t* chosen;  // [tokens, top_k]: experts, the best first
  float* shares;    // [tokens, top_k]
  int32_t* sorted;  // [places]
  int4* blocks;     // [block_count]
  int block_rows, block_count;
  const float* parts;  // [tokens, top_k, width]
  float* residual;     // [tokens, width]
  int64_t width;       // a multiple of 4
};

// Rows of a block: few where an expert has few tokens, so that not many lie idle. It decides nothing about their bits.
inline int expert_block_rows(int64_t places, int64_t experts, bool quantized) {
  const int64_t each = places / experts;
  if (quantized) return each <= 16 ? 8 : 64;
  return each <= 8 ? 8 : each <= 32 ? 32 : each <= 96 ? 64 : 128;
}

// The most blocks that any choice of experts makes: every expert's last one may be short.
inline int expert_block_count(int64_t places, int64_t experts, int block_rows) {
  const int64_t used = places < experts ? places : experts;
  return int(used + (places - used) / block_rows);
}

// chosen and shares: softmax over all experts, then the best top_k, equals by number; what is not a number comes last.
void moe_route(const MoeArgs& args, cudaStream_t stream);
// sorted and blocks, from chosen.
void moe_sort(const MoeArgs& args, cudaStream_t stream);
// residual += sum over the ranks, in their order, of share * part.
void moe_combine(const MoeArgs& args, cudaStream_t stream);

}  // namespace octavo::cuda
