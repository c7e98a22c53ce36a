// Paged decode attention on tensor cores: tiles of 16 rows (query heads of a group, a few tokens) against long keys.
//
// Contract: Ops.paged_attention, for the tiles of work.decode; attention.cuh gives the order of every sum.
// Shape: a CTA of four warps takes one item, a tile of rows against a run of chunks. 64 keys at a time lie in shared
// memory, in a ring filled by cp.async. For scores each warp holds 16 keys, for P V a quarter of the head's dims; the
// weights cross through shared memory. So sums run over keys in one order, as in prefill, and there are no accumulators
// of warps to merge. Bound by memory: 64 keys of 128 dims are 32 KB, 2500 cycles of an SM of an H100.
// Where a block has no room for such a ring, it is one of two tiles, or the tile itself, and the bits are the same.
// An item that holds all of a tile's chunks writes the output; else each chunk's result waits in work.partials, and the
// item that arrives last folds them in the order of chunks. What a row comes to does not depend on how items were cut.
#include "attention.cuh"
#include "launch.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128, kWarps = 4, kTileKeys = 64;

// kLess: for devices of kLeastShared.
template <CacheType C, int D, bool kLess>
struct Decode : Cache<C, D> {
  using Base = Cache<C, D>;
  static constexpr int kUnits = D / 16, kWarpUnits = (kUnits + kWarps - 1) / kWarps;  // of 16 dims
  static constexpr int kTensorBytes = kTileKeys * Base::kRowBytes;
  static constexpr int kScaleBytes = Base::k8Bit ? kTileKeys * 2 : 0;
  static constexpr int kSlotBytes = 2 * (kTensorBytes + kScaleBytes);
  // All but one are in flight: with the CTAs that fit an SM of sm_90 (228 KB, of which one takes 5 KB besides) 70 to
  // 140 KB, where 20 would do if demand were steady.
  static constexpr int kSlots = kLess ? (kSlotBytes > 46 * 1024 ? 1 : 2)
                                      : kSlotBytes > 52 * 1024 ? 2 : kSlotBytes > 18500 ? 3 : 4;
  static constexpr int kShared = kSlots * kSlotBytes;
  static constexpr int kStatic = kWarps * 16 * 4 + (Base::k8Bit ? 2 : 1) * kWarps * 32 * 16 + 16;
  static constexpr int kAll = kShared + kStatic;
  static constexpr int kCtas = kLess || kShared > 108 * 1024 ? 1 : kShared > 72 * 1024 ? 2 : 3;
  static constexpr bool kFitsAll = kAll <= kLeastShared;
  static_assert(!kLess || kFitsAll);
};

// All threads of the CTA: row r (16 of them) of the tile is query token first_token + (first_row + r) / group, head
// first_head + (first_row + r) % group.
struct Tile {
  const AttentionArgs& a;
  int first_row, group, first_token, first_head;
  OCTAVO_DEVICE int64_t token(int r) const { return first_token + (first_row + r) / group; }
  OCTAVO_DEVICE int head(int r) const { return first_head + (first_row + r) % group; }
  OCTAVO_DEVICE int64_t out(int r, int head_dim) const {
    return (token(r) * a.num_heads + head(r)) * head_dim;
  }
};

// The last of a tile's items: chunks' results in their order.
template <int D>
OCTAVO_DEVICE void merge(const AttentionArgs& a, const Tile& tile, const DecodeItem& item, int head) {
  const int64_t row_stride = int64_t(a.num_kv_heads) * (D + 2), chunk_stride = item.rows * row_stride;
  const float* partials = a.work.partials + item.tile_slot * row_stride + head * (D + 2);
  for (int i = int(threadIdx.x); i < item.rows * (D / 2); i += kThreads) {
    const int row = i / (D / 2), column = i % (D / 2) * 2;
    const float* from = partials + row * row_stride;
    Total total;
    float2 sum = make_float2(0.0f, 0.0f);
    for (int chunk = 0; chunk < item.tile_chunks; ++chunk, from += chunk_stride) {
      const float2 state = ldcg(reinterpret_cast<const float2*>(from + D));
      const float2 value = ldcg(reinterpret_cast<const float2*>(from + column));
      const float2 factors = total.fold(a.scoring, state.x, state.y);
      sum.x = folded(sum.x, value.x, factors);
      sum.y = folded(sum.y, value.y, factors);
    }
    const float inverse = inverse_weight(total.weight);
    store_pair(a.out, a.query_type, tile.out(row, D) + column, mul_rn(sum.x, inverse), mul_rn(sum.y, inverse));
  }
}

