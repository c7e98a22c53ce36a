// Paged prefill attention on tensor cores: chunks of prompts behind a cached prefix, all sequences in one launch.
//
// Contract: Ops.paged_attention, for the tiles of work.prefill; attention.cuh gives the order of every sum.
// Shape: rows are packed (query token * group + head of the group), 128 a CTA, so that a group shares its keys and a
// short chunk fills a tile. A warp has 32 rows (16 at D = 256) and all keys: with fewer rows it would wait for shared
// memory. 32 keys at a time lie in shared memory, the next 32 on their way. Bound by the tensor cores.
// At a chunk's end rows fold their accumulators onto totals in global memory (each thread its own, 8 bytes a row, dim
// and chunk): the price of having decode's bits; prompts to 256 tokens have one chunk and never pay it.
#include "attention.cuh"
#include "launch.h"

namespace octavo::cuda {
namespace {

// kLess: for devices of kLeastShared, where an item is two tiles of 64 rows and the ring may be of one block.
template <CacheType C, int D, bool kLess>
struct Prefill : Cache<C, D> {
  using Base = Cache<C, D>;
  static constexpr int kTiles = D > 128 ? 1 : 2;  // of 16 rows a warp
  static constexpr int kRows = kLess ? kPrefillRows / 2 : kPrefillRows;
  static constexpr int kWarps = kRows / (16 * kTiles), kThreads = 32 * kWarps;
  static constexpr int kUnits = D / 16;
  static constexpr int kQueryRowBytes = (D / 8 | 1) * 16, kQueryBytes = kRows * kQueryRowBytes;
  static constexpr int kTensorBytes = kBlockKeys * Base::kRowBytes;
  static constexpr int kScaleBytes = Base::k8Bit ? kBlockKeys * 2 : 0;
  static constexpr int kSlotBytes = 2 * (kTensorBytes + kScaleBytes);
  static constexpr int kStatic = kRows * 12 + 2 * kTiles * kThreads * 8 + kWarps * 16;
  static constexpr int kSlots = kQueryBytes + 2 * kSlotBytes + kStatic <= kLeastShared || !kLess ? 2 : 1;
  static constexpr int kShared = kQueryBytes + kSlots * kSlotBytes, kAll = kShared + kStatic;
  static constexpr int kCtas = D > 128 ? 1 : 2;
  static constexpr bool kFitsAll = kAll <= kLeastShared;
  static_assert(!kLess || kFitsAll);
};

template <CacheType C, int D, bool kLess>
__global__ void __launch_bounds__((Prefill<C, D, kLess>::kThreads), (Prefill<C, D, kLess>::kCtas))
    prefill_kernel(AttentionArgs a) {
  using K = Prefill<C, D, kLess>;
  constexpr int kTiles = K::kTiles, kWarps = K::kWarps, kRows = K::kRows, kParts = kPrefillRows / kRows;
  OCTAVO_DYNAMIC_SHARED(unsigned char, shared);
  OCTAVO_SHARED(int, row_position, [kRows]);
  OCTAVO_SHARED(float, row_slope, [kRows]);
  OCTAVO_SHARED(int, row_out, [kRows]);                 // query token * heads + head; -1: past the end
  OCTAVO_SHARED(float2, row_total, [kTiles][2][K::kThreads]);  // a thread's own: reference and weight
  OCTAVO_SHARED(int4, warp_keys, [kWarps]);  // positions of its first and last row, and the first keys that they see
  pdl_wait();
  pdl_launch();
  unsigned char* ring = shared + K::kQueryBytes;
  const int thread = int(threadIdx.x), lane = thread & 31, warp = thread >> 5, g = lane >> 2, t = lane & 3;
  const int group = a.num_heads / a.num_kv_heads, num_items = a.work.counts[1] * a.num_kv_heads * kParts;
  const auto totals = [&] {
    return reinterpret_cast<float4*>(a.work.totals) +
           (int64_t(blockIdx.x) * kWarps + warp) * (kTiles * K::kUnits * 2 * 32) + lane;
  };

  for (int work = int(blockIdx.x); work < num_items; work += int(gridDim.x)) {
    PrefillItem item = a.work.prefill[work / kParts / a.num_kv_heads];
    item.first_row += work % kParts * kRows;
    const int head = work / kParts % a.num_kv_heads;
    const int first_query = a.query_start[item.seq], queries = a.query_start[item.seq + 1] - first_query;
    const int first_position = a.seq_lens[item.seq] - queries;
    const int rows = min(kRows, queries * group - item.first_row);
    if (kParts > 1 && rows <= 0) continue;
    const auto position_of = [&](int row) { return first_position + (item.first_row + row) / group; };
    const int warp_row = warp * 16 * kTiles;

    bar_sync();  // shared memory, the last item's
    for (int row = thread; row < kRows; row += K::kThreads) {
      const int live = row < rows ? row : rows - 1;  // rows past the end see what the last one does, with zero queries
      const int row_head = head * group + (item.first_row + live) % group;
      row_position[row] = position_of(live);
      row_slope[row] = slope_of(a, row_head);
      row_out[row] = row < rows ? (first_query + (item.first_row + row) / group) * a.num_heads + row_head : -1;
    }
    if (lane == 0) {
      const int low = position_of(warp_row);
      const int high = warp_row < rows ? position_of(min(warp_row + 16 * kTiles, rows) - 1) : -1;
      warp_keys[warp] = make_int4(low, high, first_key(low, a.sliding_window), first_key(high, a.sliding_window));
    }
    bar_sync();
    for (int i = thread; i < kRows * (D / 8); i += K::kThreads) {
      const int row = i / (D / 8), d = i % (D / 8) * 8, out = row_out[row];
      uint4 x = make_uint4(0, 0, 0, 0);
      if (out >= 0) {
        const int token = out / a.num_heads;
        x = load_query<K::kBF16>(a.queries, a.query_type, token * a.query_stride + (out - token * a.num_heads) * D + d);
      }
      unsigned char* to = shared + row * K::kQueryRowBytes;
      if constexpr (K::k8Bit) {
        *reinterpret_cast<uint2*>(to + K::query_slot(d) * 2) = make_uint2(x.x, x.z);
        *reinterpret_cast<uint2*>(to + K::query_slot(d + 2) * 2) = make_uint2(x.y, x.w);
      } else {
        *reinterpret_cast<uint4*>(to + d * 2) = x;
      }
    }

    const int end = position_of(rows - 1) + 1, first = first_key(position_of(0), a.sliding_window);
    const int begin_block = first / kBlockKeys, end_block = (end + kBlockKeys - 1) / kBlockKeys;

    // A warp fetches one unit of 16 keys (or half of it) of keys or of values, all of one page.
    const Pages<K, D> pages(a, item.seq, head);
    const int fetched_unit = warp & 1, fetched_values = warp >> 1 & 1;
    constexpr int kFetchedRows = 64 / kWarps;
    const int fetched_row = (warp >> 2) * kFetchedRows;
    const auto* fetched_cache = static_cast<const unsigned char*>(fetched_values ? a.values : a.keys);
    const auto page_of = [&](int block) {
      const int key = block * kBlockKeys + fetched_unit * 16;
      return key + 16 > first && key < end ? pages.page(key / 16) : 0;
    };
    int next_page = page_of(begin_block);
    const auto fetch = [&](int block, int slot) {
      const int key = block * kBlockKeys + fetched_unit * 16;
      const bool any_key = key + 16 > first && key < end;
      const int unit = pages.in_page(key / 16);
      const unsigned char* from = fetched_cache + pages.block(next_page);
      const int offset = any_key ? unit * K::kUnitBytes + fetched_row * K::kChunks * 16 : 0;
      next_page = page_of(block + 1);
      unsigned char* to = ring + slot * K::kSlotBytes + fetched_values * K::kTensorBytes +
                          (fetched_unit * 16 + fetched_row) * K::kRowBytes;
      // Two lanes a key where its bytes are no power of two: no division, no addresses to keep.
      constexpr bool kByRow = kFetchedRows == 16 && K::kChunks % 2 == 0 && (K::kChunks & (K::kChunks - 1)) != 0;
#pragma unroll
      for (int i = 0; i < (kFetchedRows * K::kChunks + 31) / 32; ++i) {
        const unsigned c = kByRow ? (unsigned(lane) >> 1) * K::kChunks + 2 * i + (lane & 1) : unsigned(i * 32 + lane);
        const unsigned row = kByRow ? unsigned(lane) >> 1 : c / K::kChunks, column = c - row * K::kChunks;
        if (kFetchedRows * K::kChunks % 32 != 0 && row >= kFetchedRows) break;
        const int at = key + fetched_row + int(row);
        cp_async<16>(to + row * K::kRowBytes + column * 16, from + offset + c * 16, at >= first && at < end);
      }
      if (K::k8Bit && warp < 4 && lane < 2) {  // 32 bytes of scales
        const int64_t scales = any_key ? int64_t(a.page_size) * D + unit * 32 + lane * 16 : 0;
        cp_async<16>(ring + slot * K::kSlotBytes + 2 * K::kTensorBytes + fetched_values * K::kScaleBytes +
                         fetched_unit * 32 + lane * 16,
                     from + scales, any_key);
      }
    };

    FragC sum[K::kUnits][kTiles][2] = {};
    float reference[kTiles][2], weight_sum[kTiles][2] = {};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) reference[tile][0] = reference[tile][1] = kNoScore;
    bool has_total = false;

    fetch(begin_block, begin_block % K::kSlots);
    cp_commit();
    for (int block = begin_block; block < end_block; ++block) {
      const int slot = block % K::kSlots;
      if (K::kSlots == 1 && block != begin_block) {
        bar_sync();  // everyone has left the block before it
        fetch(block, slot);
        cp_commit();
      }
      cp_wait<0>();
      bar_sync();  // the block is here, and everyone has left the one before it
      if (K::kSlots > 1) {
        if (block + 1 < end_block) fetch(block + 1, slot ^ 1);
        cp_commit();
      }
      const int block_key = block * kBlockKeys;
      const int4 seen = warp_keys[warp];
      if (block_key > seen.y || block_key + kBlockKeys <= seen.z) continue;  // nothing that its rows see
      const unsigned char *keys = ring + slot * K::kSlotBytes, *values = keys + K::kTensorBytes;
      const uint32_t* key_scales = reinterpret_cast<const uint32_t*>(keys + 2 * K::kTensorBytes);
      const uint32_t* value_scales = key_scales + K::kScaleBytes / 4;

      FragC s[kTiles][4] = {};
      K::template scores<kTiles, 2>(
          s,
          [&](int step, int tile) {
            FragA q;
            ldmatrix<4, false>(q.r, shared + (warp_row + 16 * tile + (lane & 15)) * K::kQueryRowBytes + step * 32 +
                                        16 * (lane >> 4));
            return q;
          },
          keys, lane);
      if constexpr (K::k8Bit) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 scale = unpack_f16(key_scales[4 * j + t]);
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) s[tile][j].r[i] = mul_rn(s[tile][j].r[i], i & 1 ? scale.y : scale.x);
          }
        }
      }
      const bool masked = block_key + kBlockKeys - 1 > seen.x || block_key < seen.w;
      if (a.scoring.adjusted || masked) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int row = warp_row + 16 * tile + g + 8 * e, position = row_position[row];
            const int row_first = first_key(position, a.sliding_window);
            const float slope = row_slope[row];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
