// Which instruction set runs: decided once from cpuid, overridden by tests.
#include "octavo/dispatch.h"

#include <atomic>
#include <cstring>

namespace octavo {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
         __builtin_cpu_supports("avx512bf16");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

Isa best() { return has_avx512() ? Isa::kAvx512 : has_avx2() ? Isa::kAvx2 : Isa::kPortable; }

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> value{best()};
  return value;
}

}  // namespace

Isa isa() { return chosen().load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx2: return "avx2";
    default: return "portable";
  }
}

bool isa_supported(Isa isa) {
  return isa == Isa::kPortable || (isa == Isa::kAvx2 && has_avx2()) || (isa == Isa::kAvx512 && has_avx512());
}

bool set_isa(const char* name) {
  Isa wanted = best();
  if (*name) {
    bool known = false;
    for (Isa candidate : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
      if (std::strcmp(name, isa_name(candidate)) == 0) wanted = candidate, known = true;
    }
    if (!known || !isa_supported(wanted)) return false;
  }
  chosen().store(wanted, std::memory_order_relaxed);
  return true;
}

}  // namespace octavo
