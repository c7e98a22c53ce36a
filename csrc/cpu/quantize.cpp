// Rounding weights at load: 16 candidates for a group's scale, one a lane, so that a weight is broadcast to all of them
// and the errors need no reduction. About seven 16-wide instructions a weight.
#include "octavo/kernels_quantize.h"

#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int64_t kLargestGroup = 128;
constexpr int kCandidates = 16;

alignas(64) const float kDivisors[kCandidates] = {7.0f, 7.25f, 7.5f, 7.75f, 8.0f,  8.25f,  8.5f,  8.75f,
                                                  9.0f, 9.25f, 9.5f, 9.75f, 10.0f, 10.25f, 10.5f, 10.75f};
constexpr double kShares[4] = {0.0, 0.02, 0.05, 0.08};

#define OCTAVO_FOUR(expression, i) expression(i, 0), expression(i, 1), expression(i, 2), expression(i, 3)
#define OCTAVO_SIXTEEN(expression) \
  OCTAVO_FOUR(expression, 0), OCTAVO_FOUR(expression, 1), OCTAVO_FOUR(expression, 2), OCTAVO_FOUR(expression, 3)
#define OCTAVO_BELOW(i, j) float(kShares[i])
#define OCTAVO_KEPT(i, j) float(1.0 - kShares[i] - kShares[j])
alignas(64) const float kBelow[kCandidates] = {OCTAVO_SIXTEEN(OCTAVO_BELOW)};
alignas(64) const float kKept[kCandidates] = {OCTAVO_SIXTEEN(OCTAVO_KEPT)};
#undef OCTAVO_BELOW
#undef OCTAVO_KEPT
#undef OCTAVO_FOUR
#undef OCTAVO_SIXTEEN

struct Scales {
  alignas(64) float scale[kCandidates], offset[kCandidates];
};

OCTAVO_INLINE Vec through_f16(Vec v) {
  f16 half[16];
  store(half, v);
  return load(half);
}

OCTAVO_INLINE Vec clamp(Vec v, float low, float high) { return min(max(v, broadcast(low)), broadcast(high)); }

// x - x is NaN for infinities and NaN, else zero.
OCTAVO_INLINE bool finite(Vec sum_of_differences) { return reduce_add(sum_of_differences) == 0.0f; }

template <class T>
OCTAVO_INLINE Vec load_up_to(const T* p, int64_t n) {
  return n >= 16 ? load(p) : load_n(p, int(n));
}

