// Ops.rope_and_cache on CUDA.
#include "cache_view.h"
#include "rope.h"

namespace octavo::binding {
namespace {

void rope_and_cache(TensorView qkv, TensorView keys, TensorView values, TensorView slots, TensorView positions,
                    Optional<TensorView> cos_sin, int64_t num_heads, bool interleaved) {
  cuda::RopeArgs a{};
  a.type = float_type(qkv, "qkv");
  a.stride = row_stride(qkv, "qkv");
  const int64_t heads = num_heads + 2 * keys.size(1);
  if (num_heads < 1 || qkv.size(1) % heads) {
    TVM_FFI_THROW(ValueError) << "qkv has " << qkv.size(1) << " columns, which " << num_heads << " query heads and 2 * "
                              << keys.size(1) << " others don't share evenly";
  }
  read_cuda_cache(a, keys, values, qkv.size(1) / heads);
  a.tokens = int32_t(qkv.size(0));
  a.slots = device_indices(slots, "slots", {a.tokens});
  a.positions = device_indices(positions, "positions", {a.tokens});
  if (cos_sin.has_value()) {
    check_float32(*cos_sin, "cos_sin");
    check_shape(*cos_sin, "cos_sin", {-1, -1});
    check_contiguous(*cos_sin, "cos_sin");
    a.rotary = int32_t((*cos_sin).size(1));
    a.cos_sin = device_data<const float>(*cos_sin);
    if (a.rotary % 2 || a.rotary > a.head_dim) {
      TVM_FFI_THROW(ValueError) << "cos_sin has " << a.rotary << " columns; allowed: an even number up to "
                                << a.head_dim << ", the head size";
    }
  }
  a.qkv = device_data<void>(qkv);
  a.num_heads = int32_t(num_heads);
  a.interleaved = interleaved;
  cuda::rope_and_cache(a, current_stream(qkv));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(rope_and_cache, rope_and_cache);

}  // namespace octavo::binding
