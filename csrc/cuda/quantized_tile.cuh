// What the tensor core kernels on packed weights share (layout in quantized.h): the ring of codes, the sum over slices
// of K, and what happens to a finished sum.
//
// A block of kWarps warps makes 32 kWarps outputs (two tiles a warp) of 8 kTokenTiles tokens, over one slice of K.
// Warps divide the outputs and never K: an output's sum is one chain a slice, the same in every instance of a kernel,
// and tokens are columns of the mma, which do not meet. Hence law 6: a token's result is the same to the bit in any
// batch.
#pragma once

#include "activation.cuh"
#include "experts.cuh"
#include "prim.cuh"
#include "quantized.h"

namespace octavo::cuda {

// kLess: half the ring and half the chunks of x, for devices of kLeastShared.
template <int kBits, int kTokenTiles, bool kLess>
struct QuantizedShape {
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kWarps = kTokenTiles == 1 ? 4 : 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTiles = 2 * kWarps;  // of a block
  static constexpr int kPlanes = kBits / 4;
  static constexpr int kSlots = (kLess ? 4 : 8) / kPlanes;  // units in flight
  static constexpr int kRingBytes = kSlots * 2 * kPlanes * kThreads * 16;
  static constexpr int kSumsBytes = 2 * kTokenTiles * kThreads * 16;  // which take the ring's place, and more if they must
  static constexpr int kChunk = kLess ? 4 : kTokenTiles == 1 ? 16 : 8;  // units of x in shared memory at a time
  // Stacks of experts' weights: where there are registers left for a row's place.
  static constexpr bool kExperts = kTokenTiles == 1 || kTokenTiles == 8;
  // Blocks of an SM that the compiler must leave registers for.
  static constexpr int kBlocks = kTokenTiles == 1 ? 4 : kTokenTiles <= 4 ? 2 : 1;
};

// Where a block and its threads work. Token tiles are the fastest part of the grid, so that they share weights in L2.
struct QuantizedPlace {
  int warp, lane, g, t;
  int tile;        // the warp's first
  int stack;       // the tile with which the block's weight begins in a stack of them, else 0
  int token;       // the block's first, of the launch's at most kLaunchRows
  int tokens;      // of the block that exist, may exceed its size; none or fewer: it has nothing to do
  int slice, first_unit, units;
};

template <class Shape>
OCTAVO_DEVICE bool has_experts(const QuantizedArgs& a) {
  return Shape::kExperts && a.experts.blocks;
}
// The row of x of row i of the launch.
template <class Shape>
OCTAVO_DEVICE int64_t x_row_of(const QuantizedArgs& a, int64_t i) {
  return Shape::kExperts ? x_row(a.experts, i) : i;
}

template <class Shape>
OCTAVO_DEVICE QuantizedPlace place(const QuantizedArgs& a, int thread) {
  QuantizedPlace p;
  p.warp = thread / 32;
  p.lane = thread % 32;
  p.g = p.lane / 4;
  p.t = p.lane % 4;
  p.tile = int(blockIdx.z) * Shape::kTiles + p.warp * 2;
  if (has_experts<Shape>(a)) {
    const int4 block = expert_block<Shape::kTokens>(a.experts, int(blockIdx.x));
    p.stack = block.x * int(a.layout.tiles());
    p.token = block.y;
    p.tokens = block.z;
  } else {
    p.stack = 0;
    p.token = int(blockIdx.x) * Shape::kTokens;
    p.tokens = int(a.m) - p.token;
  }
  p.slice = int(blockIdx.y);
  p.first_unit = p.slice * a.slice_units;
  p.units = min(a.slice_units, int(a.layout.units()) - p.first_unit);
  return p;
}

// The warp's tile r, the last one if there is none.
OCTAVO_DEVICE const uint8_t* tile_of(const QuantizedArgs& a, const QuantizedPlace& p, int r) {
  return a.weight + int64_t(p.stack + min(p.tile + r, a.tiles - 1)) * a.tile_bytes;
}

// Code k of row `row` of a tile, one by one.
OCTAVO_DEVICE int read_code(const QuantizedLayout& layout, const uint8_t* tile, int row, int64_t k) {
  const int in_unit = int(k % 64), f = in_unit / 32 * 2 + in_unit % 8 / 4, lane = row % 8 * 4 + in_unit % 32 / 8;
  const int shift = 4 * (row / 8 + in_unit % 4 / 2 * 2 + in_unit % 2 * 4);
  const uint8_t* at = tile + k / 64 * layout.unit_bytes() + lane * 16 + f * 4;
  int code = int(*reinterpret_cast<const uint32_t*>(at) >> shift & 15);
  if (layout.bits == 8) code |= int(*reinterpret_cast<const uint32_t*>(at + 512) >> shift & 15) << 4;
  return code;
}

// The codes of a warp's two tiles on their way through shared memory. A thread copies and reads back its own 16 bytes
// of every piece, so the ring needs no barrier; it holds kSlots units, whatever registers cost. Beyond the last tile
// it holds that one once more, and its sums are never stored.
// Units come in parts of kPart, all or half of the ring's, so that within one all addresses are constants apart.
template <class Shape, int kPart = Shape::kSlots>
struct CodeRing {
  static_assert(kPart == Shape::kSlots || 2 * kPart == Shape::kSlots);
  static constexpr int kPieces = 2 * Shape::kPlanes, kSlotBytes = kPieces * Shape::kThreads * 16;
  static constexpr int kUnitBytes = 512 * Shape::kPlanes;  // of a tile

