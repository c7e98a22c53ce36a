// Ops.rope_and_cache.
#include "octavo/binding.h"
#include "octavo/kernels_rope.h"

namespace octavo::binding {
namespace {

void rope_and_cache(TensorView qkv, TensorView keys, TensorView values, TensorView slots, TensorView positions,
                    Optional<TensorView> cos_sin, int64_t num_heads, bool interleaved) {
  RopeArgs a{};
  a.type = float_type(qkv, "qkv");
  if (a.type == DType::kFloat16) TVM_FFI_THROW(TypeError) << "qkv is float16; allowed: float32, bfloat16";
  const int64_t num_pages = read_cache(a, keys, values);
  if (a.cache_type == CacheType::kInt8 && a.head_dim > 256) {
    TVM_FFI_THROW(ValueError) << "head size " << a.head_dim << "; an int8 cache takes up to 256";
  }
  a.num_heads = num_heads;
  a.tokens = qkv.size(0);
  a.stride = row_stride(qkv, "qkv");
  check_shape(qkv, "qkv", {-1, (num_heads + 2 * a.num_kv_heads) * a.head_dim});
  check_shape(slots, "slots", {a.tokens});
  check_shape(positions, "positions", {a.tokens});
  for (const TensorView* t : {&slots, &positions}) {
    check_int32(*t, "slots or positions");
    check_contiguous(*t, "slots or positions");
  }
  a.slots = data<const int32_t>(slots);
  a.positions = data<const int32_t>(positions);
  int64_t max_position = INT32_MAX;
  if (cos_sin.has_value()) {
    check_float32(*cos_sin, "cos_sin");
    check_shape(*cos_sin, "cos_sin", {-1, -1});
    check_contiguous(*cos_sin, "cos_sin");
    max_position = (*cos_sin).size(0);
    a.rotary = (*cos_sin).size(1);
    a.cos_sin = data<const float>(*cos_sin);
    if (a.rotary % 2 || a.rotary > a.head_dim) {
      TVM_FFI_THROW(ValueError) << "cos_sin has " << a.rotary << " columns; allowed: an even number up to the head size "
                                << a.head_dim;
    }
  }
  for (int64_t t = 0; t < a.tokens; ++t) {
    if (a.slots[t] < 0 || a.slots[t] >= num_pages * a.page_size || a.positions[t] < 0 || a.positions[t] >= max_position) {
      TVM_FFI_THROW(ValueError) << "token " << t << " has slot " << a.slots[t] << " of " << num_pages * a.page_size
                                << " and position " << a.positions[t] << " of " << max_position;
    }
  }
  a.qkv = data<void>(qkv);
  a.keys = data<void>(keys);
  a.values = data<void>(values);
  a.interleaved = interleaved;
  pick_rope_kernels().rope_and_cache(a);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(rope_and_cache, rope_and_cache);

}  // namespace octavo::binding
