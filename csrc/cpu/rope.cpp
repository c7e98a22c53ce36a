// Rotary position embedding (arXiv 2104.09864) in place on q and k, and k and v to their slots in the cache.
#include "octavo/kernels_rope.h"

#include <string.h>

#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

// One head: pairs (i, i + rotary / 2), as GPT-NeoX and LLaMA lay them out.
template <class T>
OCTAVO_INLINE void rotate_halves(T* x, const float* cos_sin, int64_t half) {
  for (int64_t i = 0; i < half; i += 16) {
    const int n = half - i < 16 ? int(half - i) : 16;
    const Vec cos = load_n(cos_sin + i, n), sin = load_n(cos_sin + half + i, n);
    const Vec a = load_n(x + i, n), b = load_n(x + half + i, n);
    store_n(x + i, a * cos - b * sin, n);
    store_n(x + half + i, b * cos + a * sin, n);
  }
}

// One head: pairs (2i, 2i + 1), as GPT-J lays them out.
template <class T>
OCTAVO_INLINE void rotate_pairs(T* x, const float* cos_sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float cos = cos_sin[i], sin = cos_sin[half + i];
    const float a = to_float(x[2 * i]), b = to_float(x[2 * i + 1]);
    from_float(x + 2 * i, a * cos - b * sin);
    from_float(x + 2 * i + 1, b * cos + a * sin);
  }
}

OCTAVO_INLINE void convert(float* to, float from) { *to = from; }
OCTAVO_INLINE void convert(f16* to, float from) { *to = to_f16(from); }
OCTAVO_INLINE void convert(bf16* to, float from) { *to = to_bf16(from); }
OCTAVO_INLINE void convert(bf16* to, bf16 from) { *to = from; }
template <class T>
OCTAVO_INLINE void convert(T* to, bf16 from) { convert(to, to_float(from)); }

// One token's key and value of one head. A key goes to head_dim / p lines of the page, a value to one row of lines.
template <class T, class C, int P>
OCTAVO_INLINE void write_slot(const T* k, const T* v, C* keys, C* values, int64_t head_dim, int64_t page_size,
                              int64_t offset) {
  C* key = keys + offset * P;
  for (int64_t d = 0; d < head_dim; d += P) {
    for (int j = 0; j < P; ++j) convert(key + d / P * page_size * P + j, k[d + j]);
  }
  C* value = values + offset / P * head_dim * P + offset % P;
  for (int64_t d = 0; d < head_dim; ++d) convert(value + d * P, v[d]);
}

// Sixteen codes at a time to their lanes; a NaN or an infinity among them makes the scale a NaN.
template <class T>
OCTAVO_INLINE float quantise(const T* x, int64_t head_dim, int8_t* codes) {
  Vec largest = zero(), poison = zero();
  for (int64_t d = 0; d < head_dim; d += 16) {
    const Vec v = load_n(x + d, head_dim - d < 16 ? int(head_dim - d) : 16);
    largest = max(largest, abs(v));
    poison = fma(v, zero(), poison);
  }
  const float amax = reduce_max(largest), poisoned = reduce_add(poison);
  if (!(poisoned == 0.0f) || amax == 0.0f) {
    memset(codes, 0, size_t(head_dim));
    return poisoned;
  }
  const Vec inverse = broadcast(127.0f / amax);
  for (int64_t d = 0; d < head_dim; d += 16) {
    const int n = head_dim - d < 16 ? int(head_dim - d) : 16;
    float code[16];
    store(code, round(load_n(x + d, n) * inverse));
    for (int i = 0; i < n; ++i) codes[d + i] = int8_t(code[i]);
  }
  return amax / 127.0f;
}

// The same in int8, whose scales lie behind the page's keys: head_dim / 4 lines of codes, a line of key scales, one of
// value scales.
template <class T>
OCTAVO_INLINE void write_slot_int8(const T* k, const T* v, int8_t* keys, int8_t* values, int64_t head_dim,
                                   int64_t page_size, int64_t offset) {
  int8_t codes[256];
  int8_t* key = keys + offset * 4;
  const float key_scale = quantise(k, head_dim, codes);
  for (int64_t d = 0; d < head_dim; d += 4) memcpy(key + d * page_size, codes + d, 4);
  const float value_scale = quantise(v, head_dim, codes);
  int8_t* value = values + offset / 4 * head_dim * 4 + offset % 4;
  for (int64_t d = 0; d < head_dim; ++d) value[d * 4] = codes[d];
  memcpy(key + head_dim * page_size, &key_scale, 4);
  memcpy(key + (head_dim + 4) * page_size, &value_scale, 4);
}

template <class T, class C, int P>
void run(const RopeArgs& a) {
  const int64_t width = (a.num_heads + 2 * a.num_kv_heads) * a.head_dim;
  parallel_for(a.tokens, 1 + 8192 / width, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      T* row = static_cast<T*>(a.qkv) + t * a.stride;
      if (a.cos_sin) {
        const float* cos_sin = a.cos_sin + a.positions[t] * a.rotary;
        for (int64_t head = 0; head < a.num_heads + a.num_kv_heads; ++head) {
          T* x = row + head * a.head_dim;
          if (a.interleaved) {
            rotate_pairs(x, cos_sin, a.rotary / 2);
          } else {
            rotate_halves(x, cos_sin, a.rotary / 2);
          }
        }
      }
      const T* k = row + a.num_heads * a.head_dim;
      const T* v = k + a.num_kv_heads * a.head_dim;
      const int64_t page_elements = a.page_size * a.head_dim, key_elements = page_elements + (P == 4 ? 8 * a.page_size : 0);
      const int64_t page = a.slots[t] / a.page_size, offset = a.slots[t] % a.page_size;
      for (int64_t head = 0; head < a.num_kv_heads; ++head) {
        const int64_t at = page * a.num_kv_heads + head;
        const T *key = k + head * a.head_dim, *value = v + head * a.head_dim;
        C *keys = static_cast<C*>(a.keys) + at * key_elements, *values = static_cast<C*>(a.values) + at * page_elements;
        if constexpr (P == 4) {
          write_slot_int8(key, value, keys, values, a.head_dim, a.page_size, offset);
        } else {
          write_slot<T, C, P>(key, value, keys, values, a.head_dim, a.page_size, offset);
        }
      }
    }
  });
}

template <class T>
void run_cache(const RopeArgs& a) {
  switch (a.cache_type) {
    case CacheType::kFloat32: return run<T, float, 1>(a);
    case CacheType::kBFloat16: return run<T, bf16, 2>(a);
    case CacheType::kFloat16: return run<T, f16, 1>(a);
    case CacheType::kInt8: return run<T, int8_t, 4>(a);
    case CacheType::kFloat8: return;  // of CUDA alone: the binding lets none through
  }
}

void rope_and_cache(const RopeArgs& args) {
  if (args.type == DType::kBFloat16) return run_cache<bf16>(args);
  run_cache<float>(args);
}

}  // namespace

const RopeKernels rope_kernels = {rope_and_cache};

}  // namespace octavo::OCTAVO_ISA
