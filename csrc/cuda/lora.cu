// Low-rank additions (lora.h): one kernel shrinks rows to their adapters' ranks, one expands them onto y.
//
// Rows are taken as they come, in tiles of 8, or of 32 where there are many: nothing is sorted, and nothing but adapters[]
// says who has which, so a graph holds both launches. Of a tile each distinct adapter has its turn, with the rows of
// others as zeros and not stored; where there are few blocks, eight share the turns of a tile, and one without ends at once.
// 16-bit types: the adapter's weights are mma's A, rows of x or v its B, all loaded as they lie (any order of k will do
// that both have). K is cut in slices of 256, one a warp, and groups of 8 slices: a warp's whole slice is on its way at
// once, a block adds its slices up in their order. A group is a block's, and expand adds groups up; with many rows one
// block takes all groups, in the same order. v goes through mma as two numbers of x's type, so that none of its bits are
// lost; a power of two a row keeps both in the range of float16.
// float32: a warp a rank, lanes strided over K; then a thread a column.
//
// Floor of a decode step: down and up of the adapters that it uses, 2 r (K + N) bytes each, beside 2 N K of the layer: at
// rank 16 a hundredth of it. Not measured on a device.
#include "lora.h"

#include "launch.h"
#include "load8.cuh"
#include "prim.cuh"
#include "reduce.cuh"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kSlice = 256;              // of K, a warp
constexpr int kGroup = kWarps * kSlice;  // of K, a block
constexpr int kRanks = 16;               // a block that shrinks
constexpr int kPad = kRanks + 4;  // two rows are 8 banks apart
constexpr int kColumns = 16;             // a warp that expands
constexpr int kBlock = kWarps * kColumns;
constexpr int kWideTiles = 4;
constexpr int kNarrowRows = 128;         // beyond them, wide tiles

// The adapters of a tile's rows; -1: none, or no row.
template <int kTokens>
OCTAVO_DEVICE void read_adapters(const LoraArgs& a, int64_t first, int32_t (&own)[kTokens]) {
  if (int(threadIdx.x) < kTokens) {
    const int64_t row = first + threadIdx.x;
    const int32_t adapter = row < a.m ? a.adapters[row] : -1;
    own[threadIdx.x] = adapter < a.num_adapters ? adapter : -1;
  }
  bar_sync();
}

// Whether row j is the first of its adapter's in the tile. The same in every warp.
template <int kTokens>
OCTAVO_DEVICE bool leads(const int32_t (&own)[kTokens], int j) {
  static_assert(kTokens <= 32);
  const int lane = int(threadIdx.x) % 32;
  const bool earlier = lane < j && own[lane < kTokens ? lane : 0] == own[j];
  return own[j] >= 0 && !any(earlier);
}

// Where a block's tile begins, and which of its rows may lead: `spread` blocks share a tile's.
template <int kTokens>
struct Turns {
  int64_t first;
  int begin, end;

  OCTAVO_DEVICE explicit Turns(int spread)
      : first(int64_t(blockIdx.x) / spread * kTokens),
        begin(int(blockIdx.x) % spread * (kTokens / spread)),
        end(begin + kTokens / spread) {}
};

template <bool Bf16>
OCTAVO_DEVICE void multiply(FragC& sums, const FragA& a, const FragB& b) {
  if constexpr (Bf16) {
    mma_bf16(sums, a, b, sums);
  } else {
    mma_f16(sums, a, b, sums);
  }
}

