// Token choice and log-probabilities. One row is one work item; nothing is sorted.
//
// Greedy rows with nothing to adjust are one pass over the logits. A drawn row takes a pass for the maximum and one
// for the weights 2^((logit - max) / T * log2 e), summed in chunks of 256. Without filters the draw looks up the
// chunk and then the token. With filters, the few tokens that can survive are gathered in id order (those above a
// weight whose mass or count already suffices); min_p, top_k and top_p each keep a prefix of the order (logit
// falling, id rising), found by quickselect over a copy, by count or by mass; the draw then walks the survivors.
#include "octavo/kernels_sampling.h"

#include <math.h>
#include <string.h>

#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int64_t kChunk = 256;
constexpr float kInfinity = __builtin_inff();
// Weights below these powers of e are left out first, next, ... last (nothing).
constexpr int kLevels = 4;
constexpr float kLevel[kLevels] = {-5.0f, -10.0f, -20.0f, -kInfinity};

// Word 0 of Philox4x32-10 (Salmon et al., SC 2011).
OCTAVO_INLINE uint32_t philox(uint64_t key, uint64_t counter) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  uint32_t c0 = uint32_t(counter), c1 = uint32_t(counter >> 32), c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
    const uint32_t next0 = uint32_t(b >> 32) ^ c1 ^ k0, next2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c1 = uint32_t(b);
    c3 = uint32_t(a);
    c0 = next0;
    c2 = next2;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c0;
}

// ---- passes over a whole row ------------------------------------------------------------------------------------

struct Best {
  float logit;
  int32_t id;  // -1: the row has nothing above -infinity
};

// The highest logit and its lowest id; NaN counts as -infinity.
OCTAVO_INLINE Best find_best(const float* x, int64_t n) {
  const Vec lowest = broadcast(-kInfinity);
  Vec high[4] = {lowest, lowest, lowest, lowest};
  int64_t i = 0;
  // max(new, old) keeps the old one when the new one is NaN.
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) high[j] = max(load(x + i + 16 * j), high[j]);
  }
  float best = reduce_max(max(max(high[0], high[1]), max(high[2], high[3])));
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  if (best == -kInfinity) return {best, -1};
  const Vec wanted = broadcast(best);
  for (i = 0; i + 16 <= n; i += 16) {
    if (const uint32_t hit = bits(load(x + i) == wanted)) return {best, int32_t(i + __builtin_ctz(hit))};
  }
  for (; i < n; ++i) {
    if (x[i] == best) break;
  }
  return {best, int32_t(i)};
}

// A row of weights relative to the best token's, and their sums.
struct Weights {
  float* weight;      // [vocab rounded up to a chunk]
  double* chunk;      // [chunks] sums
  double total;
  double level_mass[kLevels];
  int64_t level_count[kLevels];
};

// How many e-folds below the best: (x - best) / temperature, at most 0, NaN as -infinity.
OCTAVO_INLINE Vec depth(Vec x, float best, float temperature) {
  // min returns its second operand when one is NaN.
  const Vec d = (min(broadcast(3.40282347e38f), x) - broadcast(best)) / broadcast(temperature);
  return select(d <= zero(), d, broadcast(-kInfinity));
}

