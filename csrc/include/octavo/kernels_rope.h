// Rotary embedding and the write to the paged cache; the contract is Ops.rope_and_cache.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

struct RopeArgs {
  void* qkv;  // [tokens, (num_heads + 2 * num_kv_heads) * head_dim], q and k rotated in place
  int64_t stride;  // elements from row to row
  DType type;  // float32 or bfloat16
  void* keys;    // one layer, ops.KVLayout: [pages, num_kv_heads, head_dim / p, page_size, p]; int8: two lines more
  void* values;  // one layer: [pages, num_kv_heads, page_size / p, head_dim, p]
  CacheType cache_type;
  const int32_t* slots;      // [tokens] page * page_size + offset
  const int32_t* positions;  // [tokens]
  const float* cos_sin;      // [max_position, rotary] cosines then sines, or null
  int64_t rotary;            // even, <= head_dim
  int64_t tokens, num_heads, num_kv_heads, head_dim, page_size;
  bool interleaved;
};

struct RopeKernels {
  void (*rope_and_cache)(const RopeArgs& args);
};

OCTAVO_KERNELS(RopeKernels, rope_kernels)

}  // namespace octavo
