// The arithmetic of mma on 16-bit types, for the emulator and for the PTX machine (tests/support/ptx).
#pragma once

#include <cstdint>

namespace tensor_core {

struct Tile {
  uint16_t a[16][16], b[16][8];  // bfloat16 or float16
  float c[16][8];
};

// c += a b
template <bool Bf16>
void multiply(Tile& t);

}  // namespace tensor_core
