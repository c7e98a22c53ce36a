// Products of float weights that keep law 6 (linear.h).
//
// 16-bit types: a block has 32 weight rows (two tiles of 16; of a gated weight 16 gate rows and the 16 up rows of the same
// outputs) and 8 * Tiles rows of x. Its 8 warps have one slice of K each, so the weight is read once and there is no
// barrier until all are done. The weight is mma's A, x its B, and both are loaded as they lie: any order of k will do as
// long as both operands have the same one, so lane (g, t) takes the 8 elements k = 8t .. 8t + 7 of each chunk of 32, in one
// load of 16 bytes, and they are its share of two steps of k16. A ring of chunks in registers hides the memory.
// Where there are many rows of x, a block has 128 weight rows and 128 rows of x, which come through a ring of chunks in
// shared memory; its warps have 32 by 64 each. Slices, chunks and the k of each mma are the same, so the bits are too.
// float32: a warp has one output and 8 rows of x, its lanes strided over K.
#include "linear.h"

#include "activation.cuh"
#include "experts.cuh"
#include "launch.h"
#include "load8.cuh"
#include "prim.cuh"

namespace octavo::cuda {
namespace {

constexpr int kSlices = 8;
constexpr int kThreads = kSlices * 32;
constexpr int kRows = 32;          // of the weight, a block
constexpr int kPad = kRows + 4;    // of a row of partial sums in shared memory: two rows are 8 banks apart
constexpr int kWarpTokens = 8;     // of the float32 kernel
constexpr int kWide = 128;         // rows of the weight and of x, a wide block
constexpr int kStages = 6;         // chunks in its ring
constexpr int kWidePad = kWide + 1;

// Which rows of the launch a block has, and where the weight begins that they are multiplied by.
struct Rows {
  int64_t first, end, weight;
};

template <int kTokens>
OCTAVO_DEVICE Rows rows_of(const LinearArgs& a) {
  if (!a.experts.blocks) return {int64_t(blockIdx.x) * kTokens, a.m, 0};
  const int4 block = expert_block<kTokens>(a.experts, int(blockIdx.x));
  return {block.y, int64_t(block.y) + block.z, block.x * (a.gated ? a.n / 2 : a.n)};
}

// Row i of a block's rows; past the end one that exists, for what it gives is not stored.
OCTAVO_DEVICE int64_t x_at(const LinearArgs& a, const Rows& rows, int i) {
  return x_row(a.experts, min(rows.first + i, rows.end - 1)) * a.x_stride;
}

OCTAVO_DEVICE void write(const LinearArgs& a, int64_t row, int64_t column, float y, float up) {
  if (a.bias) {
    y += a.bias[column];
    if (a.gated) up += a.bias[a.n / 2 + column];
  }
  y = activate(y, a.act);
  if (a.gated) y *= up;
  const int64_t at = out_row(a.experts, row) * a.out_stride + column;
  if (a.out_type == DType::kFloat32) {
    float* out = static_cast<float*>(a.out) + at;
    *out = a.add ? *out + y : y;
  } else {
    static_cast<uint16_t*>(a.out)[at] = uint16_t(a.out_type == DType::kBFloat16 ? pack_bf16(y, 0.f) : pack_f16(y, 0.f));
  }
}

// The row of a block's weight row; past the end any that exists, for what it gives is not stored.
OCTAVO_DEVICE int64_t weight_row(const LinearArgs& a, const Rows& rows, int64_t block, int row) {
  if (!a.gated) return rows.weight + min(block * kRows + row, a.n - 1);
  return rows.weight + min(block * (kRows / 2) + row % 16, a.n / 2 - 1) + row / 16 * a.up_row;
}

// A chunk of 32 k: rows g, g + 8 of two tiles by row g of `Tiles`; each lane's 8 elements are in order of k.
template <bool Bf16, int Tiles>
OCTAVO_DEVICE void multiply(FragC (&sums)[2][Tiles], const uint4 (&weight)[4], const uint4 (&token)[Tiles]) {
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    const auto low = [step](const uint4& v) { return step ? v.z : v.x; };
    const auto high = [step](const uint4& v) { return step ? v.w : v.y; };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 &top = weight[2 * i], &bottom = weight[2 * i + 1];
      const FragA left = {{low(top), low(bottom), high(top), high(bottom)}};
#pragma unroll
      for (int j = 0; j < Tiles; ++j) {
        const FragB right = {{low(token[j]), high(token[j])}};
        if constexpr (Bf16) {
          mma_bf16(sums[i][j], left, right, sums[i][j]);
        } else {
          mma_f16(sums[i][j], left, right, sums[i][j]);
        }
      }
    }
  }
}

