// Token choice and log-probabilities; the contracts are Ops.sample and Ops.logprobs.
#pragma once

#include "octavo/dispatch.h"

namespace octavo {

struct SampleArgs {
  int32_t* tokens;      // [rows]; -1 where nothing is allowed
  const float* logits;  // [rows, vocab]
  int64_t stride;       // elements from row to row
  int64_t rows, vocab;
  const float* temperature;  // [rows], like the ones that follow
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const int64_t* seeds;
  const int32_t* positions;
  const int32_t* adjust_start;  // [rows + 1]
  const int32_t* adjust_ids;
  const float* adjust_scale;
  const float* adjust_add;
  const uint32_t* mask;      // [*, ceil(vocab / 32)] or null
  const int32_t* mask_rows;  // [rows] or null
};

struct LogprobsArgs {
  float* logprob;       // [rows]
  int32_t* rank;        // [rows]
  int32_t* top_ids;     // [rows, top]
  float* top_logprobs;  // [rows, top]
  const float* logits;  // [rows, vocab]
  int64_t stride;
  const int32_t* tokens;  // [rows]
  int64_t rows, vocab, top;
};

struct SamplingKernels {
  void (*sample)(const SampleArgs& args);
  void (*logprobs)(const LogprobsArgs& args);
};

OCTAVO_KERNELS(SamplingKernels, sampling_kernels)

}  // namespace octavo