template <CacheType C, int D, bool kLess>
__global__ void __launch_bounds__(kThreads, (Decode<C, D, kLess>::kCtas)) decode_kernel(AttentionArgs a) {
  using K = Decode<C, D, kLess>;
  OCTAVO_DYNAMIC_SHARED(unsigned char, ring);
  OCTAVO_SHARED(float, row_max, [kWarps][16]);
  OCTAVO_SHARED(uint4, weights, [K::k8Bit ? 2 : 1][kWarps][32]);  // P as A registers; [1] times the values' scales
  OCTAVO_SHARED(int, is_last, [1]);
  pdl_wait();
  pdl_launch();
  const int thread = int(threadIdx.x), lane = thread & 31, warp = thread >> 5, g = lane >> 2, t = lane & 3;
  const int group = a.num_heads / a.num_kv_heads, num_items = a.work.counts[0] * a.num_kv_heads;
  constexpr int kScaled = K::k8Bit ? 1 : 0;

  for (int work = int(blockIdx.x); work < num_items; work += int(gridDim.x)) {
    const DecodeItem item = a.work.decode[work / a.num_kv_heads];
    const int head = work % a.num_kv_heads;
    const int first_query = a.query_start[item.seq], end_query = a.query_start[item.seq + 1];
    const int first_position = a.seq_lens[item.seq] - (end_query - first_query);
    const Tile tile{a, item.first_row, group, first_query, head * group};

    // Rows past the tile's stand for its first one, with zero queries.
    int position[2];
    float slope[2];
    FragA query[D / 16];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const bool live = g + 8 * e < item.rows;
      const int row = live ? g + 8 * e : 0;
      position[e] = first_position + (item.first_row + row) / group;
      slope[e] = slope_of(a, tile.head(row));
      const int64_t from = tile.token(row) * a.query_stride + tile.head(row) * D;
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int column = 16 * step + (K::k8Bit ? 4 * t + 2 * h : 2 * t + 8 * h);
          query[step].r[2 * h + e] =
              live ? load_query_pair<K::kBF16>(a.queries, a.query_type, from + column) : 0u;
        }
      }
    }
    const int low = first_position + item.first_row / group;
    const int high = first_position + (item.first_row + item.rows - 1) / group;  // of the rows' positions
    const int first = first_key(low, a.sliding_window), first_of_all = first_key(high, a.sliding_window);
    const int chunk_size = chunk_keys(visible_keys(high, a.sliding_window));
    const int begin = max(first, item.chunk_begin * chunk_size), end = min(high + 1, item.chunk_end * chunk_size);
    const int begin_tile = begin / kTileKeys, end_tile = (end + kTileKeys - 1) / kTileKeys;

    // Warp w fetches keys 16 w .. 16 w + 15 of each tile, all of one page, whose number was read one tile ahead.
    const Pages<K, D> pages(a, item.seq, head);
    const auto page_of = [&](int tile_index) {
      const int key = tile_index * kTileKeys + warp * 16;
      return key + 16 > first && key < end ? pages.page(key / 16) : 0;
    };
    int next_page = page_of(begin_tile);
    const auto fetch = [&](int tile_index, int slot) {
      const int key = tile_index * kTileKeys + warp * 16;
      const bool any_key = key + 16 > first && key < end;
      const int unit = pages.in_page(key / 16);
      const int64_t block = pages.block(next_page), offset = any_key ? block + int64_t(unit) * K::kUnitBytes : 0;
      next_page = page_of(tile_index + 1);
      unsigned char* to = ring + slot * K::kSlotBytes;
      const auto* key_cache = static_cast<const unsigned char*>(a.keys);
      const auto* value_cache = static_cast<const unsigned char*>(a.values);
#pragma unroll
      for (int i = 0; i < (16 * K::kChunks + 31) / 32; ++i) {
        const unsigned c = unsigned(i * 32 + lane), row = c / K::kChunks, column = c % K::kChunks;
        if (16 * K::kChunks % 32 != 0 && row >= 16) break;
        const bool valid = key + int(row) >= first && key + int(row) < end;
        unsigned char* line = to + (unsigned(warp * 16) + row) * K::kRowBytes + column * 16;
        cp_async<16>(line, key_cache + offset + c * 16, valid);
        cp_async<16>(line + K::kTensorBytes, value_cache + offset + c * 16, valid);
      }
      if (K::k8Bit && lane < 4) {  // 32 bytes of keys' scales, 32 of values'
        const int v = lane >> 1, half = lane & 1;
        const int64_t scales = any_key ? block + int64_t(a.page_size) * D + unit * 32 + half * 16 : 0;
        cp_async<16>(to + 2 * K::kTensorBytes + v * K::kScaleBytes + warp * 32 + half * 16,
                     (v ? value_cache : key_cache) + scales, any_key);
      }
    };

    FragC sum[K::kWarpUnits][1][2] = {}, weight_sum = {};
    FragC total_sum[K::kWarpUnits][2] = {};
    Total total[2];
    float reference[2] = {kNoScore, kNoScore};
    bar_sync();  // the ring, the last item's
