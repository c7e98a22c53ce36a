// Paged attention for what the tensor core kernels don't take: float32 queries or caches, any even head size to 256.
//
// Contract: Ops.paged_attention. One warp a query token and head, 32 keys at a time: a lane has one key's score, then
// D / 32 dims of the output. The same order whatever else is in the batch. Bound by issue, not by memory.
#include "attention.cuh"
#include "launch.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128, kWarps = 4, kMaxHeadDim = 256;

OCTAVO_DEVICE float load_float(const void* p, DType type, int64_t i) {
  if (type == DType::kFloat32) return static_cast<const float*>(p)[i];
  const uint32_t word = static_cast<const uint16_t*>(p)[i];
  return type == DType::kBFloat16 ? unpack_bf16(word).x : unpack_f16(word).x;
}
OCTAVO_DEVICE void store_float(void* p, DType type, int64_t i, float x) {
  if (type == DType::kFloat32) {
    static_cast<float*>(p)[i] = x;
  } else {
    static_cast<uint16_t*>(p)[i] = uint16_t(type == DType::kBFloat16 ? pack_bf16(x, x) : pack_f16(x, x));
  }
}

// Element d of token `row` of one head's block in a page, without its scale.
template <CacheType C>
OCTAVO_DEVICE float element(const unsigned char* block, int i) {
  if constexpr (C == CacheType::kInt8) return float(reinterpret_cast<const int8_t*>(block)[i]);
  if constexpr (C == CacheType::kFloat8) return unpack_f16(cvt_e4m3x2_f16x2(block[i])).x;
  return load_float(block, DType(int(C)), i);
}
template <CacheType C>
OCTAVO_DEVICE float scale_of(const unsigned char* block, int scales_at, int row) {
  if constexpr (C != CacheType::kInt8 && C != CacheType::kFloat8) return 1.0f;
  return load_float(block + scales_at, DType::kFloat16, row);
}

template <CacheType C>
__global__ void __launch_bounds__(kThreads) simple_kernel(AttentionArgs a) {
  constexpr bool k8Bit = C == CacheType::kInt8 || C == CacheType::kFloat8;
  OCTAVO_SHARED(float, query, [kWarps][kMaxHeadDim]);
  pdl_wait();
  pdl_launch();
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  const int64_t task = int64_t(blockIdx.x) * kWarps + warp;
  const int token = int(task / a.num_heads), head = int(task % a.num_heads);
  if (token >= a.tokens) return;
  int seq = 0;  // the last one that starts at or before the token
  for (int end = a.num_seqs; end - seq > 1;) {
    const int middle = (seq + end) / 2;
    (a.query_start[middle] <= token ? seq : end) = middle;
  }
  const int position = a.seq_lens[seq] - a.query_start[seq + 1] + token;
  for (int d = lane; d < a.head_dim; d += 32) {
    query[warp][d] = load_float(a.queries, a.query_type, token * a.query_stride + int64_t(head) * a.head_dim + d);
  }
  warp_sync();

  const float slope = slope_of(a, head);
  const int kv_head = head / (a.num_heads / a.num_kv_heads);
  const int64_t block_elements = int64_t(a.page_size) * (k8Bit ? a.head_dim + 2 : a.head_dim);
  const int64_t block_bytes = block_elements * (k8Bit ? 1 : C == CacheType::kFloat32 ? 4 : 2);
  const int32_t* table = a.page_table + int64_t(seq) * a.max_pages;
  const auto block_of = [&](const void* cache, int key) {
    const int64_t page = table[unsigned(key) / unsigned(a.page_size)];
    return static_cast<const unsigned char*>(cache) + (page * a.num_kv_heads + kv_head) * block_bytes;
  };
  const int scales_at = a.page_size * a.head_dim, first = first_key(position, a.sliding_window);

  float sum[kMaxHeadDim / 32] = {};
  Total total;
  for (int base = first / kBlockKeys * kBlockKeys; base <= position; base += kBlockKeys) {
    const int key = base + lane;
    float score = -INFINITY;
    if (key >= first && key <= position) {
      const unsigned char* block = block_of(a.keys, key);
      const int row = int(unsigned(key) % unsigned(a.page_size)), at = row * a.head_dim;
      float dot = 0.0f;
      for (int d = 0; d < a.head_dim; ++d) dot = fma_rn(query[warp][d], element<C>(block, at + d), dot);
      if (k8Bit) dot = mul_rn(dot, scale_of<C>(block, scales_at, row));
      score = a.scoring.adjusted ? adjust(a.scoring, dot, slope, key, position) : dot;
    }
    float largest = score;
#pragma unroll
    for (int i = 16; i > 0; i /= 2) largest = fmaxf(largest, shfl_xor(largest, i));
    const float to = fmaxf(total.reference, largest), factor = rescale(a.scoring, total.reference, to);
    const float weight = weight_of(a.scoring, score, base_of(a.scoring, to));
    total.reference = to;
    total.weight = mul_rn(total.weight, factor);
#pragma unroll
    for (int i = 0; i < kMaxHeadDim / 32; ++i) sum[i] = mul_rn(sum[i], factor);
    for (int j = max(first - base, 0); j < min(kBlockKeys, position + 1 - base); ++j) {
      const float p = shfl(weight, j);
      total.weight = add_rn(total.weight, p);
      const unsigned char* block = block_of(a.values, base + j);
      const int row = int(unsigned(base + j) % unsigned(a.page_size)), at = row * a.head_dim;
      const float scaled = k8Bit ? mul_rn(p, scale_of<C>(block, scales_at, row)) : p;
#pragma unroll
      for (int i = 0; i < kMaxHeadDim / 32; ++i) {
        const int d = lane + 32 * i;
        if (d < a.head_dim) sum[i] = fma_rn(scaled, element<C>(block, at + d), sum[i]);
      }
    }
  }
  const float inverse = inverse_weight(total.weight);
  const int64_t out = (int64_t(token) * a.num_heads + head) * a.head_dim;
#pragma unroll
  for (int i = 0; i < kMaxHeadDim / 32; ++i) {
    const int d = lane + 32 * i;
    if (d < a.head_dim) store_float(a.out, a.query_type, out + d, mul_rn(sum[i], inverse));
  }
}

template <CacheType C>
void run(const AttentionArgs& a, cudaStream_t stream) {
  const int64_t tasks = int64_t(a.tokens) * a.num_heads;
  launch(simple_kernel<C>, dim3(unsigned((tasks + kWarps - 1) / kWarps)), dim3(kThreads), 0, stream, a);
}

}  // namespace

void attention_simple(const AttentionArgs& a, cudaStream_t stream) {
  switch (a.cache_type) {
    case CacheType::kFloat32: return run<CacheType::kFloat32>(a, stream);
    case CacheType::kBFloat16: return run<CacheType::kBFloat16>(a, stream);
    case CacheType::kFloat16: return run<CacheType::kFloat16>(a, stream);
    case CacheType::kInt8: return run<CacheType::kInt8>(a, stream);
    case CacheType::kFloat8: return run<CacheType::kFloat8>(a, stream);
  }
}

}  // namespace octavo::cuda
