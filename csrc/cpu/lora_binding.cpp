// Ops.lora_add_ and Ops.finish_linear.
#include "octavo/binding_linear.h"
#include "octavo/kernels_lora.h"

namespace octavo::binding {
namespace {

constexpr int64_t kMostRank = 512;

// Everything that could lead a kernel outside of its tensors but the addresses, which ops.types.LoraTable vouches for.
void check_tables(const LoraArgs& a, int64_t n) {
  for (int64_t row = 0; row < a.m; ++row) {
    if (a.adapters[row] < -1 || a.adapters[row] >= a.num_adapters) {
      TVM_FFI_THROW(ValueError) << "adapters[" << row << "] is " << a.adapters[row] << "; the table has " << a.num_adapters;
    }
  }
  for (int64_t i = 0; i < a.num_adapters * a.parts; ++i) {
    if (a.entries[4 * i + 2] < 0 || a.entries[4 * i + 2] > kMostRank) {
      TVM_FFI_THROW(ValueError) << "an adapter has rank " << a.entries[4 * i + 2] << "; at most " << kMostRank;
    }
  }
  for (int64_t i = 0; i < a.num_segments; ++i) {
    const int32_t* s = a.segments + 4 * i;
    if (s[0] < 0 || s[1] < 0 || s[0] + s[1] > n || s[2] < 0 || s[2] >= a.parts || s[3] < 0) {
      TVM_FFI_THROW(ValueError) << "segment " << i << " lies outside of the " << n << " columns of y";
    }
    for (int64_t adapter = 0; adapter < a.num_adapters; ++adapter) {
      const int64_t* entry = a.entries + (adapter * a.parts + s[2]) * 4;
      if (entry[2] && s[3] + s[1] > entry[3]) {
        TVM_FFI_THROW(ValueError) << "segment " << i << " ends behind the " << entry[3] << " columns of its part";
      }
    }
  }
}

void lora_add(TensorView y, TensorView x, TensorView adapters, TensorView entries, TensorView scales,
              TensorView segments) {
  LoraArgs a{};
  check_float32(y, "y");
  a.y_stride = row_stride(y, "y");
  a.x_stride = row_stride(x, "x");
  a.m = x.size(0);
  a.k = x.size(1);
  check_shape(y, "y", {a.m, -1});
  const DType type = float_type(x, "x");
  if (type == DType::kFloat16) TVM_FFI_THROW(TypeError) << "x is float16; allowed: float32, bfloat16";
  a.bf16 = type == DType::kBFloat16;
  check_int32(adapters, "adapters");
  check_shape(adapters, "adapters", {a.m});
  check_contiguous(adapters, "adapters");
  check_shape(entries, "entries", {-1, -1, 4});
  if (!is(entries, kDLInt, 64)) TVM_FFI_THROW(TypeError) << "entries are " << dtype_text(entries.dtype()) << ", not int64";
  check_contiguous(entries, "entries");
  a.num_adapters = entries.size(0);
  a.parts = entries.size(1);
  check_float32(scales, "scales");
  check_shape(scales, "scales", {a.num_adapters, a.parts});
  check_contiguous(scales, "scales");
  check_int32(segments, "segments");
  check_shape(segments, "segments", {-1, 4});
  check_contiguous(segments, "segments");
  a.num_segments = segments.size(0);
  a.y = data<float>(y);
  a.x = data<const void>(x);
  a.adapters = data<const int32_t>(adapters);
  a.entries = data<const int64_t>(entries);
  a.scales = data<const float>(scales);
  a.segments = data<const int32_t>(segments);
  check_tables(a, y.size(1));
  pick_lora_kernels().add(a);
}

void finish_linear(TensorView out, TensorView y, Optional<TensorView> bias, int64_t n, int64_t act, bool gated) {
  check_float32(y, "y");
  check_contiguous(y, "y");
  FinishArgs a{};
  a.m = y.size(0);
  const int64_t panels = gated ? (n / 2 + 15) / 16 : (n + 31) / 32;
  check_shape(y, "y", {-1, panels * 32});
  a.y = data<const float>(y);
  a.y_stride = y.size(1);
  a.out = linear_output(out, bias, a.m, n, act, gated, false);
  pick_lora_kernels().finish(a);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(lora_add, lora_add);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(finish_linear, finish_linear);

}  // namespace octavo::binding