template <bool Bf16, int Tiles, bool Vector>
__global__ void __launch_bounds__(kThreads, 1) linear_kernel(LinearArgs a) {
  constexpr int kRing = Tiles <= 2 ? 4 : 2;
  OCTAVO_DYNAMIC_SHARED(float, parts);  // [kSlices][8 * Tiles][kPad]
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int64_t chunks = (a.k + 31) / 32, last = chunks * (warp + 1) / kSlices, end = min(last * 32, a.k);
  int64_t k = chunks * warp / kSlices * 32 + 8 * t;
  pdl_wait();
  const Rows own = rows_of<8 * Tiles>(a);
  if (own.first >= own.end) return pdl_launch();
  const uint16_t* w[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) w[i] = static_cast<const uint16_t*>(a.weight) + weight_row(a, own, blockIdx.y, g + 8 * i) * a.k;
  const uint16_t* x[Tiles];
#pragma unroll
  for (int j = 0; j < Tiles; ++j) x[j] = static_cast<const uint16_t*>(a.x) + x_at(a, own, 8 * j + g);

  uint4 weight[kRing][4], token[kRing][Tiles];
  const auto fetch = [&](int slot, int64_t from) {
#pragma unroll
    for (int i = 0; i < 4; ++i) weight[slot][i] = load8<Vector>(w[i], from, end);
#pragma unroll
    for (int j = 0; j < Tiles; ++j) token[slot][j] = load8<Vector>(x[j], from, end);
  };
  FragC sums[2][Tiles];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < Tiles; ++j) sums[i][j] = {{0.f, 0.f, 0.f, 0.f}};
  }
#pragma unroll
  for (int slot = 0; slot < kRing; ++slot) fetch(slot, k + 32 * slot);
  for (; k - 8 * t < end; k += 32 * kRing) {
#pragma unroll
    for (int slot = 0; slot < kRing; ++slot) {
      multiply<Bf16, Tiles>(sums, weight[slot], token[slot]);
      fetch(slot, k + 32 * (kRing + slot));
    }
  }
  pdl_launch();

#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = 16 * i + g + 8 * (e / 2), column = 8 * j + 2 * t + e % 2;
        parts[(warp * 8 * Tiles + column) * kPad + row] = sums[i][j].r[e];
      }
    }
  }
  bar_sync();
  const int outputs = a.gated ? kRows / 2 : kRows;
  const int64_t width = a.gated ? a.n / 2 : a.n;
  for (int i = int(threadIdx.x); i < 8 * Tiles * outputs; i += kThreads) {
    const int column = i / outputs, row = i % outputs;
    const int64_t output = int64_t(blockIdx.y) * outputs + row;
    if (own.first + column >= own.end || output >= width) continue;
    const auto total = [&](int of) {
      float sum = 0.f;
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) sum += parts[(slice * 8 * Tiles + column) * kPad + of];
      return sum;
    };
    write(a, own.first + column, output, total(row), a.gated ? total(row + 16) : 0.f);
  }
}

