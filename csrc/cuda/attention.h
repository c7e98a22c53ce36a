// Causal attention over the paged cache on CUDA; the contract is Ops.paged_attention, the cache is cache_view.h's.
#pragma once

#include <cuda_runtime_api.h>

#include "octavo/types.h"

namespace octavo::cuda {

constexpr int kDecodeRows = 16;     // of a decode tile
constexpr int kMaxDecodeTiles = 4;  // a sequence of more goes to the prefill kernel
constexpr int kPrefillRows = 128;   // of a prefill tile

// One tile of a sequence's rows (query token * group + head of the group) against a run of chunks of its keys. All rows
// of a tile have chunks of one size.
struct DecodeItem {
  int32_t seq, first_row, rows;
  int32_t chunk_begin, chunk_end;  // absolute: chunk c holds keys c * chunk_keys ...
  int32_t slot;  // the first of its partial results, a slot for each chunk and row; -1: it holds all of the tile's keys
  int32_t tile_slot, tile_chunks, tile_items;  // of the whole tile
  int32_t padding[3];
};

struct PrefillItem {
  int32_t seq, first_row;
};

// Device memory that lives as long as the backend. A list holds for every layer of a step with one group and window.
struct AttentionWork {
  int32_t* counts;  // [2] decode items, prefill items
  DecodeItem* decode;
  PrefillItem* prefill;
  uint32_t* arrivals;  // [partial_slots]
  float* partials;     // [partial_slots, head_dim + 2]: unnormalised output, its reference, its weight
  float* totals;       // [prefill_grid, kPrefillRows, head_dim]: of the chunks before the present one
  int32_t partial_slots;  // for each chunk, row and head that wait for a merge; a tile that finds none is not cut
  int32_t decode_grid, prefill_grid;  // CTAs
};

// Scores as the softmax takes them: exponents are score * factor, in base 2. Kernels read it from their parameters,
// which takes no registers.
struct Scoring {
  float factor;
  float scale, softcap, cap_factor;  // of an adjusted score: times scale, capped if softcap > 0, and the slope's part
  bool adjusted;
  bool rounded;  // slopes are bfloat16, and so is slope * bfloat16(key), which is then scaled too: Falcon's ALiBi
};

struct PlanArgs {
  AttentionWork work;
  const int32_t* query_start;  // [num_seqs + 1]
  const int32_t* seq_lens;     // [num_seqs]
  int32_t num_seqs, num_heads, num_kv_heads;
  int32_t sliding_window;  // 0: none
  int32_t cut_items;       // the most that tiles may be cut into, all together
  bool decode_only;        // make no prefill items
};

// The most tiles, each an item or cut into some, of `tokens` query tokens of `num_seqs` sequences. The rows of one may
// have chunks of five sizes.
inline int64_t max_decode_tiles(int64_t tokens, int64_t num_seqs, int64_t group) {
  return tokens * group / kDecodeRows + 5 * num_seqs;
}
inline int64_t max_prefill_items(int64_t tokens, int64_t num_seqs, int64_t group) {
  return tokens * group / kPrefillRows + num_seqs;
}

struct AttentionArgs {
  AttentionWork work;
  void* out;            // [tokens, num_heads * head_dim], of the queries' type
  const void* queries;  // [tokens, >= num_heads * head_dim]
  int64_t query_stride;  // elements from row to row
  DType query_type;
  CacheType cache_type;
  const void *keys, *values;   // one layer, as cache_view.h says
  const int32_t* page_table;   // [num_seqs, max_pages]
  const int32_t* query_start;  // [num_seqs + 1]
  const int32_t* seq_lens;     // [num_seqs]
  int32_t num_seqs, tokens, max_pages;
  int32_t num_heads, num_kv_heads, head_dim, page_size;
  int32_t sliding_window;  // 0: none
  const void* alibi_slopes;  // [num_heads] float32, or bfloat16 where scoring.rounded; or null
  Scoring scoring;            // of make_scoring
};

// scale, softcap: of Ops.paged_attention. rounded: the slopes are bfloat16.
Scoring make_scoring(float scale, float softcap, bool has_slopes, bool rounded);

// CTAs of each kernel that one SM holds.
int decode_ctas(CacheType cache, int head_dim);
int prefill_ctas(CacheType cache, int head_dim);
// Fills work's lists from the device's query_start and seq_lens.
void plan_attention(const PlanArgs& args, cudaStream_t stream);
void attention_decode(const AttentionArgs& args, cudaStream_t stream);
void attention_prefill(const AttentionArgs& args, cudaStream_t stream);
// Any even head size to 256 and any type; one warp a row and head. Reads no work list.
void attention_simple(const AttentionArgs& args, cudaStream_t stream);

}  // namespace octavo::cuda
