// Token choice and log-probabilities without a sort (sampling.h). Everything behind a token's weight is whole numbers
// (octavo/sampling_math.h), so that the draws are the CPU's to the bit whatever the grid and the order of sums.
//
// Three kernels. A row is cut into at most 32 parts, a block each, in the first two:
//   highest  adjusted rows are copied with penalties and mask applied; the best token of each part
//   weigh    the mass of each part, and mass and number of its tokens above a few fixed weights
//   choose   one block a row. Without filters: the part, then the token, where the running mass passes the target. With
//            filters: the highest of the fixed weights that leaves all tokens they can keep; these tokens, gathered into
//            shared memory in id order (or found again in the row where they don't fit); top_k and top_p as radix
//            selections in the order (logit falling, id rising) by count and by mass; the draw over what is kept.
#include "sampling.h"

#include "launch.h"
#include "octavo/sampling_math.h"
#include "prim.cuh"

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

// Rises with the logit; both zeros are one, and NaN is -infinity.
OCTAVO_DEVICE uint32_t key_of(float logit) {
  const uint32_t word = __float_as_uint(logit == logit ? add_rn(logit, 0.f) : -kInfinity);
  return word ^ (word >> 31 ? 0xffffffffu : 0x80000000u);
}
OCTAVO_DEVICE float logit_of(uint32_t key) { return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu)); }
constexpr uint32_t kNothing = 0x007fffffu;  // key_of(-infinity)

template <class T>
OCTAVO_DEVICE T max_warp(T v) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const T other = shfl_xor(v, lanes);
    v = other > v ? other : v;
  }
  return v;
}
template <class T>
OCTAVO_DEVICE T sum_warp(T v) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) v += shfl_xor(v, lanes);
  return v;
}
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

// ---- highest ----------------------------------------------------------------------------------------------------

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

__global__ void __launch_bounds__(kPartThreads) highest_logit_kernel(LogprobsArgs a, int64_t length) {
  const int64_t row = blockIdx.y, begin = blockIdx.x * length, end = min(begin + length, a.vocab);
  pdl_wait();
  pdl_launch();
  find_best(a.logits + row * a.stride, begin, end, a.parts + row * kMaxParts + blockIdx.x);
}

// ---- weigh ------------------------------------------------------------------------------------------------------

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

// ---- choose -----------------------------------------------------------------------------------------------------

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
  const double normaliser = double(logit_of(best_key)) + log(double(totals.mass[kLevels - 1]) * 0x1p-40);

  if (threadIdx.x == 0) {
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
    a.top_logprobs[row * a.top + place] = float(double(logit) - normaliser);
  }
}
static_assert(kMaxTop * sizeof(uint64_t) <= 3 * kBins * sizeof(uint32_t));
static_assert(kMaxVocab <= int64_t{1} << kIdBits);

}  // namespace

void sample(const SampleArgs& a, cudaStream_t stream) {
  const int64_t length = part_length(a.vocab), parts = (a.vocab + length - 1) / length;
  const dim3 grid(unsigned(parts), unsigned(a.rows));
  launch(highest_kernel, grid, dim3(kPartThreads), 0, stream, a, length);
  launch(weigh_kernel, grid, dim3(kPartThreads), 0, stream, a, length);
  launch(choose_kernel, dim3(unsigned(a.rows)), dim3(kThreads), sizeof(Room), stream, a, length, int(parts));
}

void logprobs(const LogprobsArgs& a, cudaStream_t stream) {
  const int64_t length = part_length(a.vocab), parts = (a.vocab + length - 1) / length;
  const dim3 grid(unsigned(parts), unsigned(a.rows));
  launch(highest_logit_kernel, grid, dim3(kPartThreads), 0, stream, a, length);
  launch(weigh_logits_kernel, grid, dim3(kPartThreads), 0, stream, a, length);
  launch(logprobs_kernel, dim3(unsigned(a.rows)), dim3(kThreads), sizeof(Room), stream, a, length, int(parts));
}

}  // namespace octavo::cuda
