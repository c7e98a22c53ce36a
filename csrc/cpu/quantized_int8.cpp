// Products of 4 and 8 bit weights with activations in int8, one scale a row (Activations.INT8 and LLM_INT8).
//
// Law 6: a row is quantised by itself; its product with an output is one float32 chain over the groups of K, in order,
// whose terms are exact int32 sums, whatever rows share the tile and however panels are split between threads.
#include "octavo/kernels_quantized.h"
#include "octavo/linear_output.h"
#include "octavo/simd_int8.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

// Rows of a tile: R by 32 int32 sums and as many floats, beside the weights, must fit the registers.
#if defined(OCTAVO_ISA_AVX512)
constexpr int kRows = 6;
#elif defined(OCTAVO_ISA_AVX2)
constexpr int kRows = 2;
#else
constexpr int kRows = 1;
#endif
// Below this largest magnitude 127 / amax would leave float32's range: such a row counts as zeros.
constexpr float kTiny = 1e-36f;

// The rows of x in int8, as the kernels read them. A block of R rows lies as [step of 4 k][R], likewise the sums.
struct Rows {
  int32_t* codes;    // [m][words]
  int32_t* plain;    // the same row by row
  int32_t* start;    // [m][groups]: what the sum over a group starts from, -zero * sum of the row's codes in it
  float* sums;       // [m][groups]: the sum of the row's codes in the group; asymmetric weights only
  float* scales;     // [m]
  uint64_t* masks;   // [m][mask_words]: the elements left in float
  bool* outliers;    // [m]: whether there are any
  int64_t words, groups, mask_words;
};

struct Shape {
  int64_t words;       // 4 k each, of all groups
  int64_t groups;
  int64_t group_words;
  int64_t last_words;  // of the last group
};

OCTAVO_INLINE Shape shape_of(const QuantizedLayout& layout) {
  Shape s{};
  int64_t per_step = layout.step() / 4;
  s.groups = layout.groups();
  s.last_words = (layout.k - (s.groups - 1) * layout.group() + layout.step() - 1) / layout.step() * per_step;
  s.group_words = s.groups > 1 ? layout.group() / 4 : s.last_words;
  s.words = (s.groups - 1) * s.group_words + s.last_words;
  return s;
}

// One row to int8: its codes (padded with zeros), scale and the mask of what stays in float.
template <class X, bool kOutliers>
void quantize_row(const X* x, int64_t k, int64_t words, float threshold, int8_t* codes, float* scale, uint64_t* mask,
                  bool* any) {
  Vec limit = broadcast(threshold);
  // Zero for finite elements, NaN otherwise: a broken row must not come out as numbers.
  Vec amax = zero(), broken = zero();
  uint64_t found = 0;
  for (int64_t i = 0; i < k; i += 16) {
    Vec v = i + 16 <= k ? load(x + i) : load_n(x + i, int(k - i));
    broken = fma(v, zero(), broken);
    v = abs(v);
    if constexpr (kOutliers) {
      uint64_t out = bits(limit <= v);
      if (i % 64 == 0) mask[i / 64] = 0;
      mask[i / 64] |= out << (i % 64);
      found |= out;
      v = select(v < limit, v, zero());
    }
    amax = max(v, amax);
  }
  float most = reduce_max(amax);
  *scale = most / 127.0f + reduce_add(broken);
  Vec factor = broadcast(most >= kTiny ? 127.0f / most : 0.0f), high = broadcast(127.0f);
  for (int64_t i = 0; i < words * 4; i += 16) {
    int left = i >= k ? 0 : k - i < 16 ? int(k - i) : 16;
    Vec v = left == 16 ? load(x + i) : load_n(x + i, left);
    if constexpr (kOutliers) v = select(abs(v) < limit, v, zero());
    v = max(zero() - high, min(high, round(v * factor)));
    if (i + 16 <= words * 4) {
      store_int8(codes + i, v);
    } else {
      int8_t tail[16];
      store_int8(tail, v);
      for (int64_t j = 0; j < words * 4 - i; ++j) codes[i + j] = tail[j];
    }
  }
  if constexpr (kOutliers) *any = found != 0;
}

