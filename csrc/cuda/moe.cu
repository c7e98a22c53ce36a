// Routing, sorting and summing of moe.h. None of it takes long beside the products; sorting is one block, which decode
// steps and prompts of thousands of tokens keep busy for microseconds.
#include "moe.h"

#include "elements.cuh"
#include "launch.h"
#include "reduce.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSortThreads = 1024;
constexpr float kLog2E = 1.44269504f;

// Larger for better scores, and of equal ones for lower experts.
OCTAVO_DEVICE uint64_t rank_of(float score, int64_t expert) {
  return uint64_t(key_of(score)) << 32 | (0xffffffffu - uint32_t(expert));
}

// A warp a token. The next best expert is the best of those that come behind the last one.
__global__ void __launch_bounds__(kThreads) moe_route_kernel(MoeArgs a) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t token = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  pdl_wait();
  pdl_launch();
  if (token >= a.tokens) return;
  const float* scores = a.scores + token * a.experts;
  float best = 0.f, total = 0.f, kept = 0.f;
  uint64_t last = ~uint64_t(0);
  for (int64_t i = 0; i < a.top_k; ++i) {
    uint64_t next = 0;
    for (int64_t e = lane; e < a.experts; e += 32) {
      const uint64_t rank = rank_of(scores[e], e);
      if (rank < last && rank > next) next = rank;
    }
    last = max_warp(next);
    const int expert = int(0xffffffffu - uint32_t(last));
    const float score = scores[expert];
    if (i == 0) {
      best = score;
      for (int64_t e = lane; e < a.experts; e += 32) total += exp2_approx((scores[e] - best) * kLog2E);
      total = sum_warp(total);
    }
    const float share = exp2_approx((score - best) * kLog2E);
    kept += share;
    if (lane == 0) {
      a.chosen[token * a.top_k + i] = expert;
      a.shares[token * a.top_k + i] = share;
    }
  }
  if (lane == 0) {
    const float divisor = a.renormalise ? kept : total;
    for (int64_t i = 0; i < a.top_k; ++i) {
      float& share = a.shares[token * a.top_k + i];
      share = div_rn(share, divisor);
    }
  }
}

// Counts places by expert, gives each expert its part of `sorted` and its blocks, and fills them in.
__global__ void __launch_bounds__(kSortThreads, 1) moe_sort_kernel(MoeArgs a) {
  OCTAVO_DYNAMIC_SHARED(uint32_t, counts);  // [experts], then where each one's next place goes
  OCTAVO_SHARED(uint32_t, blocks_in_use, [1]);
  const int64_t places = a.tokens * a.top_k;
  const int lane = int(threadIdx.x) % 32;
  for (int64_t e = threadIdx.x; e < a.experts; e += kSortThreads) counts[e] = 0;
  pdl_wait();
  pdl_launch();
  bar_sync();
  for (int64_t i = threadIdx.x; i < places; i += kSortThreads) atom_add_u32(counts + a.chosen[i], 1);
  bar_sync();
  const uint32_t rows = uint32_t(a.block_rows);
  if (threadIdx.x < 32) {  // sums of all experts before
    uint32_t place = 0, block = 0;
    for (int64_t base = 0; base < a.experts; base += 32) {
      const int64_t e = base + lane;
      const uint32_t count = e < a.experts ? counts[e] : 0, blocks = (count + rows - 1) / rows;
      uint32_t places_to = count, blocks_to = blocks;
#pragma unroll
      for (unsigned lanes = 1; lanes < 32; lanes *= 2) {
        const uint32_t p = shfl_up(places_to, lanes), b = shfl_up(blocks_to, lanes);
        places_to += lane >= int(lanes) ? p : 0;
        blocks_to += lane >= int(lanes) ? b : 0;
      }
      if (e < a.experts) {
        const uint32_t from = place + places_to - count;
        counts[e] = from;
        int4* const own = a.blocks + block + blocks_to - blocks;
        for (uint32_t b = 0; b < blocks; ++b) {
          own[b] = make_int4(int(e), int(from + b * rows), int(min(count - b * rows, rows)), 0);
        }
      }
      place += shfl(places_to, 31);
      block += shfl(blocks_to, 31);
    }
    if (lane == 0) blocks_in_use[0] = block;
  }
  bar_sync();
  for (int64_t b = blocks_in_use[0] + threadIdx.x; b < a.block_count; b += kSortThreads) {
    a.blocks[b] = make_int4(0, 0, 0, 0);
  }
  for (int64_t i = threadIdx.x; i < places; i += kSortThreads) {
    a.sorted[atom_add_u32(counts + a.chosen[i], 1)] = int32_t(i);
  }
}

// Four columns a thread, 1024 a block.
__global__ void __launch_bounds__(kThreads) moe_combine_kernel(MoeArgs a) {
  const int64_t token = blockIdx.x, i = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * 4;
  pdl_wait();
  pdl_launch();
  if (i >= a.width) return;
  float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
  for (int64_t place = token * a.top_k; place < (token + 1) * a.top_k; ++place) {
    const float share = a.shares[place];
    const float4 v = load4<true>(a.parts, DType::kFloat32, place * a.width + i, 4);
    sum = make_float4(fma_rn(share, v.x, sum.x), fma_rn(share, v.y, sum.y), fma_rn(share, v.z, sum.z),
                      fma_rn(share, v.w, sum.w));
  }
  const int64_t at = token * a.width + i;
  store4<true>(a.residual, DType::kFloat32, at, 4, load4<true>(a.residual, DType::kFloat32, at, 4) + sum);
}

}  // namespace

void moe_route(const MoeArgs& a, cudaStream_t stream) {
  const int64_t warps = kThreads / 32;
  launch(moe_route_kernel, dim3(unsigned((a.tokens + warps - 1) / warps)), dim3(kThreads), 0, stream, a);
}

void moe_sort(const MoeArgs& a, cudaStream_t stream) {
  launch(moe_sort_kernel, dim3(1), dim3(kSortThreads), size_t(a.experts) * sizeof(uint32_t), stream, a);
}

void moe_combine(const MoeArgs& a, cudaStream_t stream) {
  const dim3 grid(unsigned(a.tokens), unsigned((a.width + 4 * kThreads - 1) / (4 * kThreads)));
  launch(moe_combine_kernel, grid, dim3(kThreads), 0, stream, a);
}

}  // namespace octavo::cuda
