// What token choice and log-probabilities share: a row's parts, and the selection of its best tokens without a sort.
//
// A row is cut into at most 32 parts. Blocks of kPartThreads take one each; blocks of kThreads a whole row.
#pragma once

#include "octavo/sampling_math.h"
#include "reduce.cuh"
#include "sampling.h"

namespace octavo::cuda {
namespace {

namespace math = octavo::sampling;

constexpr int kPartThreads = 256;
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kLeastPart = 1024;
constexpr int kList = 4096;    // candidates in shared memory
constexpr int kDigit = 11;     // bits of a radix selection's step
constexpr int kBins = 1 << kDigit;
constexpr int kIdBits = 22;
constexpr float kInfinity = __builtin_inff();

// Tokens of a part: whole mask words.
inline int64_t part_length(int64_t vocab) {
  const int64_t length = (vocab + kMaxParts - 1) / kMaxParts;
  return length < kLeastPart ? kLeastPart : (length + 31) / 32 * 32;
}

// Weights below these are left out first, next, ... last (none is below).
OCTAVO_DEVICE float level_weight(int level) {
  return level == 0 ? 0x1p-7f : level == 1 ? 0x1p-14f : level == 2 ? 0x1p-28f : 0x1p-64f;
}

// Of a key_of.
OCTAVO_DEVICE float logit_of(uint32_t key) { return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu)); }
constexpr uint32_t kNothing = 0x007fffffu;  // key_of(-infinity)

// Of the lanes up to this one.
template <class T>
OCTAVO_DEVICE T running_sum_warp(T v) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (unsigned lanes = 1; lanes < 32; lanes *= 2) {
    const T other = shfl_up(v, lanes);
    if (lane >= int(lanes)) v += other;
  }
  return v;
}

// The best token of all parts, in every lane.
OCTAVO_DEVICE uint64_t best_of(const SamplePart* parts, int num_parts) {
  const int lane = int(threadIdx.x) % 32;
  return max_warp(lane < num_parts ? parts[lane].best : uint64_t{0});
}

// f(logit, id) of a thread's share of [begin, end), ids rising; eight loads are on their way at a time.
template <class F>
OCTAVO_DEVICE void each_logit(const float* x, int64_t begin, int64_t end, const F& f) {
  constexpr int kAhead = 8;
  for (int64_t start = begin + threadIdx.x; start < end; start += kAhead * kPartThreads) {
    const int left = int(end - start);
    float logits[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) logits[i] = i * kPartThreads < left ? x[start + i * kPartThreads] : -kInfinity;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i * kPartThreads < left) f(logits[i], start + i * kPartThreads);
    }
  }
}

// ---- parts ------------------------------------------------------------------------------------------------------

OCTAVO_DEVICE void find_best(const float* x, int64_t begin, int64_t end, SamplePart* part) {
  OCTAVO_SHARED(uint64_t, bests, [kPartThreads / 32]);
  float highest = -kInfinity;
  int64_t id = 0;
  each_logit(x, begin, end, [&](float logit, int64_t i) {
    if (logit > highest) {  // the first of equals; never NaN
      highest = logit;
      id = i;
    }
  });
  uint64_t best = max_warp(highest > -kInfinity ? uint64_t{key_of(highest)} << 32 | uint32_t(~id) : uint64_t{0});
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  if (lane == 0) bests[warp] = best;
  bar_sync();
  if (warp > 0) return;
  best = max_warp(lane < kPartThreads / 32 ? bests[lane] : uint64_t{0});
  if (lane == 0) part->best = best;
}

// How tokens are weighed: what a row's kernels must agree on.
struct Scale {
  float best, slope;
  OCTAVO_DEVICE float weight(float x) const { return math::weight<math::Scalar>(x, best, slope); }
};
OCTAVO_DEVICE Scale scale_of(uint32_t best_key, float temperature) {
  const float best = logit_of(best_key);
  return {best < math::kHighest ? best : math::kHighest, math::slope(temperature)};
}

