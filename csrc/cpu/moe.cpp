// Mixtures of experts around their products (Ops.moe_add_). A token's experts, their shares and the order in which they
// are added come from its own scores alone; where its places lie among others' decides nothing.
#include "octavo/kernels_moe.h"

#include <string.h>

#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

// softmax over all experts, then the best top_k, equals by number.
OCTAVO_INLINE void route_token(const float* scores, int64_t experts, int64_t top_k, bool renormalise, int32_t* chosen,
                               float* share) {
  float best = scores[0];
  for (int64_t e = 1; e < experts; ++e) best = scores[e] > best ? scores[e] : best;
  const Vec shift = broadcast(best);
  Vec sums = zero();
  for (int64_t e = 0; e < experts; e += 16) {
    const int n = experts - e < 16 ? int(experts - e) : 16;
    sums = sums + select(first_n(n), exp(load_n(scores + e, n) - shift), zero());
  }
  float total = reduce_add(sums);
  // A score that is not a number never compares as larger, so it is chosen last; the experts still number top_k.
  for (int64_t i = 0; i < top_k; ++i) {
    int64_t winner = -1;
    for (int64_t e = 0; e < experts; ++e) {
      bool taken = false;
      for (int64_t j = 0; j < i; ++j) taken |= chosen[j] == e;
      if (!taken && (winner < 0 || scores[e] > scores[winner])) winner = e;
    }
    chosen[i] = int32_t(winner);
    share[i] = scores[winner];
  }
  float kept = 0.0f;
  for (int64_t i = 0; i < top_k; i += 16) {
    const int n = top_k - i < 16 ? int(top_k - i) : 16;
    store_n(share + i, exp(load_n(share + i, n) - shift), n);
  }
  for (int64_t i = 0; i < top_k; ++i) kept += share[i];
  const float divisor = renormalise ? kept : total;
  for (int64_t i = 0; i < top_k; ++i) share[i] /= divisor;
}

void route(const MoePlan& p, const float* scores, bool renormalise) {
  parallel_for(p.tokens, 1 + 4096 / (p.experts * p.top_k + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      route_token(scores + t * p.experts, p.experts, p.top_k, renormalise, p.chosen + t * p.top_k, p.share + t * p.top_k);
    }
  });
  const int64_t places = p.tokens * p.top_k;
  memset(p.first, 0, size_t(p.experts + 1) * sizeof(int32_t));
  for (int64_t i = 0; i < places; ++i) ++p.first[p.chosen[i] + 1];
  for (int64_t e = 0; e < p.experts; ++e) p.first[e + 1] += p.first[e];
  for (int64_t i = 0; i < places; ++i) p.at[i] = p.first[p.chosen[i]]++;
  // Each counter now stands at its expert's end, which is where the next one began.
  for (int64_t e = p.experts; e > 0; --e) p.first[e] = p.first[e - 1];
  p.first[0] = 0;
}

void gather(const MoePlan& p, void* sorted, const void* x, int64_t x_stride, int64_t bytes) {
  parallel_for(p.tokens, 1 + (64 << 10) / (bytes * p.top_k + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = t * p.top_k; i < (t + 1) * p.top_k; ++i) {
        memcpy(static_cast<char*>(sorted) + p.at[i] * bytes, static_cast<const char*>(x) + t * x_stride, size_t(bytes));
      }
    }
  });
}

void combine(const MoePlan& p, float* residual, int64_t stride, const float* sorted, int64_t width) {
  parallel_for(p.tokens, 1 + (16 << 10) / (width * p.top_k + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* to = residual + t * stride;
      for (int64_t i = 0; i < width; i += 16) {
        const int n = width - i < 16 ? int(width - i) : 16;
        Vec sum = zero();
        for (int64_t j = t * p.top_k; j < (t + 1) * p.top_k; ++j) {
          sum = fma(broadcast(p.share[j]), load_n(sorted + p.at[j] * width + i, n), sum);
        }
        store_n(to + i, load_n(to + i, n) + sum, n);
      }
    }
  });
}

}  // namespace

const MoeKernels moe_kernels = {route, gather, combine};

}  // namespace octavo::OCTAVO_ISA
