// What has no product to be fused behind: caps, clips, gates and factors, in place.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "octavo/types.h"

namespace octavo::cuda {

// x = cap * tanh(x / cap)
void softcap(float* x, int64_t count, float cap, cudaStream_t stream);

// x[row, 0:columns] = max(-limit, min(limit, x)), rows `stride` elements apart.
void clip(void* x, DType type, int64_t stride, int64_t rows, int64_t columns, float limit, cudaStream_t stream);

// x[row, 0:columns] *= table[positions[row]]; a position outside the table leaves the row as it is.
void scale_rows(void* x, DType type, int64_t stride, int64_t rows, int64_t columns, const int32_t* positions,
                const float* table, int64_t entries, cudaStream_t stream);

// residual[row, :] += sigmoid(gate[row]) * x[row, :], all contiguous.
void gated_add(float* residual, const float* x, const float* gate, int64_t rows, int64_t width, cudaStream_t stream);

}  // namespace octavo::cuda
