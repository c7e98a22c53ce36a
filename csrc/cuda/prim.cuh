// Every primitive that kernels use beyond plain C++: the only file with PTX. Under OCTAVO_SIMT the same functions are
// C++ on the emulator (tests/support/simt), so a kernel file compiles for both unchanged.
// PTX ISA 8.0 names: the comment at a function is its instruction. A new primitive goes to the end of its section,
// as PTX and as emulation.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#ifdef OCTAVO_SIMT
#include "simt.h"
#define OCTAVO_DEVICE inline
// A variable in shared memory: OCTAVO_SHARED(float, tile, [16][33]);
#define OCTAVO_SHARED(type, name, dims)                            \
  auto& name = ::simt::shared_ref<type dims>([] {                  \
    static const char octavo_key_of_this_variable = 0;             \
    return static_cast<const void*>(&octavo_key_of_this_variable); \
  }())
// The launch's dynamic shared memory, aligned to 128 bytes.
#define OCTAVO_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::simt::dynamic_shared())
#else
#define OCTAVO_DEVICE __device__ __forceinline__
#define OCTAVO_SHARED(type, name, dims) __shared__ type name dims
#define OCTAVO_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char octavo_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(octavo_dynamic_shared)
#endif

namespace octavo::cuda {

constexpr uint32_t kFullMask = 0xffffffffu;

// ---- Tensor cores and ldmatrix ----------------------------------------------------------------------------------
// With g = lane / 4, t = lane % 4; 16-bit types pack two k a register, the low half first, s8 four:
//   A  16x16 (16-bit): r0 row g, k 2t..   r1 row g+8, same k   r2 row g, k 2t+8..    r3 row g+8, k 2t+8..
//   B  16x8          : r0 k 2t.., col g   r1 k 2t+8.., col g
//   A  16x32 (s8)    : r0 row g, k 4t..   r1 row g+8, same k   r2 row g, k 16+4t..   r3 row g+8, k 16+4t..
//   B  32x8          : r0 k 4t.., col g   r1 k 16+4t.., col g
//   C  16x8          : r0, r1 row g, col 2t, 2t+1              r2, r3 row g+8, same columns
struct FragA {
  uint32_t r[4];
};
struct FragB {
  uint32_t r[2];
};
struct FragC {
  float r[4];
};
struct FragI {
  int32_t r[4];
};

#ifdef OCTAVO_SIMT
inline void mma_bf16(FragC& d, const FragA& a, const FragB& b, const FragC& c, SIMT_LINE) {
  simt::mma(d.r, a.r, b.r, c.r, simt::Mma::kBf16, line);
}
inline void mma_f16(FragC& d, const FragA& a, const FragB& b, const FragC& c, SIMT_LINE) {
  simt::mma(d.r, a.r, b.r, c.r, simt::Mma::kF16, line);
}
inline void mma_s8(FragI& d, const FragA& a, const FragB& b, const FragI& c, SIMT_LINE) {
  simt::mma(d.r, a.r, b.r, c.r, simt::Mma::kS8, line);
}
template <int X, bool Trans>
inline void ldmatrix(uint32_t (&r)[X], const void* row, SIMT_LINE) {
  simt::ldmatrix(r, X, Trans, row, line);
}
#else
OCTAVO_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Not volatile: a product has no side effect, and ptxas may move it.
// mma.m16n8k16: d = a b + c
OCTAVO_DEVICE void mma_bf16(FragC& d, const FragA& a, const FragB& b, const FragC& c) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d.r[0]), "=f"(d.r[1]), "=f"(d.r[2]), "=f"(d.r[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]), "f"(c.r[0]), "f"(c.r[1]),
        "f"(c.r[2]), "f"(c.r[3]));
}
OCTAVO_DEVICE void mma_f16(FragC& d, const FragA& a, const FragB& b, const FragC& c) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d.r[0]), "=f"(d.r[1]), "=f"(d.r[2]), "=f"(d.r[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]), "f"(c.r[0]), "f"(c.r[1]),
        "f"(c.r[2]), "f"(c.r[3]));
}
// mma.m16n8k32: int32 sums, wrapping
OCTAVO_DEVICE void mma_s8(FragI& d, const FragA& a, const FragB& b, const FragI& c) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=r"(d.r[0]), "=r"(d.r[1]), "=r"(d.r[2]), "=r"(d.r[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]), "r"(c.r[0]), "r"(c.r[1]),
        "r"(c.r[2]), "r"(c.r[3]));
}

