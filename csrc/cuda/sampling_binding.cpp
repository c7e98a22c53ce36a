// Ops.sample and Ops.logprobs on CUDA. What lies in tensors of the device can't be looked at here without waiting for it:
// entries, masks and tokens beyond the vocabulary are passed over by the kernels.
#include "binding_cuda.h"
#include "sampling.h"

namespace octavo::binding {
namespace {

template <class T>
T* vector_of(const TensorView& t, const char* name, DLDataTypeCode code, int64_t size) {
  if (!is(t, code, int(sizeof(T) * 8))) {
    TVM_FFI_THROW(TypeError) << name << " is " << dtype_text(t.dtype()) << ", not "
                             << dtype_text({uint8_t(code), uint8_t(sizeof(T) * 8), 1});
  }
  check_shape(t, name, {size});
  check_contiguous(t, name);
  return device_data<T>(t);
}

float* floats(const TensorView& t, const char* name, int64_t size) { return vector_of<float>(t, name, kDLFloat, size); }
int32_t* ints(const TensorView& t, const char* name, int64_t size) { return vector_of<int32_t>(t, name, kDLInt, size); }

template <class Args>
void take_logits(Args& a, const TensorView& logits, const TensorView& workspace) {
  check_float32(logits, "logits");
  a.stride = row_stride(logits, "logits");
  a.rows = logits.size(0);
  a.vocab = logits.size(1);
  if (a.vocab < 1) TVM_FFI_THROW(ValueError) << "logits have shape " << shape_text(logits) << "; there is nothing to choose";
  if (a.vocab > cuda::kMaxVocab) {
    TVM_FFI_THROW(ValueError) << "a vocabulary of " << a.vocab << "; at most " << cuda::kMaxVocab << " on CUDA";
  }
  if (a.rows > 65535) TVM_FFI_THROW(ValueError) << a.rows << " rows of logits; at most 65535 on CUDA";
  a.logits = device_data<const float>(logits);
  check_shape(workspace, "workspace", {a.rows * cuda::kMaxParts * int64_t(sizeof(cuda::SamplePart))});
  check_contiguous(workspace, "workspace");
  a.parts = device_data<cuda::SamplePart>(workspace);
}

// workspace [rows * sample_workspace()] uint8; copy [rows, vocab] float32 wherever there are adjustments or masks.
void sample(TensorView out, TensorView logits, TensorView temperature, TensorView top_k, TensorView top_p, TensorView min_p,
            TensorView seeds, TensorView positions, TensorView adjust_start, TensorView adjust_ids, TensorView adjust_scale,
            TensorView adjust_add, Optional<TensorView> mask, Optional<TensorView> mask_rows, TensorView workspace,
            Optional<TensorView> copy) {
  cuda::SampleArgs a{};
  take_logits(a, logits, workspace);
  a.tokens = ints(out, "out", a.rows);
  a.temperature = floats(temperature, "temperature", a.rows);
  a.top_k = ints(top_k, "top_k", a.rows);
  a.top_p = floats(top_p, "top_p", a.rows);
  a.min_p = floats(min_p, "min_p", a.rows);
  a.seeds = vector_of<int64_t>(seeds, "seeds", kDLInt, a.rows);
  a.positions = ints(positions, "positions", a.rows);
  a.adjust_start = ints(adjust_start, "adjust_start", a.rows + 1);
  a.entries = adjust_ids.ndim() == 1 ? adjust_ids.size(0) : -1;
  a.adjust_ids = ints(adjust_ids, "adjust_ids", a.entries);
  a.adjust_scale = floats(adjust_scale, "adjust_scale", a.entries);
  a.adjust_add = floats(adjust_add, "adjust_add", a.entries);
  if (mask.has_value() != mask_rows.has_value()) TVM_FFI_THROW(ValueError) << "mask and mask_rows come together or not at all";
  if (mask.has_value()) {
    check_int32(*mask, "mask");
    check_shape(*mask, "mask", {-1, (a.vocab + 31) / 32});
    check_contiguous(*mask, "mask");
    a.mask = device_data<const uint32_t>(*mask);
    a.mask_rows = ints(*mask_rows, "mask_rows", a.rows);
    a.masks = (*mask).size(0);
  }
  if (copy.has_value()) {
    check_float32(*copy, "copy");
    check_shape(*copy, "copy", {a.rows, a.vocab});
    check_contiguous(*copy, "copy");
    a.copy = device_data<float>(*copy);
  } else if (a.entries > 0 || a.mask) {
    TVM_FFI_THROW(ValueError) << "adjustments and masks need a copy of the logits";
  }
  cuda::sample(a, current_stream(logits));
}

void logprobs(TensorView logprob, TensorView rank, TensorView top_ids, TensorView top_logprobs, TensorView logits,
              TensorView tokens, TensorView workspace) {
  cuda::LogprobsArgs a{};
  take_logits(a, logits, workspace);
  check_shape(top_ids, "top_ids", {a.rows, -1});
  a.top = top_ids.size(1);
  check_shape(top_logprobs, "top_logprobs", {a.rows, a.top});
  check_int32(top_ids, "top_ids");
  check_float32(top_logprobs, "top_logprobs");
  check_contiguous(top_ids, "top_ids");
  check_contiguous(top_logprobs, "top_logprobs");
  if (a.top > a.vocab) TVM_FFI_THROW(ValueError) << "the best " << a.top << " of a vocabulary of " << a.vocab;
  if (a.top > cuda::kMaxTop) TVM_FFI_THROW(ValueError) << "the best " << a.top << "; at most " << cuda::kMaxTop << " on CUDA";
  a.logprob = floats(logprob, "logprob", a.rows);
  a.rank = ints(rank, "rank", a.rows);
  a.top_ids = device_data<int32_t>(top_ids);
  a.top_logprobs = device_data<float>(top_logprobs);
  a.tokens = ints(tokens, "tokens", a.rows);
  cuda::logprobs(a, current_stream(logits));
}

// Bytes of the workspace that a row needs.
int64_t sample_workspace() { return cuda::kMaxParts * int64_t(sizeof(cuda::SamplePart)); }

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(sample, sample);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(logprobs, logprobs);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(sample_workspace, sample_workspace);

}  // namespace octavo::binding
