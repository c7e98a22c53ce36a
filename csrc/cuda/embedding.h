// Rows of a table of any float type, as float32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "octavo/types.h"

namespace octavo::cuda {

// out[i, :] = table[ids[i], :] * scale, or += with `add`; out [count, width], table [rows, width], contiguous. An id that
// the table doesn't have gives NaN: ids are on the device, so that nobody has looked at them before.
void embedding(float* out, const int32_t* ids, const void* table, DType type, int64_t count, int64_t rows, int64_t width,
               float scale, bool add, cudaStream_t stream);

}  // namespace octavo::cuda
