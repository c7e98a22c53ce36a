// Kernels whose accesses are known, one a launch function (counted.cu).
#pragma once

namespace octavo::counted {

// Device memory of the tests: 4096 floats each, on a line's start.
struct Memory {
  float* out;
  const float* in;
};

struct Case {
  const char* name;
  void (*run)(const Memory& memory);
};
extern const Case cases[];
extern const int num_cases;

}  // namespace octavo::counted
