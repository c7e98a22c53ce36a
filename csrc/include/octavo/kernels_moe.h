// What a mixture of experts does around its products: routing, sorting tokens by expert, and adding up.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

// Every token has top_k places, [tokens * top_k]; those of one expert are adjacent in `order`.
struct MoePlan {
  int64_t tokens, experts, top_k;
  int32_t* chosen;  // [tokens * top_k] expert of each place, best first
  float* share;     // [tokens * top_k]
  int32_t* at;      // [tokens * top_k] where a place lies in the sorted order
  int32_t* first;   // [experts + 1] where an expert's places begin in it
};

struct MoeKernels {
  // chosen and share of scores [tokens, experts]; then at and first.
  void (*route)(const MoePlan& plan, const float* scores, bool renormalise);
  // sorted[at[i], :] = x[i / top_k, :], `bytes` each; rows of x lie x_stride bytes apart.
  void (*gather)(const MoePlan& plan, void* sorted, const void* x, int64_t x_stride, int64_t bytes);
  // residual[t, :] += sum over a token's places of share * sorted[at, :], best first.
  void (*combine)(const MoePlan& plan, float* residual, int64_t stride, const float* sorted, int64_t width);
};

OCTAVO_KERNELS(MoeKernels, moe_kernels)

}  // namespace octavo