  unsigned char* own;
  unsigned char *slots, *before;  // of the part at hand, and the last of the part before it
  const uint8_t* next[2];         // what is fetched when its first unit is taken
  int left;                       // units of the part and behind it

  OCTAVO_DEVICE CodeRing(const QuantizedArgs& a, const QuantizedPlace& p, unsigned char* ring) {
    own = ring + threadIdx.x * 16;
    begin_part(0);
    left = p.units;
#pragma unroll
    for (int r = 0; r < 2; ++r) next[r] = tile_of(a, p, r) + (p.first_unit + kAhead) * kUnitBytes + p.lane * 16;
    // The last of an odd number of units may be taken with one that does not exist, and nobody fetches.
    if (left % 2 && left < Shape::kSlots) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        *reinterpret_cast<uint4*>(own + left * kSlotBytes + i * Shape::kThreads * 16) = uint4{};
      }
    }
  }

  // At first all slots but one: some before pdl_wait, for weights are there from the start, and after it x, then the
  // others, so that nobody waits for the whole ring when x has come.
  static constexpr int kAhead = Shape::kSlots - 1, kLate = Shape::kSlots / 2 - (kPart == Shape::kSlots);
  static constexpr int kEarly = kAhead - kLate;

  OCTAVO_DEVICE void fill_early() {
#pragma unroll
    for (int slot = 0; slot < kEarly; ++slot) fetch(slot, own + slot * kSlotBytes);
  }
  OCTAVO_DEVICE void fill_late() {
#pragma unroll
    for (int slot = kEarly; slot < kAhead; ++slot) fetch(slot, own + slot * kSlotBytes);
  }

  // Unit i of the part at hand or beyond it, if there is one, into a slot that this thread has read.
  OCTAVO_DEVICE void fetch(int i, unsigned char* to) {
    if (i < left) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int plane = 0; plane < Shape::kPlanes; ++plane) {
          cp_async<16>(to + (r * Shape::kPlanes + plane) * Shape::kThreads * 16,
                       next[r] + ((i - kAhead) * kUnitBytes + plane * 512));
        }
      }
    }
    cp_commit();
  }

  // Unit i of the part, the oldest one, after the one before it has made room for another. kOthers: a part of x was
  // fetched too, in a group of its own, before the part's first unit was taken.
  template <bool kOthers = false>
  OCTAVO_DEVICE void take(uint4 (&codes)[2][Shape::kPlanes], int i) {
    fetch(i + kAhead, i ? slots + (i - 1) * kSlotBytes : before);
    if (kOthers && i < kAhead) {
      cp_wait<kAhead + 1>();
    } else {
      cp_wait<kAhead>();
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int plane = 0; plane < Shape::kPlanes; ++plane) {
        codes[r][plane] = *reinterpret_cast<const uint4*>(
            slots + i * kSlotBytes + (r * Shape::kPlanes + plane) * Shape::kThreads * 16);
      }
    }
  }

  // half: of the ring, where the part lies.
  OCTAVO_DEVICE void begin_part(int half) {
    const int at = half * (Shape::kSlots - kPart) * kSlotBytes;
    slots = own + at;
    before = own + (Shape::kSlots - 1) * kSlotBytes - at;
  }
  OCTAVO_DEVICE void end_part() {
    left -= kPart;
#pragma unroll
    for (int r = 0; r < 2; ++r) next[r] += kPart * kUnitBytes;
  }
};

OCTAVO_DEVICE uint32_t word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Copies `count` pieces of 16 bytes, `at` bytes into each of the warp's two tiles, to `to`, kPitch bytes a tile of the
// block.
template <int kPitch>
OCTAVO_DEVICE void stage_factors(const QuantizedArgs& a, const QuantizedPlace& p, unsigned char* to,
                                              int64_t at, int count) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const uint4* from = reinterpret_cast<const uint4*>(tile_of(a, p, r) + at);
    uint4* out = reinterpret_cast<uint4*>(to + (p.warp * 2 + r) * kPitch);
#pragma unroll 1
    for (int i = p.lane; i < count; i += 32) out[i] = from[i];
  }
}

// One group a row: a slice's sums times the scale and, of an asymmetric weight, (offset + zero scale) * the sum of x.
template <int kTokenTiles>
OCTAVO_DEVICE void scale_rows(const QuantizedArgs& a, const QuantizedPlace& p, FragC (&sum)[2][kTokenTiles],
                                           const float (&x_sums)[kTokenTiles][2], float zero) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const uint8_t* at = tile_of(a, p, r) + a.layout.scales_at() + p.g * 8;
    const float2 scale = *reinterpret_cast<const float2*>(at);
    float2 offset{};
    if (!a.layout.symmetric) {
      offset = *reinterpret_cast<const float2*>(at + a.layout.factor_bytes());
      offset = make_float2(fmaf(zero, scale.x, offset.x), fmaf(zero, scale.y, offset.y));
    }
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float v = (j < 2 ? scale.x : scale.y) * sum[r][n].r[j];
        if (!a.layout.symmetric) v = fmaf(j < 2 ? offset.x : offset.y, x_sums[n][j % 2], v);
        sum[r][n].r[j] = v;
      }
    }
  }
}

