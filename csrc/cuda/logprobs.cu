// Log-probabilities of the model's own logits, and the best tokens without a sort (sampling.h), in the three steps of
// sampling.cu: the best token of each part, the masses, then one block a row.
#include "launch.h"
#include "sampling.h"
#include "sampling_row.cuh"

namespace octavo::cuda {
namespace {

__global__ void __launch_bounds__(kPartThreads) highest_logit_kernel(LogprobsArgs a, int64_t length) {
  const int64_t row = blockIdx.y, begin = blockIdx.x * length, end = min(begin + length, a.vocab);
  pdl_wait();
  pdl_launch();
  find_best(a.logits + row * a.stride, begin, end, a.parts + row * kMaxParts + blockIdx.x);
}

OCTAVO_DEVICE float chosen_logit(const LogprobsArgs& a, int64_t row) {
  const int64_t token = a.tokens[row];
  return token >= 0 && token < a.vocab ? a.logits[row * a.stride + token] : __uint_as_float(0x7fc00000u);
}

__global__ void __launch_bounds__(kPartThreads) weigh_logits_kernel(LogprobsArgs a, int64_t length) {
  const int64_t row = blockIdx.y, begin = blockIdx.x * length, end = min(begin + length, a.vocab);
  SamplePart* parts = a.parts + row * kMaxParts;
  pdl_wait();
  pdl_launch();
  const uint32_t best = uint32_t(best_of(parts, int(gridDim.x)) >> 32);
  weigh_part(a.logits + row * a.stride, begin, end, scale_of(best, 1.f), 0.f, a.top > 0, chosen_logit(a, row),
             parts + blockIdx.x);
}

__global__ void __launch_bounds__(kThreads) logprobs_kernel(LogprobsArgs a, int64_t length, int num_parts) {
  OCTAVO_DYNAMIC_SHARED(Room, rooms);
  Room& room = rooms[0];
  const int64_t row = blockIdx.x;
  const float* x = a.logits + row * a.stride;
  const SamplePart* parts = a.parts + row * kMaxParts;
  pdl_wait();
  pdl_launch();
  const uint32_t best_key = uint32_t(best_of(parts, num_parts) >> 32);
  const Totals totals = totals_of(parts, num_parts);

  if (threadIdx.x == 0) {  // alone: desktops' devices have few units for double
    const double normaliser = double(logit_of(best_key)) + log(double(totals.mass[kLevels - 1]) * 0x1p-40);
    room.normaliser = normaliser;
    a.rank[row] = 1 + int32_t(totals.count[kLevels]);
    a.logprob[row] = float(double(chosen_logit(a, row)) - normaliser);
    room.collected = 0;
  }
  if (a.top == 0) return;

  int level = 0;
  while (level < kLevels - 1 && totals.count[level] < uint64_t(a.top)) ++level;
  uint64_t count = 0;
#pragma unroll
  for (int i = 0; i < kLevels; ++i) count = i == level ? totals.count[i] : count;
  const Candidates c = gather(room, x, a.vocab, length, parts, num_parts, level, count, best_key, scale_of(best_key, 1.f),
                              level_weight(level));
  const uint64_t last = uint64_t(a.top) < count ? select(room, c, kLast, uint64_t(a.top), false) : kLast;
  bar_sync();
  // The bins have served: they take the orders of the `top` best, each of which then counts those before it.
  uint64_t* orders = reinterpret_cast<uint64_t*>(room.count);
  for (int64_t i = threadIdx.x; i < c.count; i += kThreads) {
    const Candidates::One one = c.at(i);
    if (c.has(one, last)) orders[atom_add_u32(&room.collected, 1)] = one.order;
  }
  bar_sync();
  for (int64_t i = threadIdx.x; i < a.top; i += kThreads) {
    const uint64_t order = orders[i];
    int64_t place = 0;
    for (int64_t j = 0; j < a.top; ++j) place += orders[j] < order ? 1 : 0;
    a.top_ids[row * a.top + place] = int32_t(order & ((uint64_t{1} << kIdBits) - 1));
    const float logit = logit_of(best_key - uint32_t(order >> kIdBits));
    a.top_logprobs[row * a.top + place] = float(double(logit) - room.normaliser);
  }
}
static_assert(kMaxTop * sizeof(uint64_t) <= 3 * kBins * sizeof(uint32_t));

}  // namespace

void logprobs(const LogprobsArgs& a, cudaStream_t stream) {
  const int64_t length = part_length(a.vocab), parts = (a.vocab + length - 1) / length;
  const dim3 grid(unsigned(parts), unsigned(a.rows));
  launch(highest_logit_kernel, grid, dim3(kPartThreads), 0, stream, a, length);
  launch(weigh_logits_kernel, grid, dim3(kPartThreads), 0, stream, a, length);
  launch(logprobs_kernel, dim3(unsigned(a.rows)), dim3(kThreads), sizeof(Room), stream, a, length, int(parts));
}

}  // namespace octavo::cuda
