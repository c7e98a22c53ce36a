// Ops.moe_add_ on CUDA: routes, sorts places by expert, and multiplies them by the stacks of experts in one launch for
// gates and ups and one for downs.
#include <tvm/ffi/container/array.h>

#include "linear.h"
#include "moe.h"
#include "quantized_binding.h"

namespace octavo::binding {
namespace {

// A stack of experts' weights of `rows` rows each; bits 0: floats.
struct Stack {
  const TensorView& data;
  QuantizedForm form;
  int64_t experts, rows, columns;
  bool gated;

  QuantizedLayout layout() const {
    return layout_of(rows, columns, form.bits, form.group_size, form.symmetric, gated);
  }
};

int64_t scratch_bytes(int64_t rows, int64_t bits, int64_t activations, int64_t n, int64_t k) {
  if (!bits || activations == kFloat) return 0;
  const QuantizedLayout layout{int(bits), 0, true, false, n, k};
  return cuda::quantized_scratch(layout, rows, int(layout.units()), true, activations == kLlmInt8).bytes();
}

// What a product with `tokens` rows takes: {rows of a block, blocks, bytes of scratch}. A product with a stack is not cut
// along K: with so many blocks there is no need to.
tvm::ffi::Array<int64_t> moe_plan(int64_t tokens, int64_t experts, int64_t top_k, int64_t columns, int64_t width,
                                  int64_t up_bits, int64_t up_activations, int64_t down_bits,
                                  int64_t down_activations) {
  const int64_t places = tokens * top_k;
  const int rows = cuda::expert_block_rows(places, experts, up_bits || down_bits);
  const int64_t up = scratch_bytes(tokens, up_bits, up_activations, 16, columns);
  const int64_t down = scratch_bytes(places, down_bits, down_activations, 16, width);
  return {rows, cuda::expert_block_count(places, experts, rows), up > down ? up : down};
}

// out [places, rows or rows / 2] = x @ expert's weight.T, act(gate) * up where the stack is gated.
struct ExpertProduct {
  bool quantized;
  Product packed;
  cuda::LinearArgs floats;

