// Caps, clips and gates. Each element depends on itself and its row's gate alone.
#include "octavo/kernels_elementwise.h"

#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int64_t kWorthAThread = 16 << 10;

void softcap(float* x, int64_t count, float cap) {
  const Vec up = broadcast(cap), down = broadcast(1.0f / cap);
  parallel_for((count + 15) / 16, kWorthAThread / 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int n = count - 16 * i < 16 ? int(count - 16 * i) : 16;
      store_n(x + 16 * i, up * tanh(load_n(x + 16 * i, n) * down), n);
    }
  });
}

template <class T>
OCTAVO_INLINE void clip_row(T* x, int64_t columns, float limit) {
  const Vec high = broadcast(limit), low = broadcast(-limit);
  for (int64_t i = 0; i < columns; i += 16) {
    const int n = columns - i < 16 ? int(columns - i) : 16;
    store_n(x + i, max(low, min(high, load_n(x + i, n))), n);
  }
}

void clip(void* x, bool bf16_x, int64_t stride, int64_t rows, int64_t columns, float limit) {
  parallel_for(rows, 1 + kWorthAThread / (columns + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (bf16_x) {
        clip_row(static_cast<bf16*>(x) + row * stride, columns, limit);
      } else {
        clip_row(static_cast<float*>(x) + row * stride, columns, limit);
      }
    }
  });
}

template <class T>
OCTAVO_INLINE void scale_row(T* x, int64_t columns, float factor) {
  const Vec f = broadcast(factor);
  for (int64_t i = 0; i < columns; i += 16) {
    const int n = columns - i < 16 ? int(columns - i) : 16;
    store_n(x + i, load_n(x + i, n) * f, n);
  }
}

void scale_rows(void* x, bool bf16_x, int64_t stride, int64_t rows, int64_t columns, const int32_t* positions,
                const float* table) {
  parallel_for(rows, 1 + kWorthAThread / (columns + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float factor = table[positions[row]];
      if (bf16_x) {
        scale_row(static_cast<bf16*>(x) + row * stride, columns, factor);
      } else {
        scale_row(static_cast<float*>(x) + row * stride, columns, factor);
      }
    }
  });
}

void gated_add(float* residual, const float* x, const float* gate, int64_t rows, int64_t width) {
  parallel_for(rows, 1 + kWorthAThread / (width + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Vec share = sigmoid(broadcast(gate[row]));
      float* to = residual + row * width;
      for (int64_t i = 0; i < width; i += 16) {
        const int n = width - i < 16 ? int(width - i) : 16;
        store_n(to + i, fma(share, load_n(x + row * width + i, n), load_n(to + i, n)), n);
      }
    }
  });
}

}  // namespace

const ElementwiseKernels elementwise_kernels = {softcap, clip, scale_rows, gated_add};

}  // namespace octavo::OCTAVO_ISA