// Masses and counts of the tokens of a part that have a weight of at least min_p and reach each level, or, without
// `levels`, of the last level only; and the number of logits above one.
OCTAVO_DEVICE void weigh_part(const float* x, int64_t begin, int64_t end, Scale scale, float min_p, bool levels,
                              float above, SamplePart* part) {
  OCTAVO_SHARED(uint64_t, masses, [kLevels][kPartThreads]);
  OCTAVO_SHARED(uint32_t, counts, [kLevels + 1][kPartThreads]);
  int32_t high[kLevels] = {}, low[kLevels] = {};  // halves of masses: at most 512 tokens a thread
  uint32_t count[kLevels + 1] = {};
  const auto add = [&](int level, math::Halves mass) {
    high[level] += mass.high;
    low[level] += mass.low;
    ++count[level];
  };
  if (levels) {
    each_logit(x, begin, end, [&](float logit, int64_t) {
      const float w = scale.weight(logit);
      const math::Halves mass = math::halves(w);
      if (logit > above) ++count[kLevels];
      if (w < min_p) return;
      add(3, mass);
      if (w >= level_weight(2)) add(2, mass);
      if (w < level_weight(1)) return;  // nearly always, for all lanes
      add(1, mass);
      if (w >= level_weight(0)) add(0, mass);
    });
  } else {
    each_logit(x, begin, end, [&](float logit, int64_t) {
      if (logit > above) ++count[kLevels];
      add(3, math::halves(scale.weight(logit)));
    });
  }
#pragma unroll
  for (int level = 0; level < kLevels; ++level) {
    masses[level][threadIdx.x] = uint64_t((int64_t(high[level]) << 20) + low[level]);
    counts[level][threadIdx.x] = count[level];
  }
  counts[kLevels][threadIdx.x] = count[kLevels];
  bar_sync();
  const int level = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  if (level > kLevels) return;
  uint64_t mass = 0;
  uint32_t number = 0;
  for (int i = lane; i < kPartThreads; i += 32) {
    mass += level < kLevels ? masses[level][i] : 0;
    number += counts[level][i];
  }
  mass = sum_warp(mass);
  number = sum_warp(number);
  if (lane == 0) {
    if (level < kLevels) part->mass[level] = mass;
    part->count[level] = number;
  }
}

// ---- rows -------------------------------------------------------------------------------------------------------

// The place of a token in the order (logit falling, id rising).
OCTAVO_DEVICE uint64_t order_of(uint32_t best_key, float logit, int64_t id) {
  return uint64_t{best_key - key_of(logit)} << kIdBits | uint64_t(id);
}
constexpr uint64_t kLast = ~uint64_t{0};

// A block's shared memory.
struct Room {
  uint64_t list[kList];  // candidates' orders, in id order
  uint32_t count[kBins], low[kBins], high[kBins];
  uint64_t warp_sums[2][kWarps];
  uint64_t prefix, need;
  uint32_t in_bin, collected;
  int32_t found;
  double normaliser;  // of logprobs
};

// The sum over all threads before this one, and over all; every second call may use the same side.
struct Sums {
  uint64_t before, all;
};
OCTAVO_DEVICE Sums sum_block(Room& room, int side, uint64_t v) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const uint64_t running = running_sum_warp(v);
  if (lane == 31) room.warp_sums[side][warp] = running;
  bar_sync();
  Sums sums{running - v, 0};
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    const uint64_t sum = room.warp_sums[side][i];
    if (i < warp) sums.before += sum;
    sums.all += sum;
  }
  return sums;
}

// The tokens that may be chosen: a list of orders, or those of a stretch of the row that reach `least`.
struct Candidates {
  const uint64_t* list;  // null: the row
  const float* row;
  int64_t begin, count;  // of the list begin is 0
  uint32_t best_key;
  Scale scale;
  float least;

  struct One {
    uint64_t order;
    float weight;
    OCTAVO_DEVICE int64_t id() const { return int64_t(order & ((uint64_t{1} << kIdBits) - 1)); }
  };
  // The i-th, with order kLast where it is none.
  OCTAVO_DEVICE One at(int64_t i) const {
    if (list) return {list[i], scale.weight(logit_of(best_key - uint32_t(list[i] >> kIdBits)))};
    const float x = row[begin + i], w = scale.weight(x);
    return {w >= least ? order_of(best_key, x, begin + i) : kLast, w};
  }
  OCTAVO_DEVICE bool has(const One& one, uint64_t last) const { return one.order <= last && one.order != kLast; }
};

// The sum of masses of the candidates up to `last`.
OCTAVO_DEVICE uint64_t mass_up_to(Room& room, int side, const Candidates& c, uint64_t last) {
  uint64_t mass = 0;
  for (int64_t i = threadIdx.x; i < c.count; i += kThreads) {
    const Candidates::One one = c.at(i);
    if (c.has(one, last)) mass += math::mass(one.weight);
  }
  return sum_block(room, side, mass).all;
}

