// What kernel files see of the emulator: CUDA's built-in names and functions as C++ on fibers. prim.cuh includes it
// under OCTAVO_SIMT. Everything with a `line` parameter takes the caller's own line by default: errors name it, and
// lanes that meet in one operation must come from the same one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>

#undef __shared__
#define __shared__ static_assert(false, "use OCTAVO_SHARED or OCTAVO_DYNAMIC_SHARED");
#undef __constant__
#define __constant__
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

#define SIMT_LINE int line = __builtin_LINE()

namespace simt {

// Constant for the life of a fiber, so that the compiler may keep them.
uint3 thread_index() __attribute__((const));
uint3 block_index() __attribute__((const));
dim3 block_size() __attribute__((const));
dim3 grid_size() __attribute__((const));
int lane() __attribute__((const));

// Runs every block to its end. Throws simt::Error (error.h) with block, thread and line of the first mistake.
// overlap: every thread has to come to pdl_wait. function: the kernel, as cudaFuncSetAttribute knows it.
void run(bool overlap, dim3 grid, dim3 block, size_t dynamic_shared, const void* function, void (*kernel)(void*),
         void* parameters, size_t size);

template <class... P, class... A>
void launch(bool overlap, void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared, A&&... arguments) {
  // Copied, like the hardware's parameter bank: a kernel must not read its caller's stack.
  struct Parameters {
    void (*kernel)(P...);
    std::tuple<P...> values;
  } parameters{kernel, std::tuple<P...>(static_cast<P>(arguments)...)};
  run(
      overlap, grid, block, dynamic_shared, reinterpret_cast<const void*>(kernel),
      [](void* p) { std::apply(static_cast<Parameters*>(p)->kernel, static_cast<Parameters*>(p)->values); },
      &parameters, sizeof parameters);
}

// Shared memory: one arena a block, poisoned with 0xFF (NaN in every float type) when the block starts. A variable is
// known by the address of its key, so that each instance of a kernel template has its own.
void* static_shared(const void* key, size_t bytes, size_t align);
void* dynamic_shared();
template <class T>
T& shared_ref(const void* key) {
  return *static_cast<T*>(static_shared(key, sizeof(T), alignof(T)));
}

enum class Shuffle { kIndex, kUp, kDown, kXor };
uint64_t shuffle(uint32_t mask, uint64_t value, int operand, int width, Shuffle mode, int line);
enum class Reduce { kAdd, kMin, kMax, kMinSigned, kMaxSigned, kAnd, kOr, kXor, kBallot };
uint32_t reduce(uint32_t mask, uint32_t value, Reduce what, int line);
void warp_barrier(uint32_t mask, int line);
enum class Vote { kNone, kCount, kAnd, kOr };
int barrier(int id, int count, Vote vote, int predicate, int line);

enum class Mma { kBf16, kF16, kS8 };
void mma(void* d, const uint32_t* a, const uint32_t* b, const void* c, Mma type, int line);
void ldmatrix(uint32_t* r, int matrices, bool trans, const void* row, int line);

// The bytes land in shared memory when the issuing thread waits, and not before.
void cp_async(void* to, const void* from, int bytes, bool valid, int line);
void cp_commit();
void cp_wait(int pending);

enum class Atomic { kAdd, kMin, kMax, kInc, kExchange, kAnd, kOr };
uint32_t atomic(uint32_t* p, uint32_t value, Atomic what, int line);
uint64_t atomic(uint64_t* p, uint64_t value, Atomic what, int line);
float atomic_add(float* p, float value, int line);
uint32_t compare_and_swap(uint32_t* p, uint32_t expected, uint32_t value, int line);
void fence();
void pdl_wait();
void pdl_launch(int line);

template <class T, class U>
T bits(U u) {
  static_assert(sizeof(T) == sizeof(U));
  T t;
  __builtin_memcpy(static_cast<void*>(&t), &u, sizeof t);
  return t;
}

template <class T>
T shuffle_as(uint32_t mask, T value, int operand, int width, Shuffle mode, int line) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof(T));
  word = shuffle(mask, word, operand, width, mode, line);
  T result;
  __builtin_memcpy(static_cast<void*>(&result), &word, sizeof(T));
  return result;
}

}  // namespace simt

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())
#define warpSize 32

inline void __syncthreads(SIMT_LINE) { simt::barrier(0, 0, simt::Vote::kNone, 0, line); }
inline int __syncthreads_count(int p, SIMT_LINE) { return simt::barrier(0, 0, simt::Vote::kCount, p, line); }
inline int __syncthreads_and(int p, SIMT_LINE) { return simt::barrier(0, 0, simt::Vote::kAnd, p, line); }
inline int __syncthreads_or(int p, SIMT_LINE) { return simt::barrier(0, 0, simt::Vote::kOr, p, line); }
inline void __syncwarp(uint32_t mask = ~0u, SIMT_LINE) { simt::warp_barrier(mask, line); }

template <class T>
T __shfl_sync(uint32_t mask, T v, int source, int width = 32, SIMT_LINE) {
  return simt::shuffle_as(mask, v, source, width, simt::Shuffle::kIndex, line);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T v, unsigned delta, int width = 32, SIMT_LINE) {
  return simt::shuffle_as(mask, v, int(delta), width, simt::Shuffle::kUp, line);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T v, unsigned delta, int width = 32, SIMT_LINE) {
  return simt::shuffle_as(mask, v, int(delta), width, simt::Shuffle::kDown, line);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T v, int lanes, int width = 32, SIMT_LINE) {
  return simt::shuffle_as(mask, v, lanes, width, simt::Shuffle::kXor, line);
}
inline unsigned __ballot_sync(uint32_t mask, int p, SIMT_LINE) {
  return simt::reduce(mask, p != 0, simt::Reduce::kBallot, line);
}
inline int __any_sync(uint32_t mask, int p, SIMT_LINE) {
  return int(simt::reduce(mask, p != 0, simt::Reduce::kOr, line));
}
inline int __all_sync(uint32_t mask, int p, SIMT_LINE) {
  return int(simt::reduce(mask, p != 0, simt::Reduce::kAnd, line));
}
inline unsigned __reduce_add_sync(uint32_t mask, unsigned v, SIMT_LINE) {
  return simt::reduce(mask, v, simt::Reduce::kAdd, line);
}
inline int __reduce_add_sync(uint32_t mask, int v, SIMT_LINE) {
  return int(simt::reduce(mask, unsigned(v), simt::Reduce::kAdd, line));
}
inline unsigned __reduce_max_sync(uint32_t mask, unsigned v, SIMT_LINE) {
  return simt::reduce(mask, v, simt::Reduce::kMax, line);
}
inline int __reduce_max_sync(uint32_t mask, int v, SIMT_LINE) {
  return int(simt::reduce(mask, unsigned(v), simt::Reduce::kMaxSigned, line));
}
inline unsigned __reduce_min_sync(uint32_t mask, unsigned v, SIMT_LINE) {
  return simt::reduce(mask, v, simt::Reduce::kMin, line);
}
inline int __reduce_min_sync(uint32_t mask, int v, SIMT_LINE) {
  return int(simt::reduce(mask, unsigned(v), simt::Reduce::kMinSigned, line));
}

inline void __threadfence() { simt::fence(); }

inline unsigned __float_as_uint(float f) { return simt::bits<unsigned>(f); }
inline int __float_as_int(float f) { return simt::bits<int>(f); }
inline float __uint_as_float(unsigned u) { return simt::bits<float>(u); }
inline float __int_as_float(int i) { return simt::bits<float>(i); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i);
  return r;
}
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }

using std::max;
using std::min;
