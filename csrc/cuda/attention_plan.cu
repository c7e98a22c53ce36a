// The work lists of a step's attention, made on the device so that a captured graph serves any lengths.
//
// One block, once a step for all layers with one window. Which kernel takes a tile, and into how many items its chunks
// are cut, looks at the whole batch and at the machine, for it does not show in the results (attention.cuh).
#include "attention.cuh"
#include "launch.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

// One sequence's.
struct Rows {
  int group, count, first_position, window;
  bool decode;
  OCTAVO_DEVICE Rows(const PlanArgs& a, int seq) : group(a.num_heads / a.num_kv_heads), window(a.sliding_window) {
    const int queries = a.query_start[seq + 1] - a.query_start[seq];
    count = queries * group;
    first_position = a.seq_lens[seq] - queries;
    decode = a.decode_only || queries == 1 || count <= kMaxDecodeTiles * kDecodeRows;
  }
  OCTAVO_DEVICE int position(int row) const { return first_position + row / group; }
  OCTAVO_DEVICE int visible(int row) const { return visible_keys(position(row), window); }
  // Of the decode tile that starts there: its rows have chunks of one size.
  OCTAVO_DEVICE int tile_end(int row) const {
    int end = min(row + kDecodeRows, count);
    while (chunk_keys(visible(end - 1)) != chunk_keys(visible(row))) --end;
    return end;
  }
};

__global__ void __launch_bounds__(kThreads) plan_kernel(PlanArgs a) {
  // Decode items, prefill items, slots of each head, keys / 16 of decode tiles, items of tiles that are cut.
  OCTAVO_SHARED(uint32_t, taken, [5]);
  pdl_wait();
  pdl_launch();
  const int thread = int(threadIdx.x);
  if (thread < 5) taken[thread] = 0;
  bar_sync();
  for (int seq = thread; seq < a.num_seqs; seq += kThreads) {
    const Rows rows(a, seq);
    if (rows.decode && rows.count > 0) {
      const int tiles = (rows.count + kDecodeRows - 1) / kDecodeRows;
      atom_add_u32(taken + 3, uint32_t(tiles) * uint32_t(rows.visible(rows.count - 1) / 16 + 1));
    }
  }
  bar_sync();
  // Keys of an item: two items a CTA, so that an SM that is done early finds another.
  const uint64_t all = uint64_t(taken[3]) * 16 * uint64_t(a.num_kv_heads);
  const int target = max(256, int(all / uint64_t(2 * a.work.decode_grid)));
  const int slots = a.work.partial_slots / a.num_kv_heads;

  for (int seq = thread; seq < a.num_seqs; seq += kThreads) {
    const Rows rows(a, seq);
    if (rows.count == 0) continue;
    if (!rows.decode) {
      const int tiles = (rows.count + kPrefillRows - 1) / kPrefillRows;
      const int at = int(atom_add_u32(taken + 1, uint32_t(tiles)));
      for (int tile = 0; tile < tiles; ++tile) {  // the last rows see most keys: they go first
        a.work.prefill[at + tile] = PrefillItem{seq, (tiles - 1 - tile) * kPrefillRows};
      }
      continue;
    }
    for (int row = 0, end; row < rows.count; row = end) {
      end = rows.tile_end(row);
      DecodeItem item{};
      item.seq = seq;
      item.first_row = row;
      item.rows = end - row;
      const int size = chunk_keys(rows.visible(row));
      const int first = first_key(rows.position(row), a.sliding_window) / size;
      const int chunks = max(rows.position(end - 1), 0) / size - first + 1, most = max(1, target / size);
      int items = (chunks + most - 1) / most, run = (chunks + items - 1) / items, slot = -1;
      items = (chunks + run - 1) / run;
      if (items > 1) {
        slot = int(atom_add_u32(taken + 2, uint32_t(chunks * item.rows)));
        const int cut = int(atom_add_u32(taken + 4, uint32_t(items)));
        if (slot + chunks * item.rows > slots || cut + items > a.cut_items) items = 1, run = chunks, slot = -1;
      }
      item.tile_slot = slot;
      item.tile_chunks = chunks;
      item.tile_items = items;
      const int at = int(atom_add_u32(taken, uint32_t(items)));
      for (int i = 0; i < items; ++i) {
        item.chunk_begin = first + i * run;
        item.chunk_end = first + min(chunks, (i + 1) * run);
        item.slot = slot < 0 ? -1 : slot + i * run * item.rows;
        a.work.decode[at + i] = item;
      }
      if (slot >= 0) {
        for (int head = 0; head < a.num_kv_heads; ++head) a.work.arrivals[slot * a.num_kv_heads + head] = 0;
      }
    }
  }
  bar_sync();
  if (thread < 2) a.work.counts[thread] = int32_t(taken[thread]);
}

}  // namespace

Scoring make_scoring(float scale, float softcap, bool has_slopes, bool rounded) {
  if (softcap <= 0.0f && !has_slopes) return Scoring{scale * kLog2e, scale, 0.0f, 0.0f, false, false};
  return Scoring{kLog2e, scale, softcap, softcap > 0.0f ? 2.0f * kLog2e / softcap : 0.0f, true, rounded};
}

void plan_attention(const PlanArgs& a, cudaStream_t stream) {
  launch(plan_kernel, dim3(1), dim3(kThreads), 0, stream, a);
}

}  // namespace octavo::cuda
