// Row lookup: one conversion and one multiplication an element.
#include "octavo/kernels_embedding.h"

#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

template <bool kAdd, class T>
void lookup(float* out, const int32_t* ids, const T* table, int64_t rows, int64_t width, float scale) {
  parallel_for(rows, 1 + (16 << 10) / (width + 1), [&](int64_t begin, int64_t end) {
    Vec factor = broadcast(scale);
    for (int64_t row = begin; row < end; ++row) {
      const T* from = table + ids[row] * width;
      float* to = out + row * width;
      for (int64_t i = 0; i < width; i += 16) {
        const int n = width - i < 16 ? int(width - i) : 16;
        Vec x = load_n(from + i, n) * factor;
        if (kAdd) x = load_n(to + i, n) + x;
        if (n == 16) {
          store(to + i, x);
        } else {
          store_n(to + i, x, n);
        }
      }
    }
  });
}

template <bool kAdd>
void embedding(float* out, const int32_t* ids, const void* table, DType type, int64_t rows, int64_t width,
               float scale) {
  switch (type) {
    case DType::kFloat32: return lookup<kAdd>(out, ids, static_cast<const float*>(table), rows, width, scale);
    case DType::kBFloat16: return lookup<kAdd>(out, ids, static_cast<const bf16*>(table), rows, width, scale);
    case DType::kFloat16: return lookup<kAdd>(out, ids, static_cast<const f16*>(table), rows, width, scale);
  }
}

// A row's elements lie p at a time, a panel's width apart: slower than a plain row, and nothing beside the head's own
// product, for which the table is packed. It saves a second copy of a tied embedding.
template <int P, class T>
void lookup_packed(float* out, const int32_t* ids, const T* packed, int64_t rows, int64_t width, float scale) {
  constexpr int64_t kPanel = 32;
  int64_t lines = (width + P - 1) / P;
  parallel_for(rows, 1 + (4 << 10) / (width + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = packed + (ids[row] / kPanel * lines * kPanel + ids[row] % kPanel) * P;
      float* to = out + row * width;
      for (int64_t i = 0; i < width; ++i) to[i] = to_float(from[i / P * kPanel * P + i % P]) * scale;
    }
  });
}

void embedding_packed(float* out, const int32_t* ids, const void* packed, DType type, int64_t rows, int64_t width,
                      float scale) {
  switch (type) {
    case DType::kFloat32: return lookup_packed<1>(out, ids, static_cast<const float*>(packed), rows, width, scale);
    case DType::kBFloat16: return lookup_packed<2>(out, ids, static_cast<const bf16*>(packed), rows, width, scale);
    case DType::kFloat16: return lookup_packed<1>(out, ids, static_cast<const f16*>(packed), rows, width, scale);
  }
}

}  // namespace

const EmbeddingKernels embedding_kernels = {embedding<false>, embedding<true>, embedding_packed};

}  // namespace octavo::OCTAVO_ISA
