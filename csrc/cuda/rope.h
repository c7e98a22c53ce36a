// Rotary embedding and the write to the paged cache; the contract is Ops.rope_and_cache.
#pragma once

#include <cuda_runtime_api.h>

#include "octavo/types.h"

namespace octavo::cuda {

struct RopeArgs {
  void* qkv;       // [tokens, (num_heads + 2 * num_kv_heads) * head_dim], q and k rotated in place
  int64_t stride;  // elements from row to row
  DType type;
  void *keys, *values;  // one layer, as cache_view.h says
  CacheType cache_type;
  const int32_t* slots;      // [tokens] page * page_size + offset; a row of a negative one is left alone
  const int32_t* positions;  // [tokens]
  const float* cos_sin;      // [max_position, rotary] cosines then sines, or null
  int32_t rotary;            // even, <= head_dim
  int32_t tokens, num_heads, num_kv_heads, head_dim, page_size;
  bool interleaved;
};

void rope_and_cache(const RopeArgs& args, cudaStream_t stream);

}  // namespace octavo::cuda
