// float32 to bfloat16, for the few places where the residual stream itself is an activation (no norm in between).
#include "octavo/kernels_cast.h"

#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

void cast_bf16(void* out, const float* x, int64_t x_stride, int64_t rows, int64_t width) {
  parallel_for(rows, 1 + (32 << 10) / (width + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = x + row * x_stride;
      bf16* to = static_cast<bf16*>(out) + row * width;
      int64_t i = 0;
      for (; i + 16 <= width; i += 16) store(to + i, load(from + i));
      if (i < width) store_n(to + i, load_n(from + i, int(width - i)), int(width - i));
    }
  });
}

}  // namespace

const CastKernels cast_kernels = {cast_bf16};

}  // namespace octavo::OCTAVO_ISA