#pragma unroll
    for (int i = 0; i < K::kSlots - 1; ++i) {
      if (begin_tile + i < end_tile) fetch(begin_tile + i, i);
      cp_commit();
    }
    int slot = 0, chunk_slot = item.slot;
    for (int index = begin_tile; index < end_tile; ++index) {
      if constexpr (K::kSlots == 1) {
        if (index != begin_tile) bar_sync();  // everyone has left the tile before it
        fetch(index, 0);
        cp_commit();
        cp_wait<0>();
        bar_sync();
      } else {
        cp_wait<K::kSlots - 2>();
        bar_sync();  // the tile is here, and everyone has left the one before it
        const int free_slot = slot == 0 ? K::kSlots - 1 : slot - 1;
        if (index + K::kSlots - 1 < end_tile) fetch(index + K::kSlots - 1, free_slot);
        cp_commit();
      }
      const unsigned char *keys = ring + slot * K::kSlotBytes, *values = keys + K::kTensorBytes;
      const unsigned char *key_scales = keys + 2 * K::kTensorBytes, *value_scales = key_scales + K::kScaleBytes;
      slot = slot + 1 == K::kSlots ? 0 : slot + 1;

      FragC s[1][2] = {};
      K::template scores<1, 1>(
          s, [&](int step, int) { return query[step]; }, keys + warp * 16 * K::kRowBytes, lane);
      const int warp_key = index * kTileKeys + warp * 16;
      const bool masked = index * kTileKeys + kTileKeys - 1 > low || index * kTileKeys < first_of_all;
      float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if constexpr (K::k8Bit) {
          const float2 scale = unpack_f16(reinterpret_cast<const uint32_t*>(key_scales)[warp * 8 + 4 * j + t]);
#pragma unroll
          for (int i = 0; i < 4; ++i) s[0][j].r[i] = mul_rn(s[0][j].r[i], i & 1 ? scale.y : scale.x);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = warp_key + 8 * j + 2 * t + (i & 1), e = i >> 1;
          float x = s[0][j].r[i];
          if (a.scoring.adjusted) x = adjust(a.scoring, x, slope[e], key, position[e]);
          if (masked && (key > position[e] || key < first_key(position[e], a.sliding_window))) x = -INFINITY;
          s[0][j].r[i] = x;
          largest[e] = fmaxf(largest[e], x);
        }
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        largest[e] = fmaxf(largest[e], shfl_xor(largest[e], 1));
        largest[e] = fmaxf(largest[e], shfl_xor(largest[e], 2));
        if (t == 0) row_max[warp][g + 8 * e] = largest[e];
      }
      bar_sync();
      // Two blocks of 32 keys: the row's reference before, between and behind.
      float between[2], behind[2];
      FragA p, scaled;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int r = g + 8 * e;
        between[e] = fmaxf(reference[e], fmaxf(row_max[0][r], row_max[1][r]));
        behind[e] = fmaxf(between[e], fmaxf(row_max[2][r], row_max[3][r]));
        const float base = base_of(a.scoring, warp < 2 ? between[e] : behind[e]);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float x = weight_of(a.scoring, s[0][j].r[2 * e], base);
          const float y = weight_of(a.scoring, s[0][j].r[2 * e + 1], base);
          p.r[2 * j + e] = K::pack(x, y);
          if constexpr (K::k8Bit) {
            scaled.r[2 * j + e] = K::pack_scaled(
                x, y, reinterpret_cast<const uint32_t*>(value_scales)[warp * 8 + 4 * j + t]);
          }
        }
      }
      weights[0][warp][lane] = make_uint4(p.r[0], p.r[1], p.r[2], p.r[3]);
      if constexpr (K::k8Bit) {
        weights[kScaled][warp][lane] = make_uint4(scaled.r[0], scaled.r[1], scaled.r[2], scaled.r[3]);
      }
      bar_sync();
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        const float* to = block ? behind : between;
        if (any(to[0] != reference[0] || to[1] != reference[1])) {
          const float f[2] = {rescale(a.scoring, reference[0], to[0]), rescale(a.scoring, reference[1], to[1])};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            weight_sum.r[i] = mul_rn(weight_sum.r[i], f[i >> 1]);
#pragma unroll
            for (int u = 0; u < K::kWarpUnits; ++u) {
              sum[u][0][0].r[i] = mul_rn(sum[u][0][0].r[i], f[i >> 1]);
              sum[u][0][1].r[i] = mul_rn(sum[u][0][1].r[i], f[i >> 1]);
            }
          }
        }
        reference[0] = to[0], reference[1] = to[1];
        FragA w[2][1];
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const uint4 x = weights[0][2 * block + step][lane];
          w[step][0] = FragA{{x.x, x.y, x.z, x.w}};
          K::mma(weight_sum, w[step][0], K::ones());
          if constexpr (K::k8Bit) {
            const uint4 y = weights[kScaled][2 * block + step][lane];
            w[step][0] = FragA{{y.x, y.y, y.z, y.w}};
          }
        }