// The shortest prefix of the candidates up to `last`, in their order, that has `need` of them, or by mass of that much
// mass: an order that its last one reaches and the next one doesn't. There are as many.
OCTAVO_DEVICE uint64_t select(Room& room, const Candidates& c, uint64_t last, uint64_t need, bool by_mass) {
  uint64_t highest = 0;
  for (int64_t i = threadIdx.x; i < c.count; i += kThreads) {
    const Candidates::One one = c.at(i);
    if (c.has(one, last)) highest = one.order > highest ? one.order : highest;
  }
  highest = max_warp(highest);
  bar_sync();  // whoever read the bins or sums of a call before is done
  if (threadIdx.x % 32 == 0) room.warp_sums[0][threadIdx.x / 32] = highest;
  bar_sync();
  for (int i = 0; i < kWarps; ++i) highest = max(highest, room.warp_sums[0][i]);
  int shift = 0;
  while (highest >> shift >= kBins) ++shift;

  uint64_t prefix = 0;
  int width = kDigit;  // of this step's digit
  for (;;) {
    for (int bin = int(threadIdx.x); bin < kBins; bin += kThreads) room.count[bin] = room.low[bin] = room.high[bin] = 0;
    bar_sync();
    for (int64_t i = threadIdx.x; i < c.count; i += kThreads) {
      const Candidates::One one = c.at(i);
      if (!c.has(one, last) || one.order >> shift >> width != prefix) continue;
      const int bin = int(one.order >> shift) & ((1 << width) - 1);
      atom_add_u32(&room.count[bin], 1);
      if (!by_mass) continue;
      const uint64_t mass = math::mass(one.weight);
      const uint32_t low = uint32_t(mass), before = atom_add_u32(&room.low[bin], low);
      const uint32_t high = uint32_t(mass >> 32) + (before + low < before ? 1 : 0);
      if (high) atom_add_u32(&room.high[bin], high);
    }
    bar_sync();
    constexpr int kOwn = kBins / kThreads;
    const int first = int(threadIdx.x) * kOwn;
    uint64_t own[kOwn], sum = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      own[i] = by_mass ? uint64_t{room.high[first + i]} << 32 | room.low[first + i] : room.count[first + i];
      sum += own[i];
    }
    uint64_t before = sum_block(room, 1, sum).before;
    if (before < need && need <= before + sum) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (before < need && need <= before + own[i]) {
          room.prefix = prefix << width | uint64_t(first + i);
          room.need = need - before;
          room.in_bin = room.need == own[i] ? 1 : room.count[first + i];
        }
        before += own[i];
      }
    }
    bar_sync();
    prefix = room.prefix;
    need = room.need;
    // One token left, or all of them needed.
    if (shift == 0 || room.in_bin == 1) return ((prefix + 1) << shift) - 1;
    width = shift < kDigit ? shift : kDigit;
    shift -= width;
    bar_sync();
  }
}

// What the parts of a row hold together, in every thread.
struct Totals {
  uint64_t mass[kLevels], count[kLevels + 1];
};
OCTAVO_DEVICE Totals totals_of(const SamplePart* parts, int num_parts) {
  const int lane = int(threadIdx.x) % 32;
  Totals totals;
#pragma unroll
  for (int level = 0; level < kLevels; ++level) {
    totals.mass[level] = sum_warp(lane < num_parts ? parts[lane].mass[level] : uint64_t{0});
    totals.count[level] = sum_warp(lane < num_parts ? uint64_t{parts[lane].count[level]} : uint64_t{0});
  }
  totals.count[kLevels] = sum_warp(lane < num_parts ? uint64_t{parts[lane].count[kLevels]} : uint64_t{0});
  return totals;
}

// All tokens of a row that reach `least`: as a list, in id order, where they fit.
OCTAVO_DEVICE Candidates gather(Room& room, const float* row, int64_t vocab, int64_t length, const SamplePart* parts,
                                int num_parts, int level, uint64_t count, uint32_t best_key, Scale scale, float least) {
  Candidates c{nullptr, row, 0, vocab, best_key, scale, least};
  if (count > kList) return c;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const uint32_t own = lane < num_parts ? parts[lane].count[level] : 0u, running = running_sum_warp(own);
  for (int part = warp; part < num_parts; part += kWarps) {
    uint32_t at = shfl(running - own, part);
    if (shfl(own, part) == 0) continue;
    const int64_t begin = part * length, end = min(begin + length, vocab);
    for (int64_t start = begin; start < end; start += 128) {
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t id = start + 32 * i + lane;
        x[i] = id < end ? row[id] : 0.f;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t id = start + 32 * i + lane;
        const bool in = id < end && scale.weight(x[i]) >= least;
        const uint32_t lanes = ballot(in);
        if (in) room.list[at + unsigned(__popc(lanes & ((1u << lane) - 1)))] = order_of(best_key, x[i], id);
        at += unsigned(__popc(lanes));
      }
    }
  }
  bar_sync();
  c.list = room.list;
  c.count = int64_t(count);
  return c;
}

static_assert(kMaxVocab <= int64_t{1} << kIdBits);

}  // namespace
}  // namespace octavo::cuda