// ldmatrix: X 8x8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, shared
// memory); r[j] is row g, columns 2t, 2t+1 of matrix j, with Trans rows 2t, 2t+1 of column g.
template <int X, bool Trans>
OCTAVO_DEVICE void ldmatrix(uint32_t (&r)[X], const void* row) {
  static_assert(X == 1 || X == 2 || X == 4);
  const uint32_t p = shared_address(row);
  if constexpr (X == 4 && !Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(p)
                 : "memory");
  } else if constexpr (X == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(p)
                 : "memory");
  } else if constexpr (X == 2 && !Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(p)
                 : "memory");
  } else if constexpr (X == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(p)
                 : "memory");
  } else if constexpr (!Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(p) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(p) : "memory");
  }
}
#endif

// d = a b: with a constant zero the compiler feeds RZ instead of four registers.
OCTAVO_DEVICE void mma_bf16_zero(FragC& d, const FragA& a, const FragB& b) { mma_bf16(d, a, b, FragC{}); }
OCTAVO_DEVICE void mma_f16_zero(FragC& d, const FragA& a, const FragB& b) { mma_f16(d, a, b, FragC{}); }
OCTAVO_DEVICE void mma_s8_zero(FragI& d, const FragA& a, const FragB& b) { mma_s8(d, a, b, FragI{}); }

// ---- Asynchronous copies ----------------------------------------------------------------------------------------
// Of 4, 8 or 16 bytes from global to shared memory, both aligned to their size. With `valid` false the destination is
// filled with zeros and the source not touched. cp_commit closes the calling thread's group, empty ones count;
// cp_wait<N> waits for all but its newest N groups, and makes them visible to this thread only: others need warp_sync
// or a barrier after it.
#ifdef OCTAVO_SIMT
template <int N>
inline void cp_async(void* to, const void* from, bool valid = true, SIMT_LINE) {
  static_assert(N == 4 || N == 8 || N == 16);
  simt::cp_async(to, from, N, valid, line);
}
inline void cp_commit() { simt::cp_commit(); }
template <int N>
inline void cp_wait() {
  simt::cp_wait(N);
}
#else
// cp.async: .cg (past L1) exists for 16 bytes only
template <int N>
OCTAVO_DEVICE void cp_async(void* to, const void* from, bool valid = true) {
  static_assert(N == 4 || N == 8 || N == 16);
  const int bytes = valid ? N : 0;
  if constexpr (N == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes),
                 "n"(N)
                 : "memory");
  }
}
OCTAVO_DEVICE void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
OCTAVO_DEVICE void cp_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#endif

