// Rotary position embedding (arXiv 2104.09864) in place on q and k, and k and v to their slots in the cache.
#include "octavo/kernels_rope.h"

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
      const int64_t page_elements = a.page_size * a.head_dim;
      const int64_t page = a.slots[t] / a.page_size, offset = a.slots[t] % a.page_size;
      for (int64_t head = 0; head < a.num_kv_heads; ++head) {
        const int64_t base = (page * a.num_kv_heads + head) * page_elements;
        write_slot<T, C, P>(k + head * a.head_dim, v + head * a.head_dim, static_cast<C*>(a.keys) + base,
                            static_cast<C*>(a.values) + base, a.head_dim, a.page_size, offset);
      }
    }
  });
}

template <class T>
void run_cache(const RopeArgs& a) {
  switch (a.cache_type) {
    case DType::kFloat32: return run<T, float, 1>(a);
    case DType::kBFloat16: return run<T, bf16, 2>(a);
    case DType::kFloat16: return run<T, f16, 1>(a);
  }
}

void rope_and_cache(const RopeArgs& args) {
  if (args.type == DType::kBFloat16) return run_cache<bf16>(args);
  run_cache<float>(args);
}

}  // namespace

const RopeKernels rope_kernels = {rope_and_cache};

}  // namespace octavo::OCTAVO_ISA
