// Ops.sample and Ops.logprobs.
#include "octavo/binding.h"
#include "octavo/kernels_sampling.h"

namespace octavo::binding {
namespace {

template <class T>
const T* vector_of(const TensorView& t, const char* name, DLDataTypeCode code, int64_t size) {
  if (!is(t, code, int(sizeof(T) * 8))) {
    TVM_FFI_THROW(TypeError) << name << " is " << dtype_text(t.dtype()) << ", not "
                             << dtype_text({uint8_t(code), uint8_t(sizeof(T) * 8), 1});
  }
  check_shape(t, name, {size});
  check_contiguous(t, name);
  return data<const T>(t);
}

const float* floats(const TensorView& t, const char* name, int64_t size) { return vector_of<float>(t, name, kDLFloat, size); }
const int32_t* ints(const TensorView& t, const char* name, int64_t size) { return vector_of<int32_t>(t, name, kDLInt, size); }

void check_adjustments(const SampleArgs& a, int64_t entries) {
  if (a.adjust_start[0] != 0 || a.adjust_start[a.rows] != entries) {
    TVM_FFI_THROW(ValueError) << "adjust_start runs from " << a.adjust_start[0] << " to " << a.adjust_start[a.rows]
                              << "; expected 0 to " << entries << ", the number of adjust_ids";
  }
  for (int64_t row = 0; row < a.rows; ++row) {
    if (a.adjust_start[row] > a.adjust_start[row + 1]) TVM_FFI_THROW(ValueError) << "adjust_start falls after row " << row;
  }
  for (int64_t i = 0; i < entries; ++i) {
    if (a.adjust_ids[i] < 0 || a.adjust_ids[i] >= a.vocab) {
      TVM_FFI_THROW(ValueError) << "adjust_ids[" << i << "] is " << a.adjust_ids[i] << "; the vocabulary has " << a.vocab;
    }
  }
}

void sample(TensorView out, TensorView logits, TensorView temperature, TensorView top_k, TensorView top_p, TensorView min_p,
            TensorView seeds, TensorView positions, TensorView adjust_start, TensorView adjust_ids, TensorView adjust_scale,
            TensorView adjust_add, Optional<TensorView> mask, Optional<TensorView> mask_rows) {
  SampleArgs a{};
  check_float32(logits, "logits");
  a.stride = row_stride(logits, "logits");
  a.rows = logits.size(0);
  a.vocab = logits.size(1);
  if (a.vocab < 1) TVM_FFI_THROW(ValueError) << "logits have shape " << shape_text(logits) << "; there is nothing to choose";
  a.tokens = const_cast<int32_t*>(ints(out, "out", a.rows));
  a.logits = data<const float>(logits);
  a.temperature = floats(temperature, "temperature", a.rows);
  a.top_k = ints(top_k, "top_k", a.rows);
  a.top_p = floats(top_p, "top_p", a.rows);
  a.min_p = floats(min_p, "min_p", a.rows);
  a.seeds = vector_of<int64_t>(seeds, "seeds", kDLInt, a.rows);
  a.positions = ints(positions, "positions", a.rows);
  a.adjust_start = ints(adjust_start, "adjust_start", a.rows + 1);
  const int64_t entries = adjust_ids.ndim() == 1 ? adjust_ids.size(0) : -1;
  a.adjust_ids = ints(adjust_ids, "adjust_ids", entries);
  a.adjust_scale = floats(adjust_scale, "adjust_scale", entries);
  a.adjust_add = floats(adjust_add, "adjust_add", entries);
  check_adjustments(a, entries);
  if (mask.has_value() != mask_rows.has_value()) TVM_FFI_THROW(ValueError) << "mask and mask_rows come together or not at all";
  if (mask.has_value()) {
    check_int32(*mask, "mask");
    check_shape(*mask, "mask", {-1, (a.vocab + 31) / 32});
    check_contiguous(*mask, "mask");
    a.mask = data<const uint32_t>(*mask);
    a.mask_rows = ints(*mask_rows, "mask_rows", a.rows);
    for (int64_t row = 0; row < a.rows; ++row) {
      if (a.mask_rows[row] >= (*mask).size(0)) {
        TVM_FFI_THROW(ValueError) << "mask_rows[" << row << "] is " << a.mask_rows[row] << "; there are " << (*mask).size(0) << " masks";
      }
    }
  }
  pick_sampling_kernels().sample(a);
}

void logprobs(TensorView logprob, TensorView rank, TensorView top_ids, TensorView top_logprobs, TensorView logits,
              TensorView tokens) {
  LogprobsArgs a{};
  check_float32(logits, "logits");
  a.stride = row_stride(logits, "logits");
  a.rows = logits.size(0);
  a.vocab = logits.size(1);
  check_shape(top_ids, "top_ids", {a.rows, -1});
  a.top = top_ids.size(1);
  check_shape(top_logprobs, "top_logprobs", {a.rows, a.top});
  check_int32(top_ids, "top_ids");
  check_float32(top_logprobs, "top_logprobs");
  check_contiguous(top_ids, "top_ids");
  check_contiguous(top_logprobs, "top_logprobs");
  if (a.top > a.vocab) TVM_FFI_THROW(ValueError) << "the best " << a.top << " of a vocabulary of " << a.vocab;
  a.logprob = const_cast<float*>(floats(logprob, "logprob", a.rows));
  a.rank = const_cast<int32_t*>(ints(rank, "rank", a.rows));
  a.top_ids = const_cast<int32_t*>(data<const int32_t>(top_ids));
  a.top_logprobs = const_cast<float*>(data<const float>(top_logprobs));
  a.logits = data<const float>(logits);
  a.tokens = ints(tokens, "tokens", a.rows);
  for (int64_t row = 0; row < a.rows; ++row) {
    if (a.tokens[row] < 0 || a.tokens[row] >= a.vocab) {
      TVM_FFI_THROW(ValueError) << "tokens[" << row << "] is " << a.tokens[row] << "; the vocabulary has " << a.vocab;
    }
  }
  pick_sampling_kernels().logprobs(a);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(sample, sample);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(logprobs, logprobs);

}  // namespace octavo::binding
