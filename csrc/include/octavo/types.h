// Storage types and the instruction-set namespaces that every kernel file shares.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

// Sixteen-bit storage only: arithmetic happens in float32 after octavo::<isa>::load or to_float.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
// Of the paged KV cache (KVLayout in ops/__init__.py).
// kFloat8 is e4m3, on CUDA only.
enum class CacheType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3, kFloat8 = 4 };

}  // namespace octavo

// A helper that lands in several ISA objects must never be shared by the linker: one built with AVX-512 flags could
// be the copy the portable path calls. Helpers therefore are always_inline and live in the ISA's namespace.
#define OCTAVO_INLINE static inline __attribute__((always_inline))
#define OCTAVO_RESTRICT __restrict__