// Block (tile and turns, 16 ranks of a part, group of K); with wide tiles all groups.
template <bool Bf16, int Tiles, bool Vector>
__global__ void __launch_bounds__(kThreads, 1) lora_shrink_kernel(LoraArgs a, int spread) {
  constexpr int kTokens = 8 * Tiles, kChunks = Tiles == 1 ? 8 : 2, kEach = (kTokens * kRanks + kThreads - 1) / kThreads;
  OCTAVO_SHARED(int32_t, own, [kTokens]);
  OCTAVO_SHARED(float, room, [kWarps][kTokens][kPad]);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int slots = int(a.rank) / kRanks, part = int(blockIdx.y) / slots, rank = int(blockIdx.y) % slots * kRanks;
  const int64_t groups = (a.k + kGroup - 1) / kGroup, only = blockIdx.z;
  pdl_wait();
  pdl_launch();
  const Turns<kTokens> turns(spread);
  read_adapters(a, turns.first, own);
  for (int j = turns.begin; j < turns.end; ++j) {
    if (!leads(own, j)) continue;
    const int64_t entry = own[j] * a.parts + part;
    if (rank >= a.ranks[entry]) continue;
    const uint16_t* const down = static_cast<const uint16_t*>(a.down) + (entry * a.rank + rank + g) * a.down_stride;
    float sums[kEach] = {};
    for (int64_t group = Tiles == 1 ? only : 0; group < (Tiles == 1 ? only + 1 : groups); ++group) {
      FragC products[Tiles];
#pragma unroll
      for (int i = 0; i < Tiles; ++i) products[i] = {{0.f, 0.f, 0.f, 0.f}};
      const int64_t from = group * kGroup + warp * kSlice;
      for (int64_t at = from; at < min(from + kSlice, a.k); at += 32 * kChunks) {
        const int64_t k = at + 8 * t;
        uint4 weight[kChunks][2], token[kChunks][Tiles];
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
#pragma unroll
          for (int i = 0; i < 2; ++i) weight[c][i] = load8<true>(down + 8 * i * a.down_stride, k + 32 * c, a.down_stride);
#pragma unroll
          for (int i = 0; i < Tiles; ++i) {
            const int row = 8 * i + g;
            const uint16_t* const x = static_cast<const uint16_t*>(a.x) + (turns.first + row) * a.x_stride;
            token[c][i] = load8<Vector>(x, k + 32 * c, own[row] == own[j] ? a.k : 0);
          }
        }
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          const uint4 &top = weight[c][0], &bottom = weight[c][1];
#pragma unroll
          for (int i = 0; i < Tiles; ++i) {
            const uint4& x = token[c][i];
            multiply<Bf16>(products[i], {{top.x, bottom.x, top.y, bottom.y}}, {{x.x, x.y}});
            multiply<Bf16>(products[i], {{top.z, bottom.z, top.w, bottom.w}}, {{x.z, x.w}});
          }
        }
      }
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) room[warp][8 * i + 2 * t + e % 2][g + 8 * (e / 2)] = products[i].r[e];
      }
      bar_sync();
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int place = int(threadIdx.x) + i * kThreads;
        if (place >= kTokens * kRanks) continue;
        float sum = 0.f;
#pragma unroll
        for (int slice = 0; slice < kWarps; ++slice) sum += room[slice][place / kRanks][place % kRanks];
        sums[i] += sum;
      }
      bar_sync();
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int place = int(threadIdx.x) + i * kThreads, row = place / kRanks;
      if (row >= kTokens || own[row] != own[j]) continue;
      const int64_t at = (Tiles == 1 ? only : 0) * a.m + turns.first + row;
      a.v[at * a.parts * a.rank + part * a.rank + rank + place % kRanks] = sums[i];
    }
  }
}

// A row of words in shared memory: 16 banks further than the one before, so that two rows of eight lanes never meet.
OCTAVO_DEVICE int words_of(int64_t rank) { return int(rank % 32 ? rank : rank + 16); }

// A row's v, as two numbers of the 16-bit type a word, times a power of two; returns what takes that out again. By a warp.
template <bool Bf16>
OCTAVO_DEVICE float stage_row(const LoraArgs& a, int64_t row, int64_t part, int ranks, uint32_t* words) {
  const int lane = int(threadIdx.x) % 32;
  const float* const v = a.v + row * a.parts * a.rank + part * a.rank;
  uint32_t most = 0;
  for (int r = lane; r < ranks; r += 32) {
    float sum = v[r];
    for (int64_t p = 1; p < a.partials; ++p) sum += v[p * a.m * a.parts * a.rank + r];
    words[r] = __float_as_uint(sum);
    most = max(most, words[r] & 0x7fffffffu);
  }
  const int exponent = int(max_warp(most) >> 23);  // 255: not finite, and it may stay so
  const int shift = exponent == 255 ? 127 : max(1, min(253, 127 + 14 + 127 - exponent));
  const float factor = __uint_as_float(uint32_t(shift) << 23);
  for (int r = lane; r < ranks; r += 32) {
    const float value = __uint_as_float(words[r]) * factor;
    if constexpr (Bf16) {
      const uint32_t high = pack_bf16(value, 0.f);
      words[r] = pack_bf16(unpack_bf16(high).x, value - unpack_bf16(high).x);
    } else {
      const uint32_t high = pack_f16(value, 0.f);
      words[r] = pack_f16(unpack_f16(high).x, value - unpack_f16(high).x);
    }
  }
  return __uint_as_float(uint32_t(254 - shift) << 23);
}

