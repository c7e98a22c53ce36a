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
    case Activation::kSilu: return silu(x);
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

// How a tile leaves. All but kTile go straight from a micro-kernel's registers, for a panel of 32 outputs and no
// activation; what they write is what write_tile writes, to the bit. (Through a tile, with masks and a branch a row,
// the end of a product of k = 576 cost 2 to 3 %.)
enum class Finish { kTile, kBFloat16, kFloat32, kAdd };

OCTAVO_INLINE Finish finish_of(const LinearOutput& g, int64_t panel) {
  if (g.gated || g.act != Activation::kNone || (panel + 1) * kPanel > g.n) return Finish::kTile;
  return g.out_bf16 ? Finish::kBFloat16 : g.accumulate ? Finish::kAdd : Finish::kFloat32;
}

// The place of one panel's first row; kTile has stride kPanel and no bias.
struct PanelOutput {
  void* at;
  int64_t stride;
  const float* bias;  // of this panel, or null
};

OCTAVO_INLINE PanelOutput panel_output(const LinearOutput& g, int64_t row, int64_t panel) {
  int64_t at = row * g.out_stride + panel * kPanel;
  void* out = g.out_bf16 ? static_cast<void*>(static_cast<bf16*>(g.out) + at) : static_cast<float*>(g.out) + at;
  return {out, g.out_stride, g.bias ? g.bias + panel * kPanel : nullptr};
}

// Of L lines of 16 outputs each: a panel, or half of one.
template <Finish F, int R, int L>
OCTAVO_INLINE void finish(const PanelOutput& y, const Vec (&acc)[R][L]) {
#pragma GCC unroll 2
  for (int l = 0; l < L; ++l) {
    const Vec bias = F != Finish::kTile && y.bias ? load(y.bias + 16 * l) : zero();
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* out = static_cast<float*>(y.at) + r * y.stride + 16 * l;
      if constexpr (F == Finish::kTile) {
        store(out, acc[r][l]);
      } else if constexpr (F == Finish::kBFloat16) {
        store(static_cast<bf16*>(y.at) + r * y.stride + 16 * l, acc[r][l] + bias);
      } else if constexpr (F == Finish::kFloat32) {
        store(out, acc[r][l] + bias);
      } else {
        store(out, load(out) + (acc[r][l] + bias));
      }
    }
  }
}

// Before a tile whose output is not in L2: the lines come while the micro-kernel runs. (8 rows, whose output is in L2
// anyway, were 3 % slower with it.)
OCTAVO_INLINE void prefetch_output(const LinearOutput& g, int64_t m, int64_t row, int rows, int64_t panel) {
  const int64_t size = g.out_bf16 ? sizeof(bf16) : sizeof(float), columns = g.gated ? kPanel / 2 : kPanel;
  if (m * g.out_stride * size < 384 << 10) return;
  auto* line = static_cast<const char*>(g.out) + (row * g.out_stride + panel * columns) * size;
  for (int r = 0; r < rows; ++r, line += g.out_stride * size) {
    __builtin_prefetch(line, 1, 3);
    if (!g.out_bf16) __builtin_prefetch(line + 64, 1, 3);
  }
}

// tile [rows][32] of one panel, finished but for the bias, to rows row.. of the output.
OCTAVO_INLINE void write_tile(const LinearOutput& g, const float* tile, int64_t row, int rows, int64_t panel) {
  if (g.gated) {
    int64_t half = g.n / 2, column = panel * 16;
    int lanes = lanes_left(half, column);
    Vec gate_bias = g.bias ? load_n(g.bias + column, lanes) : zero();
    Vec up_bias = g.bias ? load_n(g.bias + half + column, lanes) : zero();
    if (lanes == 16 && g.act == Activation::kSilu && g.out_bf16) {
      // Without masks and branches: 0.6 % of a product of k = 576.
      bf16* out = static_cast<bf16*>(g.out) + row * g.out_stride + column;
      for (int r = 0; r < rows; ++r, tile += kPanel, out += g.out_stride) {
        store(out, silu(load(tile) + gate_bias) * (load(tile + 16) + up_bias));
      }
      return;
    }
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