#pragma unroll
              for (int i = 0; i < 2; ++i) {
                const int key = block_key + 8 * j + 2 * t + i;
                float& x = s[tile][j].r[2 * e + i];
                if (a.scoring.adjusted) x = adjust(a.scoring, x, slope, key, position);
                if (masked && (key > position || key < row_first)) x = -INFINITY;
              }
            }
          }
        }
      }

      float to[kTiles][2];
      bool moved = false;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float largest = fmaxf(s[tile][0].r[2 * e], s[tile][0].r[2 * e + 1]);
#pragma unroll
          for (int j = 1; j < 4; ++j) largest = fmaxf(largest, fmaxf(s[tile][j].r[2 * e], s[tile][j].r[2 * e + 1]));
          largest = fmaxf(largest, shfl_xor(largest, 1));
          largest = fmaxf(largest, shfl_xor(largest, 2));
          to[tile][e] = fmaxf(reference[tile][e], largest);
          moved = moved || to[tile][e] != reference[tile][e];
        }
      }
      if (any(moved)) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const float f[2] = {rescale(a.scoring, reference[tile][0], to[tile][0]),
                              rescale(a.scoring, reference[tile][1], to[tile][1])};
#pragma unroll
          for (int e = 0; e < 2; ++e) weight_sum[tile][e] = mul_rn(weight_sum[tile][e], f[e]);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int u = 0; u < K::kUnits; ++u) {
              sum[u][tile][0].r[i] = mul_rn(sum[u][tile][0].r[i], f[i >> 1]);
              sum[u][tile][1].r[i] = mul_rn(sum[u][tile][1].r[i], f[i >> 1]);
            }
          }
          reference[tile][0] = to[tile][0], reference[tile][1] = to[tile][1];
        }
      }
      FragA w[2][kTiles];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float base[2] = {base_of(a.scoring, reference[tile][0]), base_of(a.scoring, reference[tile][1])};
        FragA scaled[2];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float x = weight_of(a.scoring, s[tile][j].r[2 * e], base[e]);
            const float y = weight_of(a.scoring, s[tile][j].r[2 * e + 1], base[e]);
            w[j >> 1][tile].r[2 * (j & 1) + e] = K::pack(x, y);
            if constexpr (K::k8Bit) scaled[j >> 1].r[2 * (j & 1) + e] = K::pack_scaled(x, y, value_scales[4 * j + t]);
          }
        }
        FragC ones_column{{weight_sum[tile][0], weight_sum[tile][0], weight_sum[tile][1], weight_sum[tile][1]}};
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          K::mma(ones_column, w[step][tile], K::ones());
          if constexpr (K::k8Bit) w[step][tile] = scaled[step];
        }
        weight_sum[tile][0] = ones_column.r[0], weight_sum[tile][1] = ones_column.r[2];
      }