template <bool kExperts>
OCTAVO_DEVICE void store_output(const QuantizedArgs& a, int64_t token, int64_t column, float v) {
  const int64_t at = (kExperts ? out_row(a.experts, token) : token) * a.out_stride + column;
  switch (a.out_type) {
    case DType::kBFloat16: static_cast<__nv_bfloat16*>(a.out)[at] = __float2bfloat16(v); return;
    case DType::kFloat16: static_cast<__half*>(a.out)[at] = __float2half(v); return;
    default: {
      float* out = static_cast<float*>(a.out) + at;
      *out = a.accumulate ? *out + v : v;
    }
  }
}

// One output of a token: `gate` where the weight is gated and then `up` too, else v is the output and up is unused.
template <bool kExperts>
OCTAVO_DEVICE void finish_output(const QuantizedArgs& a, int64_t token, int tile, int row, float v, float up) {
  if (a.layout.gated) {
    const int64_t half = a.layout.n / 2, column = int64_t(tile / 2) * 16 + row;
    if (column >= half) return;
    if (a.bias) {
      v += a.bias[column];
      up += a.bias[half + column];
    }
    store_output<kExperts>(a, token, column, activate(v, a.act) * up);
    return;
  }
  const int64_t column = int64_t(tile) * 16 + row;
  if (column >= a.layout.n) return;
  if (a.bias) v += a.bias[column];
  store_output<kExperts>(a, token, column, activate(v, a.act));
}

// sum[r][n]: the slice's sums of tile r and tokens 8 n ..., in the layout of an mma's C. Adds up the slices in order
// (by the block that comes last, from L2) and writes the outputs. `own` is the ring, whose codes are used up.
template <class Shape, int kTokenTiles>
OCTAVO_DEVICE void finish_block(const QuantizedArgs& a, const QuantizedPlace& p, const FragC (&sum)[2][kTokenTiles],
                                unsigned char* own) {
  // All that the block read from behind the ring is done with.
  if (Shape::kSumsBytes > Shape::kRingBytes && a.slices == 1) bar_sync();
  constexpr int kSliceVectors = 2 * kTokenTiles * Shape::kThreads;
  const int64_t block = int64_t(blockIdx.z) * gridDim.x + blockIdx.x;
  // Each thread reads only what the same thread of every block wrote: through memory because the loop below is rolled,
  // or every one of an instance's outputs would be a copy of every activation.
  float4* all = a.slices > 1 ? a.partials + block * a.slices * kSliceVectors + threadIdx.x
                             : reinterpret_cast<float4*>(own);
#pragma unroll
  for (int i = 0; i < 2 * kTokenTiles; ++i) {
    const FragC& c = sum[i % 2][i / 2];
    if (8 * (i / 2) + 2 * p.t < p.tokens) {
      all[p.slice * kSliceVectors + i * Shape::kThreads] = make_float4(c.r[0], c.r[1], c.r[2], c.r[3]);
    }
  }
  if (a.slices > 1) {
    OCTAVO_SHARED(int, last, [1]);
    fence_gpu();
    bar_sync();
    if (threadIdx.x == 0) last[0] = atom_inc(a.counters + block, uint32_t(a.slices - 1)) == uint32_t(a.slices - 1);
    bar_sync();
    if (!last[0]) return;
    fence_gpu();
  }
  auto total = [&](int i) {
    float4 v = all[i * Shape::kThreads];
    for (int s = 1; s < a.slices; ++s) {
      const float4 c = all[s * kSliceVectors + i * Shape::kThreads];
      v = make_float4(v.x + c.x, v.y + c.y, v.z + c.z, v.w + c.w);
    }
    return v;
  };
#pragma unroll 1
  for (int i = 0; i < 2 * kTokenTiles; i += a.layout.gated ? 2 : 1) {
    const int token = 8 * (i / 2) + 2 * p.t;
    if (token >= p.tokens) return;
    const float4 v = total(i), up = a.layout.gated ? total(i + 1) : v;
    const bool second = token + 1 < p.tokens;
    const int tile = p.tile + i % 2;
    constexpr bool kExperts = Shape::kExperts;
    finish_output<kExperts>(a, p.token + token, tile, p.g, v.x, up.x);
    if (second) finish_output<kExperts>(a, p.token + token + 1, tile, p.g, v.y, up.y);
    finish_output<kExperts>(a, p.token + token, tile, p.g + 8, v.z, up.z);
    if (second) finish_output<kExperts>(a, p.token + token + 1, tile, p.g + 8, v.w, up.w);
  }
}

}  // namespace octavo::cuda