  void run(cudaStream_t stream) const { quantized ? binding::run(packed, stream) : cuda::linear(floats, stream); }
};

ExpertProduct prepare(const Stack& s, const TensorView& out, const TensorView& x, cuda::ExpertRows experts,
                      cuda::Activation act, const TensorView& scratch) {
  ExpertProduct product{};
  if (s.form.bits) {
    product.quantized = true;
    Product& p = product.packed = begin_product(x, s.layout(), s.form);
    QuantizedArgs& a = p.args;
    a.weight = device_data<const uint8_t>(s.data);
    a.act = act;
    a.out = device_data<void>(out);
    a.out_stride = out.size(1);
    a.out_type = float_type(out, "out");
    a.experts = experts;
    a.slice_units = int(a.layout.units());
    take_scratch(p, device_data<uint8_t>(scratch), scratch.numel(), nullptr, 0);
    return product;
  }
  cuda::LinearArgs& a = product.floats;
  a.out = device_data<void>(out);
  a.out_type = float_type(out, "out");
  a.out_stride = out.size(1);
  a.x = device_data<const void>(x);
  a.x_stride = row_stride(x, "x");
  a.weight = device_data<const void>(s.data);
  a.type = float_type(s.data, "weight");
  a.m = out.size(0);
  a.n = s.rows;
  a.k = s.columns;
  a.act = act;
  a.gated = s.gated;
  a.up_row = s.experts * (s.rows / 2);
  a.experts = experts;
  return product;
}

void check_stack(const Stack& s, const TensorView& x, const char* name) {
  if (s.rows % 32) {
    TVM_FFI_THROW(ValueError) << name << " has " << s.rows << " rows an expert; allowed: a multiple of 32";
  }
  if (s.form.bits) return check_packed(s.data, s.layout(), s.experts);
  check_shape(s.data, name, {s.experts * s.rows, s.columns});
  check_contiguous(s.data, name);
  if (float_type(s.data, name) != float_type(x, "x")) {
    TVM_FFI_THROW(TypeError) << "x is " << dtype_text(x.dtype()) << "; " << name << " is " << dtype_text(s.data.dtype());
  }
}

// For P = tokens * top_k places: chosen, sorted [P] int32, shares [P] float32, blocks [blocks, 4] int32, inner [P, width]
// of x's type, parts [P, H] float32; blocks and scratch (uint8) as moe_plan has them.
void moe_add(TensorView residual, TensorView x, TensorView scores, TensorView up, TensorView down, TensorView chosen,
             TensorView shares, TensorView sorted, TensorView blocks, TensorView inner, TensorView parts,
             TensorView scratch, int64_t experts, int64_t top_k, bool renormalise, int64_t act, int64_t up_bits,
             int64_t up_group, bool up_symmetric, int64_t up_activations, double up_threshold, int64_t down_bits,
             int64_t down_group, bool down_symmetric, int64_t down_activations, double down_threshold) {
  const int64_t tokens = x.size(0), columns = x.size(1), hidden = residual.size(1), places = tokens * top_k;
  const int64_t width = inner.size(1);
  if (experts < 1 || experts > cuda::kMostExperts || top_k < 1 || top_k > experts) {
    TVM_FFI_THROW(ValueError) << "the best " << top_k << " of " << experts << " experts; allowed: 1 to all of at most "
                              << cuda::kMostExperts;
  }
  if (act < 0 || act > 4) TVM_FFI_THROW(ValueError) << "activation " << act << " is not one of 0..4";
  check_float32(residual, "residual");
  check_shape(residual, "residual", {tokens, -1});
  check_contiguous(residual, "residual");
  check_float32(scores, "scores");
  check_shape(scores, "scores", {tokens, experts});
  check_contiguous(scores, "scores");
  for (const auto& [t, name] : {std::pair{&chosen, "chosen"}, {&sorted, "sorted"}}) {
    check_int32(*t, name);
    check_shape(*t, name, {places});
    check_contiguous(*t, name);
  }
  check_float32(shares, "shares");
  check_shape(shares, "shares", {places});
  check_contiguous(shares, "shares");
  check_same_type(inner, x, "inner and x");
  check_shape(inner, "inner", {places, -1});
  check_contiguous(inner, "inner");
  check_float32(parts, "parts");
  check_shape(parts, "parts", {places, hidden});
  check_contiguous(parts, "parts");
  const Stack wide{up, {up_bits, up_group, up_symmetric, up_activations, up_threshold}, experts, 2 * width, columns, true};
  const Stack narrow{
      down, {down_bits, down_group, down_symmetric, down_activations, down_threshold}, experts, hidden, width, false};
  check_stack(wide, x, "up");
  check_stack(narrow, x, "down");
  const auto plan = moe_plan(tokens, experts, top_k, columns, width, up_bits, up_activations, down_bits, down_activations);
  check_int32(blocks, "blocks");
  check_shape(blocks, "blocks", {plan[1], 4});
  check_contiguous(blocks, "blocks");
  check_contiguous(scratch, "scratch");
  if (tokens == 0) return;

  cuda::MoeArgs a{};
  a.tokens = tokens;
  a.experts = experts;
  a.top_k = top_k;
  a.scores = device_data<const float>(scores);
  a.renormalise = renormalise;
  a.chosen = device_data<int32_t>(chosen);
  a.shares = device_data<float>(shares);
  a.sorted = device_data<int32_t>(sorted);
  a.blocks = device_data<int4>(blocks);
  a.block_rows = int(plan[0]);
  a.block_count = int(plan[1]);
  a.parts = device_data<float>(parts);
  a.residual = device_data<float>(residual);
  a.width = hidden;
  cuda::ExpertRows rows{a.blocks, a.sorted, a.block_count, a.block_rows, int(top_k)};
  const ExpertProduct first = prepare(wide, inner, x, rows, cuda::Activation(act), scratch);
  rows.share = 1;
  const ExpertProduct second = prepare(narrow, parts, inner, rows, cuda::Activation::kNone, scratch);
  const cudaStream_t stream = current_stream(residual);
  cuda::moe_route(a, stream);
  cuda::moe_sort(a, stream);
  first.run(stream);
  second.run(stream);
  cuda::moe_combine(a, stream);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(moe_plan, moe_plan);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(moe_add, moe_add);

}  // namespace octavo::binding
