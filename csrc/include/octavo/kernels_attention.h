// Causal attention over the paged cache; the contract is Ops.paged_attention, the layouts are ops.KVLayout.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

struct AttentionArgs {
  void* out;  // [tokens, num_heads * head_dim], of the queries' type
  const void* queries;  // [tokens, >= num_heads * head_dim]
  int64_t query_stride;  // elements from row to row
  DType query_type;  // float32 or bfloat16
  const void* keys;    // one layer, ops.KVLayout: [pages, num_kv_heads, head_dim / p, page_size, p]; int8: two lines more
  const void* values;  // one layer: [pages, num_kv_heads, page_size / p, head_dim, p]
  CacheType cache_type;
  const int32_t* page_table;  // [num_seqs, max_pages]
  int64_t max_pages;
  const int32_t* query_start;  // [num_seqs + 1]
  const int32_t* seq_lens;     // [num_seqs]
  int64_t num_seqs;
  int64_t num_heads, num_kv_heads, head_dim, page_size;
  float scale;
  int64_t sliding_window;  // 0: none
  const float* alibi_slopes;  // [num_heads] or null
  const bf16* alibi_bf16;     // [num_heads] or null: slopes of a bias that is rounded, and scaled with the products
  float softcap;  // 0: none
};

struct AttentionKernels {
  void (*paged_attention)(const AttentionArgs& args);
};

OCTAVO_KERNELS(AttentionKernels, attention_kernels)

}  // namespace octavo