OCTAVO_INLINE void store_codes(uint8_t* p, Vec v, int64_t n) {
  float lanes[16];
  store(lanes, v);
  if (n >= 16) {
    for (int i = 0; i < 16; ++i) p[i] = uint8_t(int32_t(lanes[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) p[i] = uint8_t(int32_t(lanes[i]));
  }
}

// The scale (and offset) whose codes leave the least squared error; the first of equals, and the first one where every
// scale underflows to zero.
template <bool Symmetric>
OCTAVO_INLINE void choose(const float* x, int64_t width, float low, float high, float& scale, float& offset) {
  Scales candidates;
  Vec scales, offsets = broadcast(0.0f);
  if constexpr (Symmetric) {
    scales = through_f16(broadcast(-low >= high ? -low : -high) / load(kDivisors));
  } else {
    Vec span = broadcast(high) - broadcast(low);
    scales = through_f16(span * load(kKept) / broadcast(15.0f));
    offsets = through_f16(broadcast(low) + span * load(kBelow));
  }
  Mask zero = scales == broadcast(0.0f);
  Vec inverse = select(zero, broadcast(0.0f), broadcast(1.0f) / scales);
  Vec sums[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  Vec lowest = broadcast(Symmetric ? -8.0f : 0.0f), highest = broadcast(Symmetric ? 7.0f : 15.0f);
  int64_t i = 0;
  for (; i + 4 <= width; i += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      Vec value = broadcast(x[i + j]);
      Vec exact = (Symmetric ? value : value - offsets) * inverse;
      Vec difference = exact - min(max(round(exact), lowest), highest);
      sums[j] = sums[j] + difference * difference;
    }
  }
  for (int j = 0; i < width; ++i, ++j) {
    Vec exact = (broadcast(x[i]) - offsets) * inverse;
    Vec difference = exact - min(max(round(exact), lowest), highest);
    sums[j] = sums[j] + difference * difference;
  }
  alignas(64) float errors[kCandidates];
  store(errors, ((sums[0] + sums[1]) + (sums[2] + sums[3])) * scales * scales);
  store(candidates.scale, scales);
  store(candidates.offset, offsets);
  int best = 0;
  float least = from_bits(0x7f800000u);
  for (int c = 0; c < kCandidates; ++c) {
    if (candidates.scale[c] != 0.0f && errors[c] < least) least = errors[c], best = c;
  }
  scale = candidates.scale[best], offset = candidates.offset[best];
}

template <class T, bool Symmetric>
OCTAVO_INLINE void quantize_group(uint8_t* codes, f16* scale_out, f16* offset_out, const T* w, int64_t width) {
  alignas(64) float x[kLargestGroup];
  Vec low = broadcast(from_bits(0x7f800000u)), high = broadcast(from_bits(0xff800000u)), differences = broadcast(0.0f);
  for (int64_t i = 0; i < width; i += 16) {
    Vec v = load_up_to(w + i, width - i);
    Mask real = first_n(width - i < 16 ? int(width - i) : 16);
    store(x + i, v);
    low = min(low, select(real, v, low));
    high = max(high, select(real, v, high));
    differences = differences + (v - v);
  }
  float scale, offset;
  choose<Symmetric>(x, width, reduce_min(low), reduce_max(high), scale, offset);
  float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
  for (int64_t i = 0; i < width; i += 16) {
    Vec exact = (load(x + i) - broadcast(offset)) * broadcast(inverse);
    Vec nearest = clamp(round(exact), Symmetric ? -8.0f : 0.0f, Symmetric ? 7.0f : 15.0f);
    store_codes(codes + i, nearest + broadcast(Symmetric ? 8.0f : 0.0f), width - i);
  }
  *scale_out = to_f16(finite(differences) ? scale : from_bits(0x7fc00000u));
  if (!Symmetric) *offset_out = to_f16(offset);
}

template <class T, bool Symmetric>
void quantize_groups(const QuantizeArgs& a, int64_t group_size) {
  int64_t groups = (a.k + group_size - 1) / group_size;
  parallel_for(a.n, 1 + (16 << 10) / (a.k + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        int64_t from = g * group_size, width = a.k - from < group_size ? a.k - from : group_size;
        quantize_group<T, Symmetric>(a.codes + row * a.k + from, static_cast<f16*>(a.scales) + row * groups + g,
                                     Symmetric ? nullptr : static_cast<f16*>(a.offsets) + row * groups + g,
                                     static_cast<const T*>(a.weight) + row * a.k + from, width);
      }
    }
  });
}

template <class T>
void groups_of(const QuantizeArgs& a, int64_t group_size) {
  return a.offsets ? quantize_groups<T, false>(a, group_size) : quantize_groups<T, true>(a, group_size);
}

void groups(const QuantizeArgs& a, int64_t group_size) {
  switch (a.type) {
    case DType::kFloat32: return groups_of<float>(a, group_size);
    case DType::kBFloat16: return groups_of<bf16>(a, group_size);
    case DType::kFloat16: return groups_of<f16>(a, group_size);
  }
}

template <class T>
void rows_of(const QuantizeArgs& a) {
  parallel_for(a.n, 1 + (64 << 10) / (a.k + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* w = static_cast<const T*>(a.weight) + row * a.k;
      Vec most = broadcast(0.0f), differences = broadcast(0.0f);
      for (int64_t i = 0; i < a.k; i += 16) {
        Vec v = load_up_to(w + i, a.k - i);
        most = max(abs(v), most);
        differences = differences + (v - v);
      }
      float absmax = reduce_max(most), inverse = 127.0f / absmax;
      if (inverse == from_bits(0x7f800000u)) inverse = 0.0f;
      for (int64_t i = 0; i < a.k; i += 16) {
        Vec nearest = clamp(round(load_up_to(w + i, a.k - i) * broadcast(inverse)), -127.0f, 127.0f);
        store_codes(a.codes + row * a.k + i, nearest + broadcast(128.0f), a.k - i);
      }
      static_cast<float*>(a.scales)[row] = finite(differences) ? absmax / 127.0f : from_bits(0x7fc00000u);
    }
  });
}

void rows(const QuantizeArgs& a) {
  switch (a.type) {
    case DType::kFloat32: return rows_of<float>(a);
    case DType::kBFloat16: return rows_of<bf16>(a);
    case DType::kFloat16: return rows_of<f16>(a);
  }
}

}  // namespace

const QuantizeKernels quantize_kernels = {groups, rows};

}  // namespace octavo::OCTAVO_ISA
