// Token choice without a sort (sampling.h). Everything behind a token's weight is whole numbers (octavo/sampling_math.h), so
// that the draws are the CPU's to the bit whatever the grid and the order of sums.
//
// Three kernels; in the first two a block has a part of a row:
//   highest  adjusted rows are copied with penalties and mask applied; the best token of each part
//   weigh    the mass of each part, and mass and number of its tokens above a few fixed weights
//   choose   one block a row. Without filters: the part, then the token, where the running mass passes the target. With
//            filters: the highest of the fixed weights that leaves all tokens they can keep; these tokens, gathered into
//            shared memory in id order (or found again in the row where they don't fit); top_k and top_p as radix
//            selections in the order (logit falling, id rising) by count and by mass; the draw over what is kept.
#include "sampling.h"

#include "launch.h"
#include "sampling_row.cuh"

namespace octavo::cuda {
namespace {

OCTAVO_DEVICE bool adjusts(const SampleArgs& a, int64_t row) {
  return a.copy && (a.adjust_start[row] < a.adjust_start[row + 1] || (a.mask && a.mask_rows[row] >= 0));
}
OCTAVO_DEVICE const float* processed(const SampleArgs& a, int64_t row) {
  return adjusts(a, row) ? a.copy + row * a.vocab : a.logits + row * a.stride;
}

__global__ void __launch_bounds__(kPartThreads) highest_kernel(SampleArgs a, int64_t length) {
  const int64_t row = blockIdx.y, begin = blockIdx.x * length, end = min(begin + length, a.vocab);
  pdl_wait();
  pdl_launch();
  if (adjusts(a, row)) {
    const float* logits = a.logits + row * a.stride;
    float* copy = a.copy + row * a.vocab;
    const bool masked = a.mask && a.mask_rows[row] >= 0 && a.mask_rows[row] < a.masks;
    const uint32_t* mask = masked ? a.mask + a.mask_rows[row] * ((a.vocab + 31) / 32) : nullptr;
    const auto allowed = [&](int64_t i) { return !masked || mask[i / 32] >> (i % 32) & 1; };
    for (int64_t i = begin + threadIdx.x; i < end; i += kPartThreads) copy[i] = allowed(i) ? logits[i] : -kInfinity;
    bar_sync();
    const int64_t last = min(int64_t(a.adjust_start[row + 1]), a.entries);
    for (int64_t entry = max(a.adjust_start[row], 0) + int64_t(threadIdx.x); entry < last; entry += kPartThreads) {
      const int64_t i = a.adjust_ids[entry];
      if (i < begin || i >= end || !allowed(i)) continue;
      copy[i] = math::adjust(logits[i], a.adjust_scale[entry], a.adjust_add[entry]);
    }
    bar_sync();
  }
  find_best(processed(a, row), begin, end, a.parts + row * kMaxParts + blockIdx.x);
}

struct Filters {
  float min_p;
  int64_t top_k;  // at most the vocabulary
  float top_p;
  OCTAVO_DEVICE bool any(int64_t vocab) const { return min_p > 0.f || top_k < vocab || top_p < 1.f; }
};
OCTAVO_DEVICE Filters filters_of(const SampleArgs& a, int64_t row) {
  const int64_t top_k = a.top_k[row];
  return {a.min_p[row] < 1.f ? a.min_p[row] : 1.f, top_k > 0 && top_k < a.vocab ? top_k : a.vocab, a.top_p[row]};
}

__global__ void __launch_bounds__(kPartThreads) weigh_kernel(SampleArgs a, int64_t length) {
  const int64_t row = blockIdx.y, begin = blockIdx.x * length, end = min(begin + length, a.vocab);
  SamplePart* parts = a.parts + row * kMaxParts;
  pdl_wait();
  pdl_launch();
  const uint32_t best = uint32_t(best_of(parts, int(gridDim.x)) >> 32);
  if (best <= kNothing || a.temperature[row] == 0.f) return;
  const Filters filters = filters_of(a, row);
  weigh_part(processed(a, row), begin, end, scale_of(best, a.temperature[row]), filters.min_p, filters.any(a.vocab),
             kInfinity, parts + blockIdx.x);
}

// The id of the first candidate up to `last`, in id order, whose running mass exceeds the target; it exists.
OCTAVO_DEVICE int32_t draw(Room& room, const Candidates& c, uint64_t last, uint64_t target) {
  const int64_t each = (c.count + kThreads - 1) / kThreads, first = threadIdx.x * each, end = min(first + each, c.count);
  uint64_t mass = 0;
  for (int64_t i = first; i < end; ++i) {
    const Candidates::One one = c.at(i);
    if (c.has(one, last)) mass += math::mass(one.weight);
  }
  uint64_t before = sum_block(room, 1, mass).before;
  if (before <= target && target < before + mass) {
    for (int64_t i = first; i < end; ++i) {
      const Candidates::One one = c.at(i);
      if (!c.has(one, last)) continue;
      before += math::mass(one.weight);
      if (before <= target) continue;
      room.found = int32_t(one.id());
      break;
    }
  }
  bar_sync();
  return room.found;
}

__global__ void __launch_bounds__(kThreads) choose_kernel(SampleArgs a, int64_t length, int num_parts) {
  OCTAVO_DYNAMIC_SHARED(Room, rooms);
  Room& room = rooms[0];
  const int64_t row = blockIdx.x;
  const SamplePart* parts = a.parts + row * kMaxParts;
  pdl_wait();
  pdl_launch();
  const uint64_t best = best_of(parts, num_parts);
  const uint32_t best_key = uint32_t(best >> 32);
  const float temperature = a.temperature[row];
  if (best_key <= kNothing || temperature == 0.f) {
    if (threadIdx.x == 0) a.tokens[row] = best_key <= kNothing ? -1 : int32_t(~uint32_t(best));
    return;
  }
  const float* x = processed(a, row);
  const Scale scale = scale_of(best_key, temperature);
  const Filters filters = filters_of(a, row);
  if (!filters.any(a.vocab)) {
    const int lane = int(threadIdx.x) % 32;
    const uint64_t own = lane < num_parts ? parts[lane].mass[kLevels - 1] : uint64_t{0}, running = running_sum_warp(own);
    const uint64_t target = math::draw_target(a.seeds[row], a.positions[row], shfl(running, 31));
    const int part = __popc(ballot(running <= target));
    const int64_t begin = part * length;
    const Candidates c{nullptr, x, begin, min(length, a.vocab - begin), best_key, scale, 0.f};
    const int32_t token = draw(room, c, kLast, target - shfl(running - own, part));
    if (threadIdx.x == 0) a.tokens[row] = token;
    return;
  }

  const Totals totals = totals_of(parts, num_parts);
  const uint64_t top_k = uint64_t(filters.top_k);
  const bool limited = filters.top_k < a.vocab, nucleus = filters.top_p < 1.f;
  const uint64_t lone_need = nucleus ? math::mass_of_top_p(totals.mass[kLevels - 1], filters.top_p) : 0;
  // The first level that keeps whatever the filters may keep.
  int level = 0;
  for (; level < kLevels - 1; ++level) {
    if (level_weight(level) <= filters.min_p) break;
    if (limited ? totals.count[level] >= top_k : nucleus && totals.mass[level] >= lone_need) break;
  }
  uint64_t count = 0;
#pragma unroll
  for (int i = 0; i < kLevels; ++i) count = i == level ? totals.count[i] : count;
  const float least = level_weight(level) > filters.min_p ? level_weight(level) : filters.min_p;
  const Candidates c = gather(room, x, a.vocab, length, parts, num_parts, level, count, best_key, scale, least);
  uint64_t last = kLast;
  if (top_k < count) last = select(room, c, last, top_k, false);
  if (nucleus) {
    const uint64_t need = limited ? math::mass_of_top_p(mass_up_to(room, 0, c, last), filters.top_p) : lone_need;
    last = select(room, c, last, need, true);
  }
  const uint64_t target = math::draw_target(a.seeds[row], a.positions[row], mass_up_to(room, 0, c, last));
  const int32_t token = draw(room, c, last, target);
  if (threadIdx.x == 0) a.tokens[row] = token;
}

}  // namespace

void sample(const SampleArgs& a, cudaStream_t stream) {
  const int64_t length = part_length(a.vocab), parts = (a.vocab + length - 1) / length;
  const dim3 grid(unsigned(parts), unsigned(a.rows));
  launch(highest_kernel, grid, dim3(kPartThreads), 0, stream, a, length);
  launch(weigh_kernel, grid, dim3(kPartThreads), 0, stream, a, length);
  launch(choose_kernel, dim3(unsigned(a.rows)), dim3(kThreads), sizeof(Room), stream, a, length, int(parts));
}

}  // namespace octavo::cuda