template <class X, bool kOutliers>
void quantize_rows(const QuantizedArgs& g, const Shape& shape, const Rows& to, int64_t begin, int64_t end) {
  const int64_t rows = end - begin;
  const int32_t zero_code = g.layout.symmetric ? 1 << (g.layout.bits - 1) : 0;
  const int32_t weigh = (g.layout.bits == 8 ? kCodeBias : 0) - zero_code;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = begin + r;
    auto* codes = reinterpret_cast<int8_t*>(to.plain + row * to.words);
    quantize_row<X, kOutliers>(static_cast<const X*>(g.x) + row * g.x_stride, g.layout.k, to.words, g.threshold, codes,
                               to.scales + row, to.masks + row * to.mask_words, to.outliers + row);
    for (int64_t group = 0; group < shape.groups; ++group) {
      int64_t width = 4 * (group + 1 < shape.groups ? shape.group_words : shape.last_words);
      int32_t sum = 0;
      for (int64_t i = 0; i < width; ++i) sum += codes[i];
      codes += width;
      int64_t at = begin * shape.groups + group * rows + r;
      to.start[at] = weigh * sum;
      if (!g.layout.symmetric) to.sums[at] = float(sum);
    }
  }
  int32_t* packed = to.codes + begin * to.words;
  const int32_t* plain = to.plain + begin * to.words;
  if (packed == plain) return;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < to.words; ++i) packed[i * rows + r] = plain[r * to.words + i];
  }
}

template <bool kRow>
OCTAVO_INLINE Vec load_scale(const uint8_t* p) {
  if constexpr (kRow) {
    return load(reinterpret_cast<const float*>(p));
  } else {
    return load(reinterpret_cast<const f16*>(p));
  }
}

// tile[r][0:32] = sum over groups of scale * int32 sum (+ offset * sum of activations), not yet times the row's scale.
template <int kBits, bool kSymmetric, bool kRow, int R>
__attribute__((noinline)) void micro_kernel(const int32_t* OCTAVO_RESTRICT a, const int32_t* OCTAVO_RESTRICT start,
                  const float* OCTAVO_RESTRICT sums, const uint8_t* OCTAVO_RESTRICT w, const Shape& shape,
                  float* OCTAVO_RESTRICT tile) {
  constexpr int64_t kScale = kRow ? 64 : 32;
  Vec total[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = zero();
  for (int64_t group = 0; group < shape.groups; ++group) {
    IntVec acc[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = broadcast_int(start[r]);
    const int64_t words = group + 1 < shape.groups ? shape.group_words : shape.last_words;
    const int32_t* end = a + words * R;
    while (a != end) {
      if constexpr (kBits == 4) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
          Nibbles codes = load_codes4(w + 64 * j);
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) acc[r][j] = dot4(acc[r][j], codes, a + r, a + R + r);
        }
        a += 2 * R;
      } else {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
          Codes codes = load_codes8(w + 64 * j);
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) acc[r][j] = dot8(acc[r][j], codes, a + r);
        }
        a += R;
      }
      w += 128;
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      Vec scale = load_scale<kRow>(w + j * kScale);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) total[r][j] = fma(scale, to_float(acc[r][j]), total[r][j]);
    }
    w += 2 * kScale;
    if constexpr (!kSymmetric) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        Vec offset = load_scale<kRow>(w + j * kScale);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) total[r][j] = fma(offset, broadcast(sums[r]), total[r][j]);
      }
      w += 2 * kScale;
      sums += R;
    }
    start += R;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    store(tile + r * kPanel, total[r][0]);
    store(tile + r * kPanel + 16, total[r][1]);
  }
}

template <int kBits, bool kSymmetric, bool kRow, int R = kRows>
void run_micro_kernel(int rows, const int32_t* a, const int32_t* start, const float* sums, const uint8_t* w,
                      const Shape& shape, float* tile) {
  if (rows == R) return micro_kernel<kBits, kSymmetric, kRow, R>(a, start, sums, w, shape, tile);
  if constexpr (R > 1) run_micro_kernel<kBits, kSymmetric, kRow, R - 1>(rows, a, start, sums, w, shape, tile);
}

// tile += s * sum over the row's elements in float, in order, of x * (code - 128). 8 bits, one group, symmetric.
template <class X>
void add_outliers(const QuantizedArgs& g, const uint64_t* mask, int64_t mask_words, int64_t row, const uint8_t* w,
                  float* tile) {
  const X* x = static_cast<const X*>(g.x) + row * g.x_stride;
  float chain[kPanel] = {};
  for (int64_t i = 0; i < mask_words; ++i) {
    for (uint64_t left = mask[i]; left; left &= left - 1) {
      int64_t k = i * 64 + __builtin_ctzll(left);
      float value = to_float(x[k]);
      const uint8_t* line = w + k / 4 * 128 + k % 4;
      for (int n = 0; n < kPanel; ++n) chain[n] += value * (float(line[n * 4]) - 128.0f);
    }
  }
  const float* scale = reinterpret_cast<const float*>(w + g.layout.code_bytes(g.layout.k));
  for (int n = 0; n < kPanel; ++n) tile[n] += scale[n] * chain[n];
}