OCTAVO_INLINE void weigh(const float* x, int64_t n, float best, float temperature, bool levels, Weights& w) {
  w.total = 0;
  for (int level = 0; level < kLevels; ++level) {
    w.level_mass[level] = 0;
    w.level_count[level] = 0;
  }
  for (int64_t start = 0; start < n; start += kChunk) {
    Vec sum = zero(), mass[kLevels - 1] = {zero(), zero(), zero()};
    for (int64_t i = start; i < start + kChunk; i += 16) {
      const int64_t left = n - i;
      Vec d = depth(left >= 16 ? load(x + i) : load_n(x + i, left < 0 ? 0 : int(left)), best, temperature);
      if (left < 16) d = select(first_n(left < 0 ? 0 : int(left)), d, broadcast(-kInfinity));
      const Vec e = exp(d);
      store(w.weight + i, e);
      sum = sum + e;
      if (levels) {
        for (int level = 0; level < kLevels - 1; ++level) {
          const Mask in = broadcast(kLevel[level]) <= d;
          mass[level] = mass[level] + select(in, e, zero());
          w.level_count[level] += __builtin_popcount(bits(in));
        }
      }
    }
    w.chunk[start / kChunk] = double(reduce_add(sum));
    w.total += w.chunk[start / kChunk];
    if (levels) {
      for (int level = 0; level < kLevels - 1; ++level) w.level_mass[level] += double(reduce_add(mass[level]));
    }
  }
  w.level_mass[kLevels - 1] = w.total;
  w.level_count[kLevels - 1] = n;
}

// The first id whose running sum exceeds u * total; the last weighted one where rounding leaves none.
OCTAVO_INLINE int32_t draw(const Weights& w, int64_t n, double u) {
  const double target = u * w.total;
  double before = 0;
  int64_t chunk = 0, last = (n + kChunk - 1) / kChunk - 1;
  while (chunk < last && before + w.chunk[chunk] <= target) before += w.chunk[chunk++];
  while (chunk > 0 && w.chunk[chunk] == 0) before -= w.chunk[--chunk];
  int64_t found = -1;
  const int64_t end = (chunk + 1) * kChunk < n ? (chunk + 1) * kChunk : n;
  for (int64_t i = chunk * kChunk; i < end; ++i) {
    if (w.weight[i] == 0.0f) continue;
    found = i;
    before += double(w.weight[i]);
    if (before > target) break;
  }
  return int32_t(found);
}

// ---- filters ----------------------------------------------------------------------------------------------------

struct Candidate {
  float logit;
  int32_t id;
  float weight;
};

// The order that the filters keep prefixes of.
OCTAVO_INLINE bool before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Reorders c so that its first `count` come before all others; 0 < count <= n. Hoare's quickselect, median of three.
static void select_count(Candidate* c, int64_t n, int64_t count) {
  int64_t low = 0, high = n - 1, place = count - 1;
  while (low < high) {
    Candidate a = c[low], b = c[low + (high - low) / 2], d = c[high];
    const Candidate pivot = before(a, b) ? (before(b, d) ? b : before(a, d) ? d : a)
                                         : (before(a, d) ? a : before(b, d) ? d : b);
    int64_t i = low, j = high;
    while (i <= j) {
      while (before(c[i], pivot)) ++i;
      while (before(pivot, c[j])) --j;
      if (i <= j) {
        const Candidate t = c[i];
        c[i++] = c[j];
        c[j--] = t;
      }
    }
    if (place <= j) {
      high = j;
    } else if (place >= i) {
      low = i;
    } else {
      return;
    }
  }
}

// The last candidate of the shortest prefix whose mass reaches `mass`, in expected linear time; reorders c.
static Candidate select_mass(Candidate* c, int64_t n, double mass) {
  while (n > 1) {
    const int64_t half = n / 2;
    select_count(c, n, half);
    double front = 0;
    for (int64_t i = 0; i < half; ++i) front += double(c[i].weight);
    if (front >= mass) {
      n = half;
    } else {
      mass -= front;
      c += half;
      n -= half;
    }
  }
  return c[0];
}

struct Filters {
  float min_depth;  // e-folds below the best that min_p allows
  int64_t top_k;    // at most the vocabulary
  double top_p;
};

// c holds the candidates in id order, spare has room for as many. Returns the number drawn from, compacted in place.
OCTAVO_INLINE int64_t filter_count(Candidate* c, Candidate* spare, int64_t n, const Filters& f) {
  if (f.top_k < n) {
    memcpy(spare, c, size_t(n) * sizeof(Candidate));
    select_count(spare, n, f.top_k);
    Candidate last = spare[0];
    for (int64_t i = 1; i < f.top_k; ++i) last = before(last, spare[i]) ? spare[i] : last;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (!before(last, c[i])) c[kept++] = c[i];
    }
    n = kept;
  }
  return n;
}