#pragma unroll
      for (int u = 0; u < K::kUnits; ++u) K::template weigh<kTiles>(sum[u], w, values, u, lane);

      // Chunks that end here, of those rows whose chunks are of that size.
      const int next_key = block_key + kBlockKeys;
      if (next_key % 256 == 0 && block + 1 < end_block) {
        bool ends[kTiles][2], any_ends = false;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int position = row_position[warp_row + 16 * tile + g + 8 * e];
            ends[tile][e] = (next_key & (chunk_keys(visible_keys(position, a.sliding_window)) - 1)) == 0;
            any_ends = any_ends || ends[tile][e];
          }
        }
        if (any(any_ends)) {
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            float2 f[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              Total total;
              if (has_total) {
                const float2 state = row_total[tile][e][thread];
                total.reference = state.x, total.weight = state.y;
              }
              f[e] = make_float2(1.0f, 0.0f);
              if (ends[tile][e]) {
                f[e] = total.fold(a.scoring, reference[tile][e], weight_sum[tile][e]);
                reference[tile][e] = kNoScore;
                weight_sum[tile][e] = 0.0f;
              }
              row_total[tile][e][thread] = make_float2(total.reference, total.weight);
            }
#pragma unroll
            for (int u = 0; u < K::kUnits; ++u) {
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                float4* at = totals() + ((u * kTiles + tile) * 2 + h) * 32;
                FragC& x = sum[u][tile][h];
                float4 y = has_total ? *at : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (ends[tile][0]) {
                  y.x = folded(y.x, x.r[0], f[0]), y.y = folded(y.y, x.r[1], f[0]);
                  x.r[0] = x.r[1] = 0.0f;
                }
                if (ends[tile][1]) {
                  y.z = folded(y.z, x.r[2], f[1]), y.w = folded(y.w, x.r[3], f[1]);
                  x.r[2] = x.r[3] = 0.0f;
                }
                *at = y;
              }
            }
          }
          has_total = true;
        }
      }
    }

    if (warp_keys[warp].y < 0) continue;  // no rows
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float2 f[2];
      float inverse[2];
      int64_t out[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        Total total;
        if (has_total) {
          const float2 state = row_total[tile][e][thread];
          total.reference = state.x, total.weight = state.y;
        }
        f[e] = total.fold(a.scoring, reference[tile][e], weight_sum[tile][e]);
        inverse[e] = inverse_weight(total.weight);
        out[e] = int64_t(row_out[warp_row + 16 * tile + g + 8 * e]) * D;
      }
