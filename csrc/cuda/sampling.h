// Token choice and log-probabilities; the contracts are Ops.sample and Ops.logprobs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace octavo::cuda {

constexpr int64_t kMaxVocab = int64_t{1} << 22;
constexpr int64_t kMaxTop = 2048;
constexpr int kMaxParts = 32;
constexpr int kLevels = 4;

// What is known of one part of a row: kernels hand it on.
struct SamplePart {
  uint64_t best;           // of the best token: key of its logit, then ~id; 0 for none
  uint64_t mass[kLevels];  // of the tokens that reach a level
  uint32_t count[kLevels + 1];  // their number; at the end, that of logits above the chosen token's (logprobs)
};

struct SampleArgs {
  int32_t* tokens;      // [rows]; -1 where nothing is allowed
  const float* logits;  // [rows, vocab]
  int64_t stride;       // elements from row to row
  int64_t rows, vocab;  // vocab <= kMaxVocab
  const float* temperature;  // [rows], like the ones that follow
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const int64_t* seeds;
  const int32_t* positions;
  const int32_t* adjust_start;  // [rows + 1]
  const int32_t* adjust_ids;    // [entries]; others than the vocabulary's are passed over
  const float* adjust_scale;
  const float* adjust_add;
  int64_t entries;
  const uint32_t* mask;      // [masks, ceil(vocab / 32)] or null
  const int32_t* mask_rows;  // [rows] or null
  int64_t masks;
  float* copy;        // [rows, vocab], for rows that are adjusted; null where entries == 0 and there is no mask
  SamplePart* parts;  // [rows, kMaxParts]
};

struct LogprobsArgs {
  float* logprob;       // [rows]
  int32_t* rank;        // [rows]
  int32_t* top_ids;     // [rows, top]
  float* top_logprobs;  // [rows, top]
  const float* logits;  // [rows, vocab]
  int64_t stride;
  const int32_t* tokens;  // [rows]; others than the vocabulary's give NaN
  int64_t rows, vocab, top;  // vocab <= kMaxVocab, top <= kMaxTop
  SamplePart* parts;         // [rows, kMaxParts]
};

void sample(const SampleArgs& args, cudaStream_t stream);
void logprobs(const LogprobsArgs& args, cudaStream_t stream);

}  // namespace octavo::cuda