// Comparing is slow where thousands survive, so the masses are first added up in slices of equal logit width, and only
// the slice that reaches `mass` is searched. A lower logit never lies in an earlier slice.
constexpr int kSlices = 512;

static Candidate find_last(const Candidate* c, Candidate* spare, int64_t n, double mass) {
  float high = c[0].logit, low = c[0].logit;
  for (int64_t i = 1; i < n; ++i) {
    high = c[i].logit > high ? c[i].logit : high;
    low = c[i].logit < low ? c[i].logit : low;
  }
  const float width = (high - low) / float(kSlices);
  if (!(width > 0.0f) || width == kInfinity) {
    memcpy(spare, c, size_t(n) * sizeof(Candidate));
    return select_mass(spare, n, mass);
  }
  auto slice_of = [&](const Candidate& candidate) __attribute__((always_inline)) {
    const int slice = int((high - candidate.logit) / width);
    return slice < kSlices ? slice : kSlices - 1;
  };
  double masses[kSlices] = {};
  for (int64_t i = 0; i < n; ++i) masses[slice_of(c[i])] += double(c[i].weight);
  // The last slice is not empty: the lowest candidate is in it.
  int slice = 0;
  double before_slice = 0;
  while (slice < kSlices - 1 && (masses[slice] == 0 || before_slice + masses[slice] < mass)) before_slice += masses[slice++];
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (slice_of(c[i]) == slice) spare[count++] = c[i];
  }
  return select_mass(spare, count, mass - before_slice);
}

OCTAVO_INLINE int64_t filter_mass(Candidate* c, Candidate* spare, int64_t n, double mass) {
  const Candidate last = find_last(c, spare, n, mass);
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!before(last, c[i])) c[kept++] = c[i];
  }
  return kept;
}

// Tokens at most `deep` e-folds below the best, in id order.
OCTAVO_INLINE int64_t gather(const float* x, int64_t n, float best, float temperature, float deep, const Weights& w,
                             Candidate* out) {
  int64_t count = 0;
  const Vec threshold = broadcast(deep);
  for (int64_t i = 0; i < n; i += 16) {
    const int lanes = n - i < 16 ? int(n - i) : 16;
    const Vec d = depth(lanes == 16 ? load(x + i) : load_n(x + i, lanes), best, temperature);
    uint32_t in = bits(threshold <= d) & (0xffffu >> (16 - lanes));
    for (; in; in &= in - 1) {
      const int64_t id = i + __builtin_ctz(in);
      if (w.weight[id] > 0.0f) out[count++] = {x[id], int32_t(id), w.weight[id]};
    }
  }
  return count;
}

OCTAVO_INLINE int32_t draw_filtered(const float* x, int64_t n, float best, float temperature, const Filters& f, double u,
                                    const Weights& w, Candidate* c, Candidate* spare) {
  int level = 0;
  while (level < kLevels - 1) {
    // Enough to hold everything that the filters keep: more would only be looked at and dropped.
    const bool reaches_min_p = kLevel[level] <= f.min_depth;
    const bool reaches_top_k = w.level_count[level] >= f.top_k;
    const bool reaches_top_p = f.top_p < 1.0 && f.top_k >= n && f.min_depth == -kInfinity &&
                               w.level_mass[level] >= f.top_p * w.total;
    if (reaches_min_p || reaches_top_k || reaches_top_p) break;
    ++level;
  }
  const float deep = kLevel[level] > f.min_depth ? kLevel[level] : f.min_depth;
  int64_t count = gather(x, n, best, temperature, deep, w, c);
  count = filter_count(c, spare, count, f);
  if (f.top_p < 1.0) {
    // Only a lone top_p may have left tokens out of c that belong to its total.
    double total = w.total;
    if (f.top_k < n || f.min_depth > -kInfinity) {
      total = 0;
      for (int64_t i = 0; i < count; ++i) total += double(c[i].weight);
    }
    count = filter_mass(c, spare, count, f.top_p * total);
  }
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += double(c[i].weight);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += double(c[i].weight);
    if (sum > u * total) return c[i].id;
  }
  return c[count - 1].id;
}

