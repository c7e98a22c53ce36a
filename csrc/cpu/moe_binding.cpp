// Ops.moe_add_: routes, sorts the tokens' rows by expert, and gives each expert's rows to the packed linear kernels in one
// call for its gate and up and one for its down.
#include "octavo/binding_quantized.h"
#include "octavo/kernels_moe.h"

namespace octavo::binding {
namespace {

constexpr int64_t kPanel = 32;

// One stacked weight of either kind: expert e's panels are a weight of `rows` rows by themselves.
struct Stack {
  const TensorView& data;
  int64_t rows, columns, bits, group_size;  // bits 0: floats
  bool symmetric;
  int64_t activations;
  double threshold;
  DType type;         // of floats
  QuantizedLayout layout;
  int64_t expert_bytes;
};

Stack read_stack(const TensorView& data, const char* name, int64_t experts, int64_t rows, int64_t columns, int64_t bits,
                 int64_t group_size, bool symmetric, int64_t activations, double threshold) {
  Stack s{data, rows, columns, bits, group_size, symmetric, activations, threshold, DType::kFloat32, {}, 0};
  if (rows % kPanel) {
    TVM_FFI_THROW(ValueError) << name << " has " << rows << " rows an expert; allowed: a multiple of " << kPanel;
  }
  if (bits) {
    quantized_layout(data, experts * rows, columns, bits, group_size, symmetric);
    s.layout = QuantizedLayout{int(bits), group_size, symmetric, rows, columns};
    s.expert_bytes = s.layout.panels() * s.layout.panel_bytes();
    if (activations < 0 || activations > 2) TVM_FFI_THROW(ValueError) << "activations " << activations << " is not one of 0..2";
    return s;
  }
  s.type = float_type(data, name);
  const int64_t p = s.type == DType::kBFloat16 ? 2 : 1, steps = (columns + p - 1) / p;
  check_shape(data, name, {experts * rows / kPanel, steps, kPanel, p});
  check_contiguous(data, name);
  s.expert_bytes = rows * steps * p * (s.type == DType::kFloat32 ? 4 : 2);
  return s;
}

void check_activations(const Stack& s, bool bf16, const char* name) {
  if (!s.bits && bf16 != (s.type == DType::kBFloat16)) {
    TVM_FFI_THROW(TypeError) << "x is " << (bf16 ? "bfloat16" : "float32") << "; " << name << " takes the other";
  }
}

// Rows [first, first + m) of x, contiguous, times expert e's weight.
void multiply(const Stack& s, int64_t expert, const void* x, bool bf16, int64_t first, int64_t m, LinearOutput y) {
  const char* rows = static_cast<const char*>(x) + first * s.columns * (bf16 ? 2 : 4);
  const char* weight = data<const char>(s.data) + expert * s.expert_bytes;
  y.n = s.rows;
  const int64_t width = y.gated ? s.rows / 2 : s.rows;
  y.out = static_cast<char*>(y.out) + first * width * (y.out_bf16 ? 2 : 4);
  y.out_stride = width;
  if (!s.bits) {
    LinearArgs args{};
    args.x = rows;
    args.x_stride = s.columns;
    args.weight = weight;
    args.weight_type = s.type;
    args.m = m;
    args.k = s.columns;
    args.n = s.rows;
    args.y = y;
    return pick_linear_kernels().linear(args);
  }
  QuantizedArgs args{};
  args.x = rows;
  args.x_stride = s.columns;
  args.x_bf16 = bf16;
  args.m = m;
  args.weight = reinterpret_cast<const uint8_t*>(weight);
  args.layout = s.layout;
  args.outliers = s.activations == int64_t(QuantizedActivations::kLlmInt8);
  args.threshold = float(s.threshold);
  args.y = y;
  if (s.activations == int64_t(QuantizedActivations::kFloat)) return pick_quantized_float_kernels().linear(args);
  pick_quantized_int8_kernels().linear(args);
}

// The scratch tensors are [T, top_k * ...] of what lies between: sorted rows of x, of the inner width, of the result; and
// int32 [T, 2 * top_k] and float32 [T, top_k] for the plan.
void moe_add(TensorView residual, TensorView x, TensorView scores, TensorView up, TensorView down, TensorView sorted,
             TensorView inner, TensorView outer, TensorView places, TensorView shares, int64_t experts, int64_t top_k,
             bool renormalise, int64_t act, int64_t up_bits, int64_t up_group, bool up_symmetric, int64_t up_activations,
             double up_threshold, int64_t down_bits, int64_t down_group, bool down_symmetric, int64_t down_activations,
             double down_threshold) {
  const int64_t tokens = x.size(0), columns = x.size(1), width = residual.size(1);
  if (experts < 1 || experts > 4096 || top_k < 1 || top_k > experts) {
    TVM_FFI_THROW(ValueError) << "the best " << top_k << " of " << experts << " experts; allowed: 1 to all of at most 4096";
  }
  if (act < 0 || act > 4) TVM_FFI_THROW(ValueError) << "activation " << act << " is not one of 0..4";
  const DType type = float_type(x, "x");
  if (type == DType::kFloat16) TVM_FFI_THROW(TypeError) << "x is float16; allowed: float32, bfloat16";
  const bool bf16 = type == DType::kBFloat16;
  const int64_t x_stride = row_stride(x, "x"), inner_width = inner.size(1) / top_k;
  check_float32(residual, "residual");
  check_shape(residual, "residual", {tokens, -1});
  check_contiguous(residual, "residual");
  check_float32(scores, "scores");
  check_shape(scores, "scores", {tokens, experts});
  check_contiguous(scores, "scores");
  check_same_type(sorted, x, "sorted and x");
  check_same_type(inner, x, "inner and x");
  check_float32(outer, "outer");
  check_int32(places, "places");
  check_float32(shares, "shares");
  check_shape(sorted, "sorted", {tokens, top_k * columns});
  check_shape(inner, "inner", {tokens, top_k * inner_width});
  check_shape(outer, "outer", {tokens, top_k * width});
  check_shape(places, "places", {tokens, 2 * top_k});
  check_shape(shares, "shares", {tokens, top_k});
  const Stack wide = read_stack(up, "up", experts, 2 * inner_width, columns, up_bits, up_group, up_symmetric,
                                up_activations, up_threshold);
  const Stack narrow = read_stack(down, "down", experts, width, inner_width, down_bits, down_group, down_symmetric,
                                  down_activations, down_threshold);
  check_activations(wide, bf16, "up");
  check_activations(narrow, bf16, "down");
  if (tokens == 0) return;

  int32_t first[4097];
  MoePlan plan{tokens, experts, top_k, data<int32_t>(places), data<float>(shares),
               data<int32_t>(places) + tokens * top_k, first};
  const MoeKernels& kernels = pick_moe_kernels();
  kernels.route(plan, data<const float>(scores), renormalise);
  const int64_t size = bf16 ? 2 : 4;
  kernels.gather(plan, data<void>(sorted), data<const void>(x), x_stride * size, columns * size);
  LinearOutput gated{}, plain{};
  gated.gated = true;
  gated.act = static_cast<Activation>(act);
  gated.out = data<void>(inner);
  gated.out_bf16 = bf16;
  plain.out = data<void>(outer);
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t m = first[e + 1] - first[e];
    if (m == 0) continue;
    multiply(wide, e, data<const void>(sorted), bf16, first[e], m, gated);
    multiply(narrow, e, data<const void>(inner), bf16, first[e], m, plain);
  }
  kernels.combine(plan, data<float>(residual), width, data<const float>(outer), width);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(moe_add, moe_add);

}  // namespace octavo::binding
