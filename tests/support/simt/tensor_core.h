// The arithmetic of mma on 16-bit types.
#pragma once

#include <cstdint>

namespace simt {

struct TensorCoreTile {
  uint16_t a[16][16], b[16][8];  // bfloat16 or float16
  float c[16][8];
};

// c += a b
template <bool Bf16>
void multiply(TensorCoreTile& t);

}  // namespace simt
