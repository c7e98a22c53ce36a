// Rotary position embedding (arXiv 2104.09864) in place on q and k, and k and v to their slots in the cache.
//
// Contract: Ops.rope_and_cache. One warp a token and head, which holds the head's D <= 256 elements as pairs, so that
// an 8-bit cache's scale is one reduction over the warp. Bound by memory: qkv is read and q, k written once.
#include "rope.h"

#include "launch.h"
#include "prim.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128, kWarps = 4, kPairs = 4;  // of a lane: head sizes to 256

struct Pair {
  float x[2];
};

template <DType T>
OCTAVO_DEVICE float load(const void* p, int64_t i) {
  if constexpr (T == DType::kFloat32) return static_cast<const float*>(p)[i];
  const uint32_t word = static_cast<const uint16_t*>(p)[i];
  return T == DType::kBFloat16 ? unpack_bf16(word).x : unpack_f16(word).x;
}
template <DType T>
OCTAVO_DEVICE void store(void* p, int64_t i, float x) {
  if constexpr (T == DType::kFloat32) {
    static_cast<float*>(p)[i] = x;
  } else {
    static_cast<uint16_t*>(p)[i] = uint16_t(T == DType::kBFloat16 ? pack_bf16(x, x) : pack_f16(x, x));
  }
}
template <DType T>
OCTAVO_DEVICE float rounded(float x) {
  if constexpr (T == DType::kFloat32) return x;
  return T == DType::kBFloat16 ? unpack_bf16(pack_bf16(x, x)).x : unpack_f16(pack_f16(x, x)).x;
}

// Codes of one head's vector of one token, and its float16 scale: the largest magnitude / 127 or / 448, for zeros 0.
// With an element that is not finite the scale is NaN and all codes are zero.
template <bool Int8>
OCTAVO_DEVICE void quantise(const RopeArgs& a, const Pair (&pair)[kPairs], const int (&dim)[kPairs][2], int lane,
                            unsigned char* block, int row) {
  float largest = 0.0f;
  bool finite = true;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    if (lane + 32 * j >= a.head_dim / 2) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      finite = finite && fabsf(pair[j].x[i]) <= 3.4028235e38f;
      largest = fmaxf(largest, fabsf(pair[j].x[i]));
    }
  }
#pragma unroll
  for (int i = 16; i > 0; i /= 2) largest = fmaxf(largest, shfl_xor(largest, i));
  finite = all(finite);
  const uint32_t stored = pack_f16(largest * (Int8 ? 1.0f / 127.0f : 1.0f / 448.0f), 0.0f);
  const float scale = unpack_f16(stored).x, inverse = scale > 0.0f && finite ? div_rn(1.0f, scale) : 0.0f;
  unsigned char* codes = block + int64_t(row) * a.head_dim;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    if (lane + 32 * j >= a.head_dim / 2) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float x = finite ? mul_rn(pair[j].x[i], inverse) : 0.0f;
      if constexpr (Int8) {
        codes[dim[j][i]] = uint8_t(int8_t(rintf(fminf(fmaxf(x, -127.0f), 127.0f))));
      } else {
        codes[dim[j][i]] = uint8_t(cvt_f32x2_e4m3x2(x, 0.0f));
      }
    }
  }
  if (lane == 0) {
    uint16_t* scales = reinterpret_cast<uint16_t*>(block + int64_t(a.page_size) * a.head_dim);
    scales[row] = uint16_t(finite ? stored : 0x7e00u);
  }
}

template <DType T>
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeArgs a, int first_head) {
  pdl_wait();
  pdl_launch();
  const int lane = int(threadIdx.x) & 31, head = first_head + int(blockIdx.y) * kWarps + (int(threadIdx.x) >> 5);
  const int token = int(blockIdx.x), slot = a.slots[token];
  if (slot < 0 || head >= a.num_heads + 2 * a.num_kv_heads) return;
  const bool rotate = a.cos_sin != nullptr && head < a.num_heads + a.num_kv_heads;
  const int64_t row = token * a.stride + int64_t(head) * a.head_dim;
  const int half = rotate ? a.rotary / 2 : 0;

  Pair pair[kPairs];
  int dim[kPairs][2];
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int p = lane + 32 * j;
    if (p >= a.head_dim / 2) continue;
    const bool halves = p < half && !a.interleaved;
    dim[j][0] = halves ? p : 2 * p;
    dim[j][1] = halves ? p + half : 2 * p + 1;
#pragma unroll
    for (int i = 0; i < 2; ++i) pair[j].x[i] = load<T>(a.qkv, row + dim[j][i]);
    if (p < half) {
      const float* table = a.cos_sin + int64_t(a.positions[token]) * a.rotary + p;
      const float cos = table[0], sin = table[half], x = pair[j].x[0], y = pair[j].x[1];
      pair[j].x[0] = rounded<T>(fma_rn(x, cos, -mul_rn(y, sin)));
      pair[j].x[1] = rounded<T>(fma_rn(y, cos, mul_rn(x, sin)));
#pragma unroll
      for (int i = 0; i < 2; ++i) store<T>(a.qkv, row + dim[j][i], pair[j].x[i]);
    }
  }
  if (head < a.num_heads) return;

  const int kv = head - a.num_heads;
  void* cache = kv < a.num_kv_heads ? a.keys : a.values;
  const int page = slot / a.page_size, offset = slot % a.page_size;
  const int64_t block = int64_t(page) * a.num_kv_heads + kv % a.num_kv_heads;
  if (a.cache_type == CacheType::kInt8 || a.cache_type == CacheType::kFloat8) {
    unsigned char* at = static_cast<unsigned char*>(cache) + block * a.page_size * (a.head_dim + 2);
    if (a.cache_type == CacheType::kInt8) {
      quantise<true>(a, pair, dim, lane, at, offset);
    } else {
      quantise<false>(a, pair, dim, lane, at, offset);
    }
    return;
  }
  const int64_t at = (block * a.page_size + offset) * a.head_dim;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    if (lane + 32 * j >= a.head_dim / 2) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float x = pair[j].x[i];
      if (a.cache_type == CacheType::kBFloat16) {
        store<DType::kBFloat16>(cache, at + dim[j][i], x);
      } else if (a.cache_type == CacheType::kFloat16) {
        store<DType::kFloat16>(cache, at + dim[j][i], x);
      } else {
        store<DType::kFloat32>(cache, at + dim[j][i], x);
      }
    }
  }
}

}  // namespace

void rope_and_cache(const RopeArgs& a, cudaStream_t stream) {
  const int first = a.cos_sin == nullptr ? a.num_heads : 0;  // queries stay as they are
  const int heads = a.num_heads + 2 * a.num_kv_heads - first;
  const dim3 grid(unsigned(a.tokens), unsigned((heads + kWarps - 1) / kWarps));
  const auto kernel = a.type == DType::kBFloat16  ? rope_kernel<DType::kBFloat16>
                      : a.type == DType::kFloat16 ? rope_kernel<DType::kFloat16>
                                                  : rope_kernel<DType::kFloat32>;
  launch(kernel, grid, dim3(kThreads), 0, stream, a, first);
}

}  // namespace octavo::cuda