// ---- sample -----------------------------------------------------------------------------------------------------

OCTAVO_INLINE void apply_adjustments(const SampleArgs& a, int64_t row, float* x) {
  for (int64_t i = a.adjust_start[row]; i < a.adjust_start[row + 1]; ++i) {
    float& logit = x[a.adjust_ids[i]];
    logit = (logit > 0.0f ? logit / a.adjust_scale[i] : logit * a.adjust_scale[i]) + a.adjust_add[i];
  }
  if (!a.mask || a.mask_rows[row] < 0) return;
  const int64_t words = (a.vocab + 31) / 32;
  const uint32_t* mask = a.mask + a.mask_rows[row] * words;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t start = word * 32, end = start + 32 < a.vocab ? start + 32 : a.vocab;
    if (mask[word] == 0xffffffffu) continue;
    for (int64_t i = start; i < end; ++i) x[i] = mask[word] >> (i - start) & 1 ? x[i] : -kInfinity;
  }
}

OCTAVO_INLINE bool adjusts(const SampleArgs& a, int64_t row) {
  return a.adjust_start[row] < a.adjust_start[row + 1] || (a.mask && a.mask_rows[row] >= 0);
}

OCTAVO_INLINE int32_t sample_row(const SampleArgs& a, int64_t row, char* scratch) {
  const int64_t n = a.vocab, padded = (n + kChunk - 1) / kChunk * kChunk;
  const float* x = a.logits + row * a.stride;
  Weights w;
  w.weight = reinterpret_cast<float*>(scratch);
  w.chunk = reinterpret_cast<double*>(w.weight + padded);
  float* copy = reinterpret_cast<float*>(w.chunk + padded / kChunk);
  Candidate* candidates = reinterpret_cast<Candidate*>(copy + padded);
  if (adjusts(a, row)) {
    memcpy(copy, x, size_t(n) * sizeof(float));
    apply_adjustments(a, row, copy);
    x = copy;
  }
  Best best = find_best(x, n);
  const float temperature = a.temperature[row];
  if (best.id < 0 || temperature == 0.0f) return best.id;
  if (best.logit == kInfinity) best.logit = 3.40282347e38f;
  Filters f;
  f.min_depth = float(log(double(a.min_p[row])));
  f.top_k = a.top_k[row] > 0 && a.top_k[row] < n ? a.top_k[row] : n;
  f.top_p = double(a.top_p[row]);
  const bool filtered = f.min_depth > -kInfinity || f.top_k < n || f.top_p < 1.0;
  weigh(x, n, best.logit, temperature, filtered, w);
  const double u = double(philox(uint64_t(a.seeds[row]), uint64_t(uint32_t(a.positions[row]))) >> 8) / double(1 << 24);
  if (!filtered) return draw(w, n, u);
  return draw_filtered(x, n, best.logit, temperature, f, u, w, candidates, candidates + n);
}

void sample(const SampleArgs& a) {
  const int64_t padded = (a.vocab + kChunk - 1) / kChunk * kChunk;
  const int64_t candidates = 2 * a.vocab * int64_t(sizeof(Candidate));
  const size_t scratch_bytes = size_t(padded * 4 + padded / kChunk * 8 + padded * 4 + candidates);
  parallel_for(a.rows, 1, [&](int64_t begin, int64_t end) {
    char* scratch = static_cast<char*>(thread_scratch(scratch_bytes));
    for (int64_t row = begin; row < end; ++row) a.tokens[row] = sample_row(a, row, scratch);
  });
}

// ---- logprobs ---------------------------------------------------------------------------------------------------