template <bool Bf16>
__global__ void __launch_bounds__(kThreads, 1) linear_wide_kernel(LinearArgs a) {
  // A chunk: [kWide][32] of the weight, then of x. Eight lanes read two rows, 128 bytes side by side: no bank twice.
  OCTAVO_DYNAMIC_SHARED(uint4, ring);
  constexpr int kChunk = 2 * kWide * 4;  // in units of 16 bytes
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int warp_row = warp % 4 * 32, warp_token = warp / 4 * 64;
  const int chunks = int((a.k + 31) / 32);
  pdl_wait();
  const Rows own = rows_of<kWide>(a);
  if (own.first >= own.end) return pdl_launch();

  // This thread's four pieces of every chunk: two of the weight, two of x.
  const uint16_t* from[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = int(threadIdx.x) / 4 + i % 2 * 64;
    if (i < 2) {
      // Rows of the weight in fours of 32: of a gated one 16 gates and the 16 ups of the same outputs.
      const int64_t block = int64_t(blockIdx.y) * (kWide / kRows) + row / kRows;
      from[i] = static_cast<const uint16_t*>(a.weight) + weight_row(a, own, block, row % kRows) * a.k;
    } else {
      from[i] = static_cast<const uint16_t*>(a.x) + x_at(a, own, row);
    }
    from[i] += 8 * (int(threadIdx.x) % 4);
  }
  const auto fetch = [&](int chunk, int stage) {
    const bool valid = chunk * 32 + 8 * (int(threadIdx.x) % 4) < a.k;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      cp_async<16>(ring + stage * kChunk + i * kThreads + threadIdx.x, from[i] + (valid ? chunk * 32 : 0), valid);
    }
  };

  FragC sums[2][8], part[2][8];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) sums[i][j] = part[i][j] = {{0.f, 0.f, 0.f, 0.f}};
  }
  for (int chunk = 0; chunk < kStages - 1; ++chunk) {
    if (chunk < chunks) fetch(chunk, chunk);
    cp_commit();
  }
  int slice = 1, stage = 0, free = kStages - 1;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    while (chunk == int(int64_t(chunks) * slice / kSlices)) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            sums[i][j].r[e] += part[i][j].r[e];
            part[i][j].r[e] = 0.f;
          }
        }
      }
      ++slice;
    }
    cp_wait<kStages - 2>();
    bar_sync();
    if (chunk + kStages - 1 < chunks) fetch(chunk + kStages - 1, free);
    cp_commit();
    const uint4* weight = ring + stage * kChunk + warp_row * 4 + lane;
    const uint4* token = ring + stage * kChunk + (kWide + warp_token) * 4 + lane;
    free = stage;  // until the next barrier others may still read it
    stage = stage + 1 < kStages ? stage + 1 : 0;
    uint4 rows[4], tokens[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = weight[8 * 4 * i];
#pragma unroll
    for (int j = 0; j < 8; ++j) tokens[j] = token[8 * 4 * j];
    multiply<Bf16, 8>(part, rows, tokens);
  }
  cp_wait<0>();
  bar_sync();
  pdl_launch();

  float* results = reinterpret_cast<float*>(ring);  // [tokens][kWidePad]
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_row + 16 * i + g + 8 * (e / 2), column = warp_token + 8 * j + 2 * t + e % 2;
        results[column * kWidePad + row] = sums[i][j].r[e] + part[i][j].r[e];
      }
    }
  }
  bar_sync();
  const int outputs = a.gated ? kWide / 2 : kWide;
  const int64_t width = a.gated ? a.n / 2 : a.n;
  for (int i = int(threadIdx.x); i < kWide * outputs; i += kThreads) {
    const int column = i / outputs, row = i % outputs;
    const int64_t output = int64_t(blockIdx.y) * outputs + row;
    if (own.first + column >= own.end || output >= width) continue;
    const float* result = results + column * kWidePad + (a.gated ? row / 16 * kRows + row % 16 : row);
    write(a, own.first + column, output, result[0], a.gated ? result[16] : 0.f);
  }
}
static_assert(kWide * kWidePad * sizeof(float) <= size_t(kStages) * 2 * kWide * 64);

__global__ void __launch_bounds__(kThreads) linear_float_kernel(LinearArgs a) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t output = int64_t(blockIdx.y) * (kThreads / 32) + threadIdx.x / 32;
  const int64_t width = a.gated ? a.n / 2 : a.n;
  pdl_wait();
  pdl_launch();
  const Rows own = rows_of<kWarpTokens>(a);
  if (output >= width || own.first >= own.end) return;
  const float* weight = static_cast<const float*>(a.weight) + (own.weight + output) * a.k;
  const float* up = a.gated ? weight + a.up_row * a.k : weight;
  const float* x[kWarpTokens];