// Block (tile and turns, 128 columns of y).
template <bool Bf16, int Tiles>
__global__ void __launch_bounds__(kThreads, 1) lora_expand_kernel(LoraArgs a, int spread) {
  constexpr int kTokens = 8 * Tiles, kSteps = 4;
  OCTAVO_DYNAMIC_SHARED(uint32_t, staged);  // [kTokens][words_of]
  OCTAVO_SHARED(int32_t, own, [kTokens]);
  OCTAVO_SHARED(float, factors, [kTokens]);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int64_t block = int64_t(blockIdx.y) * kBlock, column = block + warp * kColumns + g;
  const int words = words_of(a.rank);
  pdl_wait();
  pdl_launch();
  const Turns<kTokens> turns(spread);
  read_adapters(a, turns.first, own);
  for (int j = turns.begin; j < turns.end; ++j) {
    if (!leads(own, j)) continue;
    for (int64_t part = 0; part < a.parts; ++part) {
      const int64_t entry = own[j] * a.parts + part;
      const int ranks = (a.ranks[entry] + kRanks - 1) / kRanks * kRanks;
      bool here = false;  // some column of the block
#pragma unroll
      for (int i = 0; i < kBlock / 32; ++i) {
        const int64_t c = block + 32 * i + lane;
        here |= c < a.n && a.part_of[c] == part;
      }
      if (ranks == 0 || !any(here)) continue;
      bool mine[2];
      const uint16_t* up[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t c = column + 8 * i;
        mine[i] = c < a.n && a.part_of[c] == part;
        up[i] = static_cast<const uint16_t*>(a.up) + (own[j] * a.n + (mine[i] ? c : 0)) * a.rank + 4 * t;
      }
      uint2 weight[kSteps][2];
      const auto fetch = [&](int from) {  // four steps of 16 ranks, of which a lane has four each
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int r = from + 16 * s;
            weight[s][i] = make_uint2(0, 0);
            if (mine[i] && r < ranks) weight[s][i] = *reinterpret_cast<const uint2*>(up[i] + r);
          }
        }
      };
      fetch(0);
      const float scale = a.scales[entry];
      for (int row = warp; row < kTokens; row += kWarps) {
        uint32_t* const to = staged + row * words;
        if (own[row] == own[j]) {
          const float factor = stage_row<Bf16>(a, turns.first + row, part, ranks, to);
          if (lane == 0) factors[row] = factor * scale;
        } else {
          for (int r = lane; r < ranks; r += 32) to[r] = 0;
        }
      }
      bar_sync();
      FragC sums[Tiles];
#pragma unroll
      for (int i = 0; i < Tiles; ++i) sums[i] = {{0.f, 0.f, 0.f, 0.f}};
      for (int from = 0; from < ranks; from += 16 * kSteps) {
        if (from) fetch(from);
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int r = from + 16 * s;
          if (r >= ranks) continue;
          const FragA left = {{weight[s][0].x, weight[s][1].x, weight[s][0].y, weight[s][1].y}};
#pragma unroll
          for (int i = 0; i < Tiles; ++i) {
            const uint4 v = *reinterpret_cast<const uint4*>(staged + (8 * i + g) * words + r + 4 * t);
            multiply<Bf16>(sums[i], left, {{prmt(v.x, v.y, 0x5410), prmt(v.z, v.w, 0x5410)}});
            multiply<Bf16>(sums[i], left, {{prmt(v.x, v.y, 0x7632), prmt(v.z, v.w, 0x7632)}});
          }
        }
      }
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = 8 * i + 2 * t + e % 2;
          if (!mine[e / 2] || own[row] != own[j]) continue;
          float& y = a.y[(turns.first + row) * a.y_stride + column + 8 * (e / 2)];
          y = fma_rn(factors[row], sums[i].r[e], y);
        }
      }
      bar_sync();
    }
  }
}

