// One primitive a launch, on whole registers, for comparison with tables and scalar arithmetic (test_primitives.py).
#pragma once

#include <cstdint>

namespace octavo::cuda::primitives {

enum class Mma : int { kBf16, kF16, kS8 };
// One warp: a [32, 4], b [32, 2], c and d [32, 4] registers, lane by lane. c null: the form without C.
void run_mma(Mma type, uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c);

// r [32, matrices] from `from` [8 * matrices, 8], its rows `stride` elements apart in shared memory.
void run_ldmatrix(int matrices, bool trans, uint32_t* r, const uint16_t* from, int stride);

// out[i] from a[i], b[i], c[i], i < n. Null for a name that is not there.
using Elementwise = void (*)(uint32_t* out, const uint32_t* a, const uint32_t* b, const uint32_t* c, int n);
Elementwise find_elementwise(const char* name);

// out[i] from the 32 values a[0..31] and an operand, by one warp.
using Lanes = void (*)(uint32_t* out, const uint32_t* a, int operand);
Lanes find_lanes(const char* name);

// Copies n units of `bytes` from global memory through shared memory; units from `valid` on are zero-filled.
void run_copy(int bytes, void* out, const void* in, int n, int valid);

// 64 threads of 4 blocks on words[0..3]: add 3, increment wrapping after 9, add to and maximum of 64-bit words.
void run_atomics(uint32_t* words, uint64_t* wide);

}  // namespace octavo::cuda::primitives