#pragma unroll
  for (int j = 0; j < kWarpTokens; ++j) x[j] = static_cast<const float*>(a.x) + x_at(a, own, j);
  float sums[2][kWarpTokens] = {};
  for (int64_t k = lane; k < a.k; k += 32) {
    const float w = weight[k], u = up[k];
#pragma unroll
    for (int j = 0; j < kWarpTokens; ++j) {
      const float v = x[j][k];
      sums[0][j] = fma_rn(v, w, sums[0][j]);
      sums[1][j] = fma_rn(v, u, sums[1][j]);
    }
  }
  // Lane j writes row j.
  float y = 0.f, other = 0.f;
#pragma unroll
  for (int j = 0; j < kWarpTokens; ++j) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      sums[0][j] += shfl_xor(sums[0][j], lanes);
      sums[1][j] += shfl_xor(sums[1][j], lanes);
    }
    y = lane == j ? sums[0][j] : y;
    other = lane == j ? sums[1][j] : other;
  }
  if (lane < kWarpTokens && own.first + lane < own.end) write(a, own.first + lane, output, y, other);
}

unsigned token_blocks(const LinearArgs& a, int tokens) {
  return a.experts.blocks ? a.experts.blocks_of(tokens) : unsigned((a.m + tokens - 1) / tokens);
}

template <bool Bf16, int Tiles, bool Vector>
void launch_tiles(const LinearArgs& a, cudaStream_t stream) {
  // Blocks of the same weight rows follow each other: all but the first find them in L2.
  const dim3 grid(token_blocks(a, 8 * Tiles), unsigned((a.n + kRows - 1) / kRows));
  const size_t shared = size_t(kSlices * 8 * Tiles * kPad) * sizeof(float);
  launch(linear_kernel<Bf16, Tiles, Vector>, grid, dim3(kThreads), shared, stream, a);
}

template <bool Bf16>
void launch_half(const LinearArgs& a, cudaStream_t stream) {
  const bool vector = a.k % 8 == 0 && a.x_stride % 8 == 0 && reinterpret_cast<uintptr_t>(a.x) % 16 == 0 &&
                      reinterpret_cast<uintptr_t>(a.weight) % 16 == 0;
  const int64_t wide_blocks = (a.m + kWide - 1) / kWide * ((a.n + kWide - 1) / kWide);
  const int64_t rows = a.experts.blocks ? a.experts.block_rows : a.m;
  const bool wide = a.experts.blocks ? rows == kWide : a.wide || (rows > 64 && wide_blocks >= 96);  // enough for a device
  if (!vector) {
    launch_tiles<Bf16, 1, false>(a, stream);
  } else if (wide) {
    const dim3 grid(token_blocks(a, kWide), unsigned((a.n + kWide - 1) / kWide));
    const size_t shared = size_t(kStages) * 2 * kWide * 32 * sizeof(uint16_t);
    launch(linear_wide_kernel<Bf16>, grid, dim3(kThreads), shared, stream, a);
  } else if (rows <= 8) {
    launch_tiles<Bf16, 1, true>(a, stream);
  } else if (rows <= 32) {
    launch_tiles<Bf16, 4, true>(a, stream);
  } else {
    launch_tiles<Bf16, 8, true>(a, stream);
  }
}

}  // namespace

void linear(const LinearArgs& a, cudaStream_t stream) {
  if (a.type == DType::kBFloat16) {
    launch_half<true>(a, stream);
  } else if (a.type == DType::kFloat16) {
    launch_half<false>(a, stream);
  } else {
    const int64_t warps = kThreads / 32, width = a.gated ? a.n / 2 : a.n;
    const dim3 grid(token_blocks(a, kWarpTokens), unsigned((width + warps - 1) / warps));
    launch(linear_float_kernel, grid, dim3(kThreads), 0, stream, a);
  }
}

}  // namespace octavo::cuda