#pragma unroll
      for (int u = 0; u < K::kUnits; ++u) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          FragC& x = sum[u][tile][h];
          float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          if (has_total) y = totals()[((u * kTiles + tile) * 2 + h) * 32];
          x.r[0] = folded(y.x, x.r[0], f[0]), x.r[1] = folded(y.y, x.r[1], f[0]);
          x.r[2] = folded(y.z, x.r[2], f[1]), x.r[3] = folded(y.w, x.r[3], f[1]);
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (out[e] < 0) continue;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float2 x = K::pair(sum[u][tile], e, h);
            store_pair(a.out, a.query_type, out[e] + K::column(u, h, t), mul_rn(x.x, inverse[e]),
                       mul_rn(x.y, inverse[e]));
          }
        }
      }
    }
  }
}

template <CacheType C, int D, bool kLess>
void run(const AttentionArgs& a, cudaStream_t stream) {
  using K = Prefill<C, D, kLess>;
  if constexpr (!K::kFitsAll) {
    if (block_shared() < K::kAll) return run<C, D, true>(a, stream);
  }
  launch(prefill_kernel<C, D, kLess>, dim3(unsigned(a.work.prefill_grid)), dim3(K::kThreads), K::kShared, stream, a);
}

template <CacheType C>
void run_head_dim(const AttentionArgs& a, cudaStream_t stream) {
  with_head_dim(a.head_dim, [&](auto d) { run<C, decltype(d)::value, false>(a, stream); });
}

}  // namespace

// As many as of the widest cache.
int prefill_ctas(CacheType, int head_dim) {
  return with_head_dim(head_dim, [](auto d) {
    using K = Prefill<CacheType::kFloat16, decltype(d)::value, false>;
    return blocks_of_sm(K::kAll, K::kCtas);
  });
}

void attention_prefill(const AttentionArgs& a, cudaStream_t stream) {
  switch (a.cache_type) {
    case CacheType::kBFloat16: return run_head_dim<CacheType::kBFloat16>(a, stream);
    case CacheType::kFloat16: return run_head_dim<CacheType::kFloat16>(a, stream);
    case CacheType::kInt8: return run_head_dim<CacheType::kInt8>(a, stream);
    case CacheType::kFloat8: return run_head_dim<CacheType::kFloat8>(a, stream);
    case CacheType::kFloat32: break;
  }
}

}  // namespace octavo::cuda
