// RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450). A row is reduced in one order whatever stands beside
// it: four lane-wise sums, then the fixed tree.
#include "octavo/kernels_norm.h"

#include "octavo/simd.h"
#include "octavo/thread_pool.h"

#define OCTAVO_LAMBDA __attribute__((always_inline))

namespace octavo::OCTAVO_ISA {
namespace {

// sum of f(x[i]); f of a lane past the end must be 0, so f gets the number of lanes that count.
template <class T, class F>
OCTAVO_INLINE float sum_row(const T* x, int64_t width, const F& f) {
  Vec sums[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 64 <= width; i += 64) {
    for (int j = 0; j < 4; ++j) sums[j] = f(sums[j], load(x + i + 16 * j), 16);
  }
  for (int j = 0; i < width; i += 16, ++j) {
    const int n = width - i < 16 ? int(width - i) : 16;
    sums[j] = f(sums[j], load_n(x + i, n), n);
  }
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// out = (x - shift) * scale * weight + bias
template <class T>
OCTAVO_INLINE void write_row(T* out, const float* x, const NormArgs& a, float shift, float scale) {
  const Vec s = broadcast(scale), m = broadcast(shift);
  for (int64_t i = 0; i < a.width; i += 16) {
    const int n = a.width - i < 16 ? int(a.width - i) : 16;
    Vec y = (load_n(x + i, n) - m) * s;
    if (a.weight) y = y * load_n(a.weight + i, n);
    if (a.bias) y = y + load_n(a.bias + i, n);
    if (n == 16) {
      store(out + i, y);
    } else {
      store_n(out + i, y, n);
    }
  }
}

OCTAVO_INLINE void write(const NormArgs& a, int64_t row, float shift, float scale) {
  const float* x = a.x + row * a.x_stride;
  if (a.out_bf16) {
    write_row(static_cast<bf16*>(a.out) + row * a.width, x, a, shift, scale);
  } else {
    write_row(static_cast<float*>(a.out) + row * a.width, x, a, shift, scale);
  }
}

OCTAVO_INLINE int64_t rows_worth_a_thread(const NormArgs& a) { return 1 + 16384 / (a.width + 1); }

void rms_norm(const NormArgs& a) {
  parallel_for(a.rows, rows_worth_a_thread(a), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = a.x + row * a.x_stride;
      const float squares = sum_row(x, a.width, [](Vec sum, Vec v, int) OCTAVO_LAMBDA { return fma(v, v, sum); });
      write(a, row, 0.0f, 1.0f / __builtin_sqrtf(squares / float(a.width) + a.eps));
    }
  });
}

void rms_norm_add(const NormArgs& a) {
  parallel_for(a.rows, rows_worth_a_thread(a), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = a.x + row * a.x_stride;
      float* out = static_cast<float*>(a.out) + row * a.width;
      const float squares = sum_row(x, a.width, [](Vec sum, Vec v, int) OCTAVO_LAMBDA { return fma(v, v, sum); });
      const Vec scale = broadcast(1.0f / __builtin_sqrtf(squares / float(a.width) + a.eps));
      for (int64_t i = 0; i < a.width; i += 16) {
        const int n = a.width - i < 16 ? int(a.width - i) : 16;
        store_n(out + i, load_n(out + i, n) + load_n(x + i, n) * scale * load_n(a.weight + i, n), n);
      }
    }
  });
}

void layer_norm(const NormArgs& a) {
  parallel_for(a.rows, rows_worth_a_thread(a), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = a.x + row * a.x_stride;
      const float mean = sum_row(x, a.width, [](Vec sum, Vec v, int) OCTAVO_LAMBDA { return sum + v; }) / float(a.width);
      const Vec shift = broadcast(mean);
      const float squares = sum_row(x, a.width, [shift](Vec sum, Vec v, int n) OCTAVO_LAMBDA {
        const Vec d = n == 16 ? v - shift : select(first_n(n), v - shift, zero());
        return fma(d, d, sum);
      });
      write(a, row, mean, 1.0f / __builtin_sqrtf(squares / float(a.width) + a.eps));
    }
  });
}

template <class T>
OCTAVO_INLINE void head_norm_group(T* x, const float* weight, const float* bias, const HeadNormArgs& a) {
  float mean = 0.0f;
  if (a.centred) {
    mean = sum_row(x, a.size, [](Vec sum, Vec v, int) OCTAVO_LAMBDA { return sum + v; }) / float(a.size);
  }
  const Vec shift = broadcast(mean);
  const float squares = sum_row(x, a.size, [shift](Vec sum, Vec v, int n) OCTAVO_LAMBDA {
    const Vec d = n == 16 ? v - shift : select(first_n(n), v - shift, zero());
    return fma(d, d, sum);
  });
  const Vec scale = broadcast(1.0f / __builtin_sqrtf(squares / float(a.size) + a.eps));
  for (int64_t i = 0; i < a.size; i += 16) {
    const int n = a.size - i < 16 ? int(a.size - i) : 16;
    Vec y = (load_n(x + i, n) - shift) * scale * load_n(weight + i, n);
    if (bias) y = y + load_n(bias + i, n);
    store_n(x + i, y, n);
  }
}

template <class T>
void head_norm_typed(const HeadNormArgs& a) {
  const int64_t width = a.groups * a.size;
  parallel_for(a.rows, 1 + 16384 / (width + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t at = 0; at < width; at += a.size) {
        T* x = static_cast<T*>(a.x) + row * a.stride + at;
        head_norm_group(x, a.weight + at, a.bias ? a.bias + at : nullptr, a);
      }
    }
  });
}

void head_norm(const HeadNormArgs& a) {
  if (a.bf16) return head_norm_typed<bf16>(a);
  head_norm_typed<float>(a);
}

}  // namespace

const NormKernels norm_kernels = {rms_norm, layer_norm, rms_norm_add, head_norm};

}  // namespace octavo::OCTAVO_ISA
