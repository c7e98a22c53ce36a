// Weights of 4 and 8 bits between their plain form and panels, and single rows read out of panels (QuantizedLayout).
#include "octavo/kernels_quantized.h"
#include "octavo/linear_output.h"
#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

// The row of the plain matrix in lane `lane` of a panel, or -1 for padding.
OCTAVO_INLINE int64_t source_row(const QuantizedPackArgs& g, int64_t panel, int lane) {
  if (!g.gated) {
    int64_t row = panel * kPanel + lane;
    return row < g.layout.n ? row : -1;
  }
  int64_t half = g.layout.n / 2, output = panel * 16 + lane % 16;
  return output >= half ? -1 : lane < 16 ? output : half + output;
}

// Lane `lane`'s four bytes of step `step`, out of a group's codes.
template <class Byte>
OCTAVO_INLINE Byte* lane_bytes(Byte* codes, int64_t step, int lane) {
  return codes + step * 128 + lane * 4;
}

OCTAVO_INLINE void pack_row4(uint8_t* codes, int lane, const uint8_t* from, int64_t width) {
  constexpr uint8_t zero = 8;
  for (int64_t s = 0; s * 8 < width; ++s) {
    uint8_t eight[8];
    for (int i = 0; i < 8; ++i) eight[i] = s * 8 + i < width ? from[s * 8 + i] : zero;
    uint8_t* to = lane_bytes(codes, s, lane);
    for (int i = 0; i < 4; ++i) to[i] = uint8_t((eight[i] & 15) | eight[4 + i] << 4);
  }
}

OCTAVO_INLINE void pack_row8(uint8_t* codes, int lane, const uint8_t* from, int64_t width) {
  constexpr uint8_t zero = 128;
  for (int64_t s = 0; s * 4 < width; ++s) {
    uint8_t* to = lane_bytes(codes, s, lane);
    for (int i = 0; i < 4; ++i) to[i] = s * 4 + i < width ? from[s * 4 + i] : zero;
  }
}

OCTAVO_INLINE uint8_t code_at(const uint8_t* codes, int bits, int lane, int64_t k) {
  if (bits == 8) return lane_bytes(codes, k / 4, lane)[k % 4];
  return uint8_t(lane_bytes(codes, k / 8, lane)[k % 4] >> (k % 8 / 4 * 4) & 15);
}

// body(group, first k, its width, its bytes in the panel).
template <class Body>
OCTAVO_INLINE void for_groups(const QuantizedLayout& layout, int64_t panel_at, const Body& body) {
  int64_t groups = layout.groups(), size = layout.group(), at = panel_at;
  for (int64_t g = 0; g < groups; ++g) {
    int64_t begin = g * size, width = layout.k - begin < size ? layout.k - begin : size;
    body(g, begin, width, at);
    at += layout.group_bytes(width);
  }
}

// One scale or offset: uint16_t for float16, uint32_t for float32.
template <class E>
void pack_typed(const QuantizedPackArgs& g) {
  const QuantizedLayout layout = g.layout;
  const int64_t bytes = layout.panel_bytes(), groups = layout.groups();
  parallel_for(layout.panels(), 1 + (16 << 10) / (bytes + 1), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for_groups(layout, panel * bytes, [&](int64_t group, int64_t first, int64_t width, int64_t at) {
        uint8_t* codes = g.packed + at;
        E* scales = reinterpret_cast<E*>(codes + layout.code_bytes(width));
        E* offsets = scales + kPanel;
        for (int lane = 0; lane < kPanel; ++lane) {
          int64_t row = source_row(g, panel, lane);
          if (row < 0) {
            for (int64_t s = 0; s * layout.step() < width; ++s) __builtin_memset(lane_bytes(codes, s, lane), 0, 4);
            scales[lane] = 0;
            if (!layout.symmetric) offsets[lane] = 0;
            continue;
          }
          const uint8_t* from = g.codes + row * layout.k + first;
          if (layout.bits == 4) {
            pack_row4(codes, lane, from, width);
          } else {
            pack_row8(codes, lane, from, width);
          }
          scales[lane] = static_cast<const E*>(g.scales)[row * groups + group];
          if (!layout.symmetric) offsets[lane] = static_cast<const E*>(g.offsets)[row * groups + group];
        }
      });
    }
  });
}

template <class E>
void unpack_typed(const QuantizedPackArgs& g) {
  const QuantizedLayout layout = g.layout;
  const int64_t bytes = layout.panel_bytes(), groups = layout.groups();
  parallel_for(layout.panels(), 1 + (16 << 10) / (bytes + 1), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for_groups(layout, panel * bytes, [&](int64_t group, int64_t first, int64_t width, int64_t at) {
        const uint8_t* codes = g.packed + at;
        const E* scales = reinterpret_cast<const E*>(codes + layout.code_bytes(width));
        for (int lane = 0; lane < kPanel; ++lane) {
          int64_t row = source_row(g, panel, lane);
          if (row < 0) continue;
          uint8_t* to = g.codes + row * layout.k + first;
          for (int64_t k = 0; k < width; ++k) to[k] = code_at(codes, layout.bits, lane, k);
          static_cast<E*>(g.scales)[row * groups + group] = scales[lane];
          if (!layout.symmetric) static_cast<E*>(g.offsets)[row * groups + group] = scales[kPanel + lane];
        }
      });
    }
  });
}

void pack(const QuantizedPackArgs& g) { g.layout.group_size ? pack_typed<uint16_t>(g) : pack_typed<uint32_t>(g); }
void unpack(const QuantizedPackArgs& g) { g.layout.group_size ? unpack_typed<uint16_t>(g) : unpack_typed<uint32_t>(g); }

template <class S>
void lookup(float* out, const int32_t* ids, int64_t rows, const uint8_t* packed, const QuantizedLayout& layout,
            float scale) {
  const int64_t bytes = layout.panel_bytes();
  const float zero = layout.symmetric ? float(1 << (layout.bits - 1)) : 0.0f;
  parallel_for(rows, 1 + (4 << 10) / (layout.k + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int lane = ids[row] % kPanel;
      float* to = out + row * layout.k;
      for_groups(layout, ids[row] / kPanel * bytes, [&](int64_t, int64_t first, int64_t width, int64_t at) {
        const uint8_t* codes = packed + at;
        const S* scales = reinterpret_cast<const S*>(codes + layout.code_bytes(width));
        float s = to_float(scales[lane]), offset = layout.symmetric ? 0.0f : to_float(scales[kPanel + lane]);
        for (int64_t k = 0; k < width; ++k) {
          to[first + k] = (s * (float(code_at(codes, layout.bits, lane, k)) - zero) + offset) * scale;
        }
      });
    }
  });
}

void embedding(float* out, const int32_t* ids, int64_t rows, const uint8_t* packed, const QuantizedLayout& layout,
               float scale) {
  if (layout.group_size) return lookup<f16>(out, ids, rows, packed, layout, scale);
  lookup<float>(out, ids, rows, packed, layout, scale);
}

}  // namespace

const QuantizedPackKernels quantized_pack_kernels = {pack, unpack, embedding};

}  // namespace octavo::OCTAVO_ISA