template <int kBits, bool kSymmetric, bool kRow>
void compute(const QuantizedArgs& g, const Shape& shape, const Rows& x) {
  const int64_t panels = g.layout.panels(), blocks = (g.m + kRows - 1) / kRows, bytes = g.layout.panel_bytes();
  parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float tile[kRows * kPanel];
    for (int64_t panel = begin; panel < end; ++panel) {
      const uint8_t* w = g.weight + panel * bytes;
      for (int64_t block = 0; block < blocks; ++block) {
        int64_t row = g.m * block / blocks;
        int rows = int(g.m * (block + 1) / blocks - row);
        run_micro_kernel<kBits, kSymmetric, kRow>(rows, x.codes + row * x.words, x.start + row * x.groups,
                                                  x.sums + row * x.groups, w, shape, tile);
        for (int r = 0; r < rows; ++r) {
          Vec scale = broadcast(x.scales[row + r]);
          store(tile + r * kPanel, load(tile + r * kPanel) * scale);
          store(tile + r * kPanel + 16, load(tile + r * kPanel + 16) * scale);
          if (!g.outliers || !x.outliers[row + r]) continue;
          auto* mask = x.masks + (row + r) * x.mask_words;
          if (g.x_bf16) {
            add_outliers<bf16>(g, mask, x.mask_words, row + r, w, tile + r * kPanel);
          } else {
            add_outliers<float>(g, mask, x.mask_words, row + r, w, tile + r * kPanel);
          }
        }
        write_tile(g.y, tile, row, rows, panel);
      }
    }
  });
}

void linear(const QuantizedArgs& g) {
  if (g.m == 0 || g.layout.n == 0) return;
  const Shape shape = shape_of(g.layout);
  Rows x{};
  x.words = shape.words;
  x.groups = shape.groups;
  x.mask_words = g.outliers ? (g.layout.k + 63) / 64 : 0;
  // Each part begins on a line of its own.
  auto lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  int64_t codes = lines(g.m * x.words * 4), per_group = lines(g.m * x.groups * 4);
  int64_t masks = lines(g.m * x.mask_words * 8), per_row = lines(g.m * 4);
  char* at = static_cast<char*>(thread_scratch(size_t(2 * codes + 2 * per_group + masks + 2 * per_row)));
  x.codes = reinterpret_cast<int32_t*>(at);
  x.plain = reinterpret_cast<int32_t*>(g.m == 1 ? at : at + codes);
  x.start = reinterpret_cast<int32_t*>(at += 2 * codes);
  x.sums = reinterpret_cast<float*>(at += per_group);
  x.masks = reinterpret_cast<uint64_t*>(at += per_group);
  x.scales = reinterpret_cast<float*>(at += masks);
  x.outliers = reinterpret_cast<bool*>(at += per_row);

  const int64_t blocks = (g.m + kRows - 1) / kRows;
  parallel_for(blocks, 1 + (16 << 10) / (kRows * g.layout.k), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t first = g.m * b / blocks, last = g.m * (b + 1) / blocks;
      if (g.x_bf16) {
        g.outliers ? quantize_rows<bf16, true>(g, shape, x, first, last)
                   : quantize_rows<bf16, false>(g, shape, x, first, last);
      } else {
        g.outliers ? quantize_rows<float, true>(g, shape, x, first, last)
                   : quantize_rows<float, false>(g, shape, x, first, last);
      }
    }
  });

  const bool row = g.layout.group_size == 0;
  if (g.layout.bits == 4) {
    if (g.layout.symmetric) return row ? compute<4, true, true>(g, shape, x) : compute<4, true, false>(g, shape, x);
    return row ? compute<4, false, true>(g, shape, x) : compute<4, false, false>(g, shape, x);
  }
  if (g.layout.symmetric) return row ? compute<8, true, true>(g, shape, x) : compute<8, true, false>(g, shape, x);
  return row ? compute<8, false, true>(g, shape, x) : compute<8, false, false>(g, shape, x);
}

}  // namespace

const QuantizedInt8Kernels quantized_int8_kernels = {linear};

}  // namespace octavo::OCTAVO_ISA