// Block (row, 8 ranks of all parts).
__global__ void __launch_bounds__(kThreads) lora_shrink_float_kernel(LoraArgs a) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t row = blockIdx.x, at = int64_t(blockIdx.y) * kWarps + threadIdx.x / 32, part = at / a.rank;
  pdl_wait();
  pdl_launch();
  const int32_t adapter = a.adapters[row];
  if (adapter < 0 || adapter >= a.num_adapters || at % a.rank >= a.ranks[adapter * a.parts + part]) return;
  const float* const down = static_cast<const float*>(a.down) + (adapter * a.parts * a.rank + at) * a.down_stride;
  const float* const x = static_cast<const float*>(a.x) + row * a.x_stride;
  float sum = 0.f;
  for (int64_t k = lane; k < a.k; k += 32) sum = fma_rn(x[k], down[k], sum);
  sum = sum_warp(sum);
  if (lane == 0) a.v[row * a.parts * a.rank + at] = sum;
}

// Block (row, 256 columns of y).
__global__ void __launch_bounds__(kThreads) lora_expand_float_kernel(LoraArgs a) {
  const int64_t row = blockIdx.x, column = int64_t(blockIdx.y) * kThreads + threadIdx.x;
  pdl_wait();
  pdl_launch();
  const int32_t adapter = a.adapters[row];
  if (adapter < 0 || adapter >= a.num_adapters || column >= a.n) return;
  const int32_t part = a.part_of[column];
  if (part < 0) return;
  const int64_t entry = adapter * a.parts + part;
  const float* const v = a.v + row * a.parts * a.rank + part * a.rank;
  const float* const up = static_cast<const float*>(a.up) + (adapter * a.n + column) * a.rank;
  float sum = 0.f;
  for (int r = 0; r < a.ranks[entry]; ++r) sum = fma_rn(v[r], up[r], sum);
  float& y = a.y[row * a.y_stride + column];
  y = fma_rn(a.scales[entry], sum, y);
}

unsigned cuts(int64_t size, int64_t piece) { return unsigned((size + piece - 1) / piece); }

// Blocks that share a tile's turns: one where that makes two for each SM of an H100.
int spread(unsigned blocks) { return blocks < 264 ? 8 : 1; }

template <bool Bf16, int Tiles>
void launch_tiles(const LoraArgs& a, cudaStream_t stream) {
  const bool vector = a.k % 8 == 0 && a.x_stride % 8 == 0 && reinterpret_cast<uintptr_t>(a.x) % 16 == 0;
  const unsigned tiles = cuts(a.m, 8 * Tiles), slots = unsigned(a.parts * a.rank / kRanks), columns = cuts(a.n, kBlock);
  const int shrink = spread(tiles * slots * unsigned(a.partials)), expand = spread(tiles * columns);
  launch(vector ? lora_shrink_kernel<Bf16, Tiles, true> : lora_shrink_kernel<Bf16, Tiles, false>,
         dim3(tiles * unsigned(shrink), slots, unsigned(a.partials)), dim3(kThreads), 0, stream, a, shrink);
  const size_t shared = size_t(8 * Tiles) * size_t(a.rank + 16) * sizeof(uint32_t);
  launch(lora_expand_kernel<Bf16, Tiles>, dim3(tiles * unsigned(expand), columns), dim3(kThreads), shared, stream, a,
         expand);
}

template <bool Bf16>
void launch_half(const LoraArgs& a, cudaStream_t stream) {
  if (a.m <= kNarrowRows) {
    launch_tiles<Bf16, 1>(a, stream);
  } else {
    launch_tiles<Bf16, kWideTiles>(a, stream);
  }
}

}  // namespace

int64_t lora_partials(DType type, int64_t m, int64_t k) {
  return type == DType::kFloat32 || m > kNarrowRows ? 1 : (k + kGroup - 1) / kGroup;
}

void lora_add(const LoraArgs& a, cudaStream_t stream) {
  if (a.type == DType::kBFloat16) {
    launch_half<true>(a, stream);
  } else if (a.type == DType::kFloat16) {
    launch_half<false>(a, stream);
  } else {
    launch(lora_shrink_float_kernel, dim3(unsigned(a.m), cuts(a.parts * a.rank, kWarps)), dim3(kThreads), 0, stream, a);
    launch(lora_expand_float_kernel, dim3(unsigned(a.m), cuts(a.n, kThreads)), dim3(kThreads), 0, stream, a);
  }
}

}  // namespace octavo::cuda