#pragma unroll
        for (int u = 0; u < K::kWarpUnits; ++u) {
          const int unit = warp + kWarps * u;
          if (K::kUnits % kWarps == 0 || unit < K::kUnits) {
            K::template weigh<1>(sum[u], w, values + block * kBlockKeys * K::kRowBytes, unit, lane);
          }
        }
      }

      // A chunk's end: onto the total, or to memory for the merge.
      if ((index + 1) * kTileKeys % chunk_size == 0 || index + 1 == end_tile) {
        if (item.slot < 0) {
          const float2 f[2] = {total[0].fold(a.scoring, reference[0], weight_sum.r[0]),
                               total[1].fold(a.scoring, reference[1], weight_sum.r[2])};
#pragma unroll
          for (int u = 0; u < K::kWarpUnits; ++u) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              float& x = total_sum[u][i >> 2].r[i & 3];
              x = folded(x, sum[u][0][i >> 2].r[i & 3], f[i >> 1 & 1]);
            }
          }
        } else {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (g + 8 * e >= item.rows) continue;
            float* row = a.work.partials + (int64_t(chunk_slot + g + 8 * e) * a.num_kv_heads + head) * (D + 2);
#pragma unroll
            for (int u = 0; u < K::kWarpUnits; ++u) {
              const int unit = warp + kWarps * u;
              if (unit >= K::kUnits) continue;
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                *reinterpret_cast<float2*>(row + K::column(unit, h, t)) = K::pair(sum[u][0], e, h);
              }
            }
            if (warp == 0 && t == 0) {
              *reinterpret_cast<float2*>(row + D) = make_float2(reference[e], weight_sum.r[2 * e]);
            }
          }
          chunk_slot += item.rows;
        }
