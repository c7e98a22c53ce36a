// Products of 4 and 8 bit weights with activations in float: each weight is dequantised where it is used.
#include "octavo/kernels_quantized.h"
#include "octavo/linear_output.h"
#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

template <class X, class S>
void linear_typed(const QuantizedArgs& g) {
  const QuantizedLayout& layout = g.layout;
  const int64_t bytes = layout.panel_bytes();
  const float zero_code = layout.symmetric ? float(1 << (layout.bits - 1)) : 0.0f;
  parallel_for(layout.panels(), 1, [&](int64_t begin, int64_t end) {
    alignas(64) float tile[kPanel];
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t row = 0; row < g.m; ++row) {
        const X* x = static_cast<const X*>(g.x) + row * g.x_stride;
        for (int n = 0; n < kPanel; ++n) tile[n] = 0.0f;
        const uint8_t* w = g.weight + panel * bytes;
        for (int64_t first = 0; first < layout.k; first += layout.group()) {
          int64_t width = layout.k - first < layout.group() ? layout.k - first : layout.group();
          const S* scales = reinterpret_cast<const S*>(w + layout.code_bytes(width));
          for (int64_t k = 0; k < width; ++k) {
            float value = to_float(x[first + k]);
            for (int n = 0; n < kPanel; ++n) {
              const uint8_t* lane = w + k / layout.step() * 128 + n * 4;
              int code = layout.bits == 8 ? lane[k % 4] : lane[k % 4] >> (k % 8 / 4 * 4) & 15;
              float offset = layout.symmetric ? 0.0f : to_float(scales[kPanel + n]);
              tile[n] += value * (to_float(scales[n]) * (float(code) - zero_code) + offset);
            }
          }
          w += layout.group_bytes(width);
        }
        write_tile(g.y, tile, row, 1, panel);
      }
    }
  });
}

void linear(const QuantizedArgs& g) {
  if (g.x_bf16) return g.layout.group_size ? linear_typed<bf16, f16>(g) : linear_typed<bf16, float>(g);
  g.layout.group_size ? linear_typed<float, f16>(g) : linear_typed<float, float>(g);
}

}  // namespace

const QuantizedFloatKernels quantized_float_kernels = {linear};

}  // namespace octavo::OCTAVO_ISA
