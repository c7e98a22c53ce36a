// Kernels with planted mistakes, one a launch function, each beside its corrected self (planted.cu).
#pragma once

#include <cstdint>

namespace octavo::planted {

// Device memory of the tests: 64 floats each, 8 counters that are zero; `host` belongs to no tensor of the call.
struct Memory {
  float* out;
  const float* in;
  uint32_t* counters;
  const float* host;
};

struct Case {
  const char* name;
  void (*run)(const Memory& memory, bool good);
};
extern const Case cases[];
extern const int num_cases;

}  // namespace octavo::planted
