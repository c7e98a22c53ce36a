// Which instruction set the process runs with, and how a kernel family exports one table for each.
#pragma once

#include "octavo/types.h"

namespace octavo {

enum class Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The chosen one: the best that CPU and operating system support, unless set_isa said otherwise.
Isa isa();
const char* isa_name(Isa isa);
// "portable", "avx2", "avx512" or "" for the best. False when the name is unknown or the machine can't run it.
bool set_isa(const char* name);
bool isa_supported(Isa isa);

}  // namespace octavo

// In kernels_<family>.h, inside namespace octavo, after `struct Table`: declares Table <isa>::name for each ISA (defined
// in <family>.cpp as `const Table name = {...};` inside namespace octavo::OCTAVO_ISA) and Table const& pick_<name>().
#if defined(__x86_64__)
#define OCTAVO_KERNELS(Table, name)                       \
  namespace portable { extern const Table name; }         \
  namespace avx2 { extern const Table name; }             \
  namespace avx512 { extern const Table name; }           \
  static inline const Table& pick_##name() {              \
    switch (isa()) {                                      \
      case Isa::kAvx512: return avx512::name;             \
      case Isa::kAvx2: return avx2::name;                 \
      default: return portable::name;                     \
    }                                                     \
  }
#else
#define OCTAVO_KERNELS(Table, name)               \
  namespace portable { extern const Table name; } \
  static inline const Table& pick_##name() { return portable::name; }
#endif