// ---- Arithmetic -------------------------------------------------------------------------------------------------
#ifdef OCTAVO_SIMT
// Subnormal results flush to zero, as with .ftz.
inline float flush(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.f, x) : x; }
inline float exp2_approx(float x) { return flush(exp2f(flush(x))); }
inline float log2_approx(float x) { return log2f(flush(x)); }
inline float rcp_approx(float x) { return flush(1.f / flush(x)); }
inline float rsqrt_approx(float x) { return 1.f / sqrtf(flush(x)); }
template <int Lut>
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int i = 0; i < 8; ++i) {
    if (Lut >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return r;
}
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> (4 * i) & 15;
    uint32_t byte = uint32_t(bytes >> (8 * (s & 7))) & 255;
    if (s & 8) byte = byte & 0x80 ? 255 : 0;  // replicates the sign
    r |= byte << (8 * i);
  }
  return r;
}
// The sum in double, rounded once to the 16-bit type.
inline uint32_t fma_bf162(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int i = 0; i < 32; i += 16) {
    const auto value = [i](uint32_t x) { return double(simt::bits<float>(x >> i << 16)); };
    r |= uint32_t(simt::bits<uint16_t>(__double2bfloat16(value(a) * value(b) + value(c)))) << i;
  }
  return r;
}
inline uint32_t fma_h2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int i = 0; i < 32; i += 16) {
    const auto value = [i](uint32_t x) { return double(__half2float(simt::bits<__half>(uint16_t(x >> i)))); };
    r |= uint32_t(simt::bits<uint16_t>(__double2half(value(a) * value(b) + value(c)))) << i;
  }
  return r;
}
inline uint32_t mulhi_u32(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline uint64_t mulhi_u64(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  return uint64_t(Wide(a) * b >> 64);
}
// One rounding each, never contracted.
inline float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float mul_rn(float a, float b) { return a * b; }
inline float add_rn(float a, float b) { return a + b; }
inline float sub_rn(float a, float b) { return a - b; }
inline float div_rn(float a, float b) { return a / b; }
inline float sqrt_rn(float x) { return sqrtf(x); }
#else
OCTAVO_DEVICE float exp2_approx(float x) {  // ex2.approx.ftz: 2 ulp
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
OCTAVO_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
OCTAVO_DEVICE float rcp_approx(float x) {  // 1 ulp
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
OCTAVO_DEVICE float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Any function of three bits: Lut = f(0xF0, 0xCC, 0xAA)
template <int Lut>
OCTAVO_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(Lut));
  return r;
}
// Nibble i of the selector picks byte i of the result from the bytes of b:a; its bit 3 replicates that byte's sign.
OCTAVO_DEVICE uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {  // __byte_perm drops that bit
  uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
  return r;
}
// Two 16-bit values a register.
OCTAVO_DEVICE uint32_t fma_bf162(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
OCTAVO_DEVICE uint32_t fma_h2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
OCTAVO_DEVICE uint32_t mulhi_u32(uint32_t a, uint32_t b) { return __umulhi(a, b); }
OCTAVO_DEVICE uint64_t mulhi_u64(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
OCTAVO_DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
OCTAVO_DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
OCTAVO_DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
OCTAVO_DEVICE float sub_rn(float a, float b) { return __fsub_rn(a, b); }
OCTAVO_DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
OCTAVO_DEVICE float sqrt_rn(float x) { return __fsqrt_rn(x); }
#endif

// ---- Conversions ------------------------------------------------------------------------------------------------
// To and from two values a register, the first in the low half; rounded to nearest even.
OCTAVO_DEVICE uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t word;
  __builtin_memcpy(&word, &pair, 4);
  return word;
}
OCTAVO_DEVICE uint32_t pack_f16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t word;
  __builtin_memcpy(&word, &pair, 4);
  return word;
}
OCTAVO_DEVICE float2 unpack_bf16(uint32_t word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
OCTAVO_DEVICE float2 unpack_f16(uint32_t word) {
  __half2 pair;
  __builtin_memcpy(static_cast<void*>(&pair), &word, 4);
  return __half22float2(pair);
}

// fp8 e4m3 (OCP OFP8: bias 7, largest 448, no infinity, NaN 0x7F and 0xFF), two a word, the first in the low byte.
// Widening is exact: the exponent of e4m3 put into f16 is 8 too small, which a product repairs, subnormals included.
OCTAVO_DEVICE uint32_t cvt_e4m3x2_f16x2(uint16_t pair) {
#if !defined(OCTAVO_SIMT) && __CUDA_ARCH__ >= 890
  uint32_t r;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(pair));
  return r;
#else
  const uint32_t spread = (uint32_t(pair) & 0xff00u) << 16 | (uint32_t(pair) & 0xffu) << 8;
  const uint32_t sign = spread & 0x80008000u, magnitude = spread >> 1 & 0x3f803f80u;
  uint32_t r = sign | fma_h2(magnitude, 0x5c005c00u, 0u);  // 2^8
  if ((magnitude & 0x3f80u) == 0x3f80u) r |= 0x7fffu;
  if ((magnitude >> 16) == 0x3f80u) r |= 0x7fff0000u;
  return r;
#endif
}
// Rounds to nearest even; what lies beyond 448, infinities included, becomes 448.
OCTAVO_DEVICE uint16_t cvt_f32x2_e4m3x2(float low, float high) {
#if !defined(OCTAVO_SIMT) && __CUDA_ARCH__ >= 890
  uint16_t r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
  return r;
#else
  uint32_t r = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t word = __float_as_uint(i ? high : low), magnitude = word & 0x7fffffffu;
    uint32_t code;
    if (magnitude > 0x7f800000u) {
      code = 0x7f;
    } else if (magnitude < 0x3c800000u) {  // below 2^-6: a multiple of 2^-9, rounded by adding 1.5 * 2^(23-9)
      code = (__float_as_uint(__uint_as_float(magnitude) + 24576.f) - 0x46c00000u);
    } else {
      code = (magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
      code = code > 0x43eu ? 0x7eu : code - (120u << 3);
    }
    r |= (code | (word >> 24 & 0x80u)) << (8 * i);
  }
  return uint16_t(r);
#endif
}

// ---- Lanes and threads that meet --------------------------------------------------------------------------------
// Of whole warps. Each names every lane of the warp and all must come to the same call. None of them orders memory but
// warp_sync and the barriers.
#ifdef OCTAVO_SIMT
template <class T>
inline T shfl(T v, int source, SIMT_LINE) {
  return __shfl_sync(kFullMask, v, source, 32, line);
}
template <class T>
inline T shfl_xor(T v, int lanes, SIMT_LINE) {
  return __shfl_xor_sync(kFullMask, v, lanes, 32, line);
}
template <class T>
inline T shfl_up(T v, unsigned delta, SIMT_LINE) {
  return __shfl_up_sync(kFullMask, v, delta, 32, line);
}
template <class T>
inline T shfl_down(T v, unsigned delta, SIMT_LINE) {
  return __shfl_down_sync(kFullMask, v, delta, 32, line);
}
inline uint32_t ballot(bool p, SIMT_LINE) { return __ballot_sync(kFullMask, p, line); }
inline bool any(bool p, SIMT_LINE) { return __any_sync(kFullMask, p, line); }
inline bool all(bool p, SIMT_LINE) { return __all_sync(kFullMask, p, line); }
inline void warp_sync(SIMT_LINE) { simt::warp_barrier(kFullMask, line); }
inline void bar_sync(SIMT_LINE) { simt::barrier(0, 0, simt::Vote::kNone, 0, line); }
inline void bar_sync(int id, int threads, SIMT_LINE) { simt::barrier(id, threads, simt::Vote::kNone, 0, line); }
#else
template <class T>
OCTAVO_DEVICE T shfl(T v, int source) {
  return __shfl_sync(kFullMask, v, source);
}
template <class T>
OCTAVO_DEVICE T shfl_xor(T v, int lanes) {
  return __shfl_xor_sync(kFullMask, v, lanes);
}
template <class T>
OCTAVO_DEVICE T shfl_up(T v, unsigned delta) {
  return __shfl_up_sync(kFullMask, v, delta);
}
template <class T>
OCTAVO_DEVICE T shfl_down(T v, unsigned delta) {
  return __shfl_down_sync(kFullMask, v, delta);
}
OCTAVO_DEVICE uint32_t ballot(bool p) { return __ballot_sync(kFullMask, p); }
OCTAVO_DEVICE bool any(bool p) { return __any_sync(kFullMask, p); }
OCTAVO_DEVICE bool all(bool p) { return __all_sync(kFullMask, p); }
OCTAVO_DEVICE void warp_sync() { __syncwarp(); }
// Of all threads of the block; with an id (1 to 15), of as many threads, a multiple of 32.
OCTAVO_DEVICE void bar_sync() { __syncthreads(); }
OCTAVO_DEVICE void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
#endif

// ---- Global memory ----------------------------------------------------------------------------------------------
// A block that reads what others of the same launch wrote: the writers fence_gpu, then count themselves with an atomic;
// the reader sees the full count, does fence_gpu, and reads (with ldcg: an L1 line may be old).
#ifdef OCTAVO_SIMT
inline uint32_t atom_add_u32(uint32_t* p, uint32_t v, SIMT_LINE) {
  return simt::atomic(p, v, simt::Atomic::kAdd, line);
}
inline uint64_t atom_add_u64(uint64_t* p, uint64_t v, SIMT_LINE) {
  return simt::atomic(p, v, simt::Atomic::kAdd, line);
}
inline uint64_t atom_max_u64(uint64_t* p, uint64_t v, SIMT_LINE) {
  return simt::atomic(p, v, simt::Atomic::kMax, line);
}
inline uint32_t atom_inc(uint32_t* p, uint32_t last, SIMT_LINE) {
  return simt::atomic(p, last, simt::Atomic::kInc, line);
}
inline void fence_gpu() { simt::fence(); }
template <class T>
inline T ldcg(const T* p) {
  return *p;
}
template <class T>
inline T ldcs(const T* p) {
  return *p;
}
template <class T>
inline void stcs(T* p, T v) {
  *p = v;
}
inline int thread_again() { return int(threadIdx.x); }
inline void pdl_wait() { simt::pdl_wait(); }
inline void pdl_launch(SIMT_LINE) { simt::pdl_launch(line); }
#else
// Each returns the old value. Any of them may be on shared memory too.
OCTAVO_DEVICE uint32_t atom_add_u32(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }
OCTAVO_DEVICE uint64_t atom_add_u64(uint64_t* p, uint64_t v) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v));
}
OCTAVO_DEVICE uint64_t atom_max_u64(uint64_t* p, uint64_t v) {
  return atomicMax(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v));
}
OCTAVO_DEVICE uint32_t atom_inc(uint32_t* p, uint32_t last) { return atomicInc(p, last); }  // 0 follows `last`
// fence.sc.gpu. All threads fence, then a barrier, then one counts: of acq_rel fences only its own would order anything.
OCTAVO_DEVICE void fence_gpu() { __threadfence(); }
// Loads past L1 (.cg) and streaming (.cs); a streaming store. None through the read-only path (.nc), for what the kernel
// before wrote while this one ran is not read-only.
template <class T>
OCTAVO_DEVICE T ldcg(const T* p) {
  return __ldcg(p);
}
template <class T>
OCTAVO_DEVICE T ldcs(const T* p) {
  return __ldcs(p);
}
template <class T>
OCTAVO_DEVICE void stcs(T* p, T v) {
  __stcs(p, v);
}
// threadIdx.x read anew, so that what follows from it need not stay in registers since it was read before.
OCTAVO_DEVICE int thread_again() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
// Programmatic dependent launch (launch.h): wait until the kernels before this one are complete and their writes visible;
// let the next one start. Every thread of every kernel calls the first, and then the second or ends. No-ops below sm_90.
OCTAVO_DEVICE void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
OCTAVO_DEVICE void pdl_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif

}  // namespace octavo::cuda