// The `top` first of the row, in order: candidates above the worst one held are gathered until the room is full,
// then the best are kept and the bar rises.
OCTAVO_INLINE void best_tokens(const float* x, int64_t n, int64_t top, Candidate* c, int64_t room) {
  int64_t count = 0;
  float bar = -kInfinity;
  bool full = false;
  for (int64_t i = 0; i < n; i += 16) {
    const int lanes = n - i < 16 ? int(n - i) : 16;
    const Vec v = lanes == 16 ? load(x + i) : load_n(x + i, lanes);
    uint32_t in = full ? bits(broadcast(bar) < v) : 0xffffu;
    in &= 0xffffu >> (16 - lanes);
    for (; in; in &= in - 1) {
      const int64_t id = i + __builtin_ctz(in);
      // A NaN has no place in an order: it counts as -infinity.
      c[count++] = {x[id] == x[id] ? x[id] : -kInfinity, int32_t(id), 0.0f};
    }
    if (count + 16 > room || (!full && count >= 2 * top)) {
      select_count(c, count, top);
      count = top;
      bar = c[0].logit;
      for (int64_t j = 1; j < top; ++j) bar = c[j].logit < bar ? c[j].logit : bar;
      full = true;
    }
  }
  if (count > top) select_count(c, count, top);
  // Heapsort of what is left: `top` may be a thousand.
  for (int64_t size = top, start = top / 2; size > 1;) {
    if (start > 0) {
      --start;
    } else {
      --size;
      const Candidate t = c[0];
      c[0] = c[size];
      c[size] = t;
    }
    for (int64_t node = start;;) {
      int64_t child = 2 * node + 1;
      if (child >= size) break;
      if (child + 1 < size && before(c[child], c[child + 1])) ++child;
      if (!before(c[node], c[child])) break;
      const Candidate t = c[node];
      c[node] = c[child];
      c[child] = t;
      node = child;
    }
  }
}

OCTAVO_INLINE void logprobs_row(const LogprobsArgs& a, int64_t row, Candidate* candidates, int64_t room) {
  const float* x = a.logits + row * a.stride;
  const float best = find_best(x, a.vocab).logit, chosen = x[a.tokens[row]];
  double total = 0;
  int32_t larger = 0;
  for (int64_t start = 0; start < a.vocab; start += kChunk) {
    const int64_t end = start + kChunk < a.vocab ? start + kChunk : a.vocab;
    Vec sum = zero();
    for (int64_t i = start; i < end; i += 16) {
      const int lanes = end - i < 16 ? int(end - i) : 16;
      Vec v = load_n(x + i, lanes);
      if (lanes < 16) v = select(first_n(lanes), v, broadcast(-kInfinity));
      sum = sum + exp(v - broadcast(best));
      larger += __builtin_popcount(bits(broadcast(chosen) < v));
    }
    total += double(reduce_add(sum));
  }
  const double normaliser = double(best) + log(total);
  a.logprob[row] = float(double(chosen) - normaliser);
  a.rank[row] = 1 + larger;
  if (a.top == 0) return;
  best_tokens(x, a.vocab, a.top, candidates, room);
  for (int64_t i = 0; i < a.top; ++i) {
    a.top_ids[row * a.top + i] = candidates[i].id;
    a.top_logprobs[row * a.top + i] = float(double(candidates[i].logit) - normaliser);
  }
}

void logprobs(const LogprobsArgs& a) {
  const int64_t room = 4 * a.top + 256;
  parallel_for(a.rows, 1, [&](int64_t begin, int64_t end) {
    auto* candidates = static_cast<Candidate*>(thread_scratch(size_t(room) * sizeof(Candidate)));
    for (int64_t row = begin; row < end; ++row) logprobs_row(a, row, candidates, room);
  });
}

}  // namespace

const SamplingKernels sampling_kernels = {sample, logprobs};

}  // namespace octavo::OCTAVO_ISA
