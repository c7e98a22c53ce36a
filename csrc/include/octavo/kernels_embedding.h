// Row lookup.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

struct EmbeddingKernels {
  // out[t, :] = table[ids[t], :] * scale, out float32 [rows, width]; ids were checked.
  void (*embedding)(float* out, const int32_t* ids, const void* table, DType type, int64_t rows, int64_t width, float scale);
  // out[t, :] += table[ids[t], :] * scale.
  void (*embedding_add)(float* out, const int32_t* ids, const void* table, DType type, int64_t rows, int64_t width,
                        float scale);
  // The first out of a packed weight, [panels, ceil(width/p), 32, p].
  void (*embedding_packed)(float* out, const int32_t* ids, const void* packed, DType type, int64_t rows, int64_t width,
                           float scale);
};

OCTAVO_KERNELS(EmbeddingKernels, embedding_kernels)

}  // namespace octavo