#pragma unroll
        for (int u = 0; u < K::kWarpUnits; ++u) sum[u][0][0] = sum[u][0][1] = FragC{};
        weight_sum = FragC{};
        reference[0] = reference[1] = kNoScore;
      }
    }

    if (item.slot < 0) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (g + 8 * e >= item.rows) continue;
        const float inverse = inverse_weight(total[e].weight);
        const int64_t to = tile.out(g + 8 * e, D);
#pragma unroll
        for (int u = 0; u < K::kWarpUnits; ++u) {
          const int unit = warp + kWarps * u;
          if (unit >= K::kUnits) continue;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float2 x = K::pair(total_sum[u], e, h);
            store_pair(a.out, a.query_type, to + K::column(unit, h, t), mul_rn(x.x, inverse), mul_rn(x.y, inverse));
          }
        }
      }
    } else {
      fence_gpu();
      bar_sync();
      if (thread == 0) {
        uint32_t* arrivals = a.work.arrivals + int64_t(item.tile_slot) * a.num_kv_heads + head;
        is_last[0] = atom_inc(arrivals, uint32_t(item.tile_items) - 1) == uint32_t(item.tile_items) - 1;
      }
      bar_sync();
      if (is_last[0]) {
        fence_gpu();
        merge<D>(a, tile, item, head);
      }
    }
  }
}

template <CacheType C, int D, bool kLess>
void run(const AttentionArgs& a, cudaStream_t stream) {
  using K = Decode<C, D, kLess>;
  if constexpr (!K::kFitsAll) {
    if (block_shared() < K::kAll) return run<C, D, true>(a, stream);
  }
  launch(decode_kernel<C, D, kLess>, dim3(unsigned(a.work.decode_grid)), dim3(kThreads), K::kShared, stream, a);
}

template <CacheType C>
void run_head_dim(const AttentionArgs& a, cudaStream_t stream) {
  with_head_dim(a.head_dim, [&](auto d) { run<C, decltype(d)::value, false>(a, stream); });
}

template <CacheType C, int D>
int ctas() {
  using K = Decode<C, D, false>;
  if constexpr (!K::kFitsAll) {
    if (block_shared() < K::kAll) return blocks_of_sm(Decode<C, D, true>::kAll, K::kCtas);
  }
  return blocks_of_sm(K::kAll, K::kCtas);
}

}  // namespace

int decode_ctas(CacheType cache, int head_dim) {
  const bool wide = cache == CacheType::kBFloat16 || cache == CacheType::kFloat16;
  return with_head_dim(head_dim, [&](auto d) {
    return wide ? ctas<CacheType::kFloat16, decltype(d)::value>() : ctas<CacheType::kInt8, decltype(d)::value>();
  });
}

void attention_decode(const AttentionArgs& a, cudaStream_t stream) {
  switch (a.cache_type) {
    case CacheType::kBFloat16: return run_head_dim<CacheType::kBFloat16>(a, stream);
    case CacheType::kFloat16: return run_head_dim<CacheType::kFloat16>(a, stream);
    case CacheType::kInt8: return run_head_dim<CacheType::kInt8>(a, stream);
    case CacheType::kFloat8: return run_head_dim<CacheType::kFloat8>(a, stream);
    case CacheType::kFloat32: break;
  }
}

}  // namespace octavo::cuda
