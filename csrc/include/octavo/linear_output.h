// What happens to a finished tile of a matrix product: bias, activation, gating, and where it goes. Every kernel of
// Ops.linear ends in write_tile, so that all weight formats agree to the bit on everything behind the product.
#pragma once

#include "octavo/kernels_linear.h"
#include "octavo/simd.h"

namespace octavo::OCTAVO_ISA {

constexpr int kPanel = 32;  // outputs of a packed weight's panel

OCTAVO_INLINE Vec activate(Vec x, Activation act) {
  switch (act) {
    case Activation::kRelu: return max(x, zero());
    case Activation::kGelu: {
      Vec half = x * broadcast(0.5f);
      return fma(half, erf(x * broadcast(0.707106781f)), half);
    }
    case Activation::kGeluTanh: {
      Vec half = x * broadcast(0.5f);
      Vec inner = fma(x * x * x, broadcast(0.044715f), x) * broadcast(0.797884561f);
      return fma(half, tanh(inner), half);
    }
    case Activation::kSilu: return x / (broadcast(1.0f) + exp(zero() - x));
    default: return x;
  }
}

OCTAVO_INLINE int lanes_left(int64_t size, int64_t start) {
  int64_t left = size - start;
  return left >= 16 ? 16 : left > 0 ? int(left) : 0;
}

OCTAVO_INLINE void emit(const LinearOutput& g, int64_t row, int64_t column, Vec v, int lanes) {
  int64_t at = row * g.out_stride + column;
  if (g.out_bf16) return store_n(static_cast<bf16*>(g.out) + at, v, lanes);
  float* out = static_cast<float*>(g.out) + at;
  if (g.accumulate) v = load_n(out, lanes) + v;
  store_n(out, v, lanes);
}

// tile [rows][32] of one panel, finished but for the bias, to rows row.. of the output.
OCTAVO_INLINE void write_tile(const LinearOutput& g, const float* tile, int64_t row, int rows, int64_t panel) {
  if (g.gated) {
    int64_t half = g.n / 2, column = panel * 16;
    int lanes = lanes_left(half, column);
    Vec gate_bias = g.bias ? load_n(g.bias + column, lanes) : zero();
    Vec up_bias = g.bias ? load_n(g.bias + half + column, lanes) : zero();
    for (int r = 0; r < rows; ++r, tile += kPanel) {
      emit(g, row + r, column, activate(load(tile) + gate_bias, g.act) * (load(tile + 16) + up_bias), lanes);
    }
    return;
  }
  int64_t column = panel * kPanel;
  int lanes0 = lanes_left(g.n, column), lanes1 = lanes_left(g.n, column + 16);
  Vec bias0 = g.bias ? load_n(g.bias + column, lanes0) : zero();
  Vec bias1 = g.bias && lanes1 ? load_n(g.bias + column + 16, lanes1) : zero();
  for (int r = 0; r < rows; ++r, tile += kPanel) {
    emit(g, row + r, column, activate(load(tile) + bias0, g.act), lanes0);
    if (lanes1) emit(g, row + r, column + 16, activate(load(tile + 16) + bias1, g.act), lanes1);
  }
}

}  // namespace octavo::OCTAVO_ISA
