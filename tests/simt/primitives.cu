#include <cstring>

#include "launch.h"
#include "prim.cuh"
#include "primitives.h"

namespace octavo::cuda::primitives {
namespace {

template <Mma Type>
__global__ void mma_kernel(uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  const int lane = int(threadIdx.x);
  FragA fa;
  FragB fb;
  for (int i = 0; i < 4; ++i) fa.r[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) fb.r[i] = b[lane * 2 + i];
  if constexpr (Type == Mma::kS8) {
    FragI fc;
    if (c) {
      for (int i = 0; i < 4; ++i) fc.r[i] = int(c[lane * 4 + i]);
      mma_s8(fc, fa, fb, fc);
    } else {
      mma_s8_zero(fc, fa, fb);
    }
    for (int i = 0; i < 4; ++i) d[lane * 4 + i] = uint32_t(fc.r[i]);
  } else {
    FragC fc;
    if (c) {
      for (int i = 0; i < 4; ++i) fc.r[i] = __uint_as_float(c[lane * 4 + i]);
      if constexpr (Type == Mma::kBf16) mma_bf16(fc, fa, fb, fc);
      if constexpr (Type == Mma::kF16) mma_f16(fc, fa, fb, fc);
    } else {
      if constexpr (Type == Mma::kBf16) mma_bf16_zero(fc, fa, fb);
      if constexpr (Type == Mma::kF16) mma_f16_zero(fc, fa, fb);
    }
    for (int i = 0; i < 4; ++i) d[lane * 4 + i] = __float_as_uint(fc.r[i]);
  }
}

template <int X, bool Trans>
__global__ void ldmatrix_kernel(uint32_t* out, const uint16_t* from, int stride) {
  OCTAVO_DYNAMIC_SHARED(uint16_t, s);
  const int lane = int(threadIdx.x);
  if (lane < 8 * X) {
    for (int i = 0; i < 8; ++i) s[lane * stride + i] = from[lane * 8 + i];
  }
  warp_sync();
  uint32_t r[X];
  ldmatrix<X, Trans>(r, s + lane * stride);
  for (int i = 0; i < X; ++i) out[lane * X + i] = r[i];
}

template <int X>
void ldmatrix_of(bool trans, uint32_t* r, const uint16_t* from, int stride) {
  launch(LaunchOptions{false}, trans ? ldmatrix_kernel<X, true> : ldmatrix_kernel<X, false>, dim3(1), dim3(32),
         size_t(8 * X * stride) * 2, nullptr, r, from, stride);
}

OCTAVO_DEVICE float f32(uint32_t x) { return __uint_as_float(x); }
OCTAVO_DEVICE uint32_t u32(float x) { return __float_as_uint(x); }

using Scalar = uint32_t (*)(uint32_t a, uint32_t b, uint32_t c);

template <Scalar F>
__global__ void elementwise_kernel(uint32_t* out, const uint32_t* a, const uint32_t* b, const uint32_t* c, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = F(a[i], b[i], c[i]);
}

template <Scalar F>
void elementwise(uint32_t* out, const uint32_t* a, const uint32_t* b, const uint32_t* c, int n) {
  launch(LaunchOptions{false}, elementwise_kernel<F>, dim3(unsigned(n + 127) / 128), dim3(128), 0, nullptr, out, a, b, c, n);
}

OCTAVO_DEVICE uint64_t wide(uint32_t low, uint32_t high) { return uint64_t(high) << 32 | low; }

OCTAVO_DEVICE uint32_t do_exp2(uint32_t a, uint32_t, uint32_t) { return u32(exp2_approx(f32(a))); }
OCTAVO_DEVICE uint32_t do_log2(uint32_t a, uint32_t, uint32_t) { return u32(log2_approx(f32(a))); }
OCTAVO_DEVICE uint32_t do_rcp(uint32_t a, uint32_t, uint32_t) { return u32(rcp_approx(f32(a))); }
OCTAVO_DEVICE uint32_t do_rsqrt(uint32_t a, uint32_t, uint32_t) { return u32(rsqrt_approx(f32(a))); }
OCTAVO_DEVICE uint32_t do_lop3_and_or(uint32_t a, uint32_t b, uint32_t c) {
  return lop3<(0xF0 & 0xCC) | 0xAA>(a, b, c);
}
OCTAVO_DEVICE uint32_t do_lop3_xor(uint32_t a, uint32_t b, uint32_t c) { return lop3<0xF0 ^ 0xCC ^ 0xAA>(a, b, c); }
OCTAVO_DEVICE uint32_t do_prmt(uint32_t a, uint32_t b, uint32_t c) { return prmt(a, b, c); }
OCTAVO_DEVICE uint32_t do_fma_bf162(uint32_t a, uint32_t b, uint32_t c) { return fma_bf162(a, b, c); }
OCTAVO_DEVICE uint32_t do_fma_h2(uint32_t a, uint32_t b, uint32_t c) { return fma_h2(a, b, c); }
OCTAVO_DEVICE uint32_t do_mulhi_u32(uint32_t a, uint32_t b, uint32_t) { return mulhi_u32(a, b); }
OCTAVO_DEVICE uint32_t do_mulhi_u64(uint32_t a, uint32_t b, uint32_t c) {
  return uint32_t(mulhi_u64(wide(a, b), wide(b, c)) >> 32);
}
OCTAVO_DEVICE uint32_t do_fma_rn(uint32_t a, uint32_t b, uint32_t c) { return u32(fma_rn(f32(a), f32(b), f32(c))); }
OCTAVO_DEVICE uint32_t do_pack_bf16(uint32_t a, uint32_t b, uint32_t) { return pack_bf16(f32(a), f32(b)); }
OCTAVO_DEVICE uint32_t do_pack_f16(uint32_t a, uint32_t b, uint32_t) { return pack_f16(f32(a), f32(b)); }
OCTAVO_DEVICE uint32_t do_unpack_bf16(uint32_t a, uint32_t, uint32_t c) {
  return u32(c ? unpack_bf16(a).y : unpack_bf16(a).x);
}
OCTAVO_DEVICE uint32_t do_unpack_f16(uint32_t a, uint32_t, uint32_t c) {
  return u32(c ? unpack_f16(a).y : unpack_f16(a).x);
}
OCTAVO_DEVICE uint32_t do_e4m3_f16(uint32_t a, uint32_t, uint32_t) { return cvt_e4m3x2_f16x2(uint16_t(a)); }
OCTAVO_DEVICE uint32_t do_f32_e4m3(uint32_t a, uint32_t b, uint32_t) { return cvt_f32x2_e4m3x2(f32(a), f32(b)); }

using OfLanes = uint32_t (*)(uint32_t value, int operand);

template <OfLanes F>
__global__ void lanes_kernel(uint32_t* out, const uint32_t* a, int operand) {
  out[threadIdx.x] = F(a[threadIdx.x], operand);
}
template <OfLanes F>
void lanes(uint32_t* out, const uint32_t* a, int operand) {
  launch(LaunchOptions{false}, lanes_kernel<F>, dim3(1), dim3(32), 0, nullptr, out, a, operand);
}

OCTAVO_DEVICE uint32_t do_shfl(uint32_t v, int operand) { return shfl(v, operand); }
OCTAVO_DEVICE uint32_t do_shfl_xor(uint32_t v, int operand) { return shfl_xor(v, operand); }
OCTAVO_DEVICE uint32_t do_shfl_up(uint32_t v, int operand) { return shfl_up(v, unsigned(operand)); }
OCTAVO_DEVICE uint32_t do_shfl_down(uint32_t v, int operand) { return shfl_down(v, unsigned(operand)); }
OCTAVO_DEVICE uint32_t do_shfl_wide(uint32_t v, int operand) {
  return uint32_t(shfl(uint64_t(v) << 32, operand) >> 32);
}
OCTAVO_DEVICE uint32_t do_shfl_groups(uint32_t v, int operand) { return __shfl_sync(kFullMask, v, operand, 8); }
OCTAVO_DEVICE uint32_t do_shfl_xor_groups(uint32_t v, int operand) {
  return __shfl_xor_sync(kFullMask, v, operand, 8);
}
OCTAVO_DEVICE uint32_t do_ballot(uint32_t v, int) { return ballot(v & 1); }
OCTAVO_DEVICE uint32_t do_any(uint32_t v, int operand) { return any(int(v) == operand); }
OCTAVO_DEVICE uint32_t do_all(uint32_t v, int operand) { return all(int(v) != operand); }
OCTAVO_DEVICE uint32_t do_add(uint32_t v, int) { return __reduce_add_sync(kFullMask, v); }
OCTAVO_DEVICE uint32_t do_count(uint32_t v, int) { return uint32_t(__syncthreads_count(v & 1)); }

template <int Bytes>
__global__ void copy_kernel(char* out, const char* in, int n, int valid) {
  OCTAVO_DYNAMIC_SHARED(char, s);
  const int t = int(threadIdx.x);
  for (int i = t; i < n; i += 32) {
    cp_async<Bytes>(s + i * Bytes, in + i * Bytes, i < valid);
    cp_commit();
  }
  cp_wait<0>();
  warp_sync();
  for (int i = t; i < n * Bytes; i += 32) out[i] = s[i];
}

__global__ void atomics_kernel(uint32_t* words, uint64_t* wides) {
  const auto i = uint64_t(blockIdx.x * blockDim.x + threadIdx.x);
  atom_add_u32(words, 3);
  atom_inc(words + 1, 9);
  atom_add_u64(wides, i << 30);
  atom_max_u64(wides + 1, (i * 37 % 256) << 40);
}

}  // namespace

void run_mma(Mma type, uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  const auto kernel = type == Mma::kBf16  ? mma_kernel<Mma::kBf16>
                      : type == Mma::kF16 ? mma_kernel<Mma::kF16>
                                          : mma_kernel<Mma::kS8>;
  launch(LaunchOptions{false}, kernel, dim3(1), dim3(32), 0, nullptr, d, a, b, c);
}

void run_ldmatrix(int matrices, bool trans, uint32_t* r, const uint16_t* from, int stride) {
  (matrices == 1 ? ldmatrix_of<1> : matrices == 2 ? ldmatrix_of<2> : ldmatrix_of<4>)(trans, r, from, stride);
}

Elementwise find_elementwise(const char* name) {
  static const struct {
    const char* name;
    Elementwise run;
  } table[] = {
      {"exp2_approx", elementwise<do_exp2>},
      {"log2_approx", elementwise<do_log2>},
      {"rcp_approx", elementwise<do_rcp>},
      {"rsqrt_approx", elementwise<do_rsqrt>},
      {"lop3_and_or", elementwise<do_lop3_and_or>},
      {"lop3_xor", elementwise<do_lop3_xor>},
      {"prmt", elementwise<do_prmt>},
      {"fma_bf162", elementwise<do_fma_bf162>},
      {"fma_h2", elementwise<do_fma_h2>},
      {"mulhi_u32", elementwise<do_mulhi_u32>},
      {"mulhi_u64", elementwise<do_mulhi_u64>},
      {"fma_rn", elementwise<do_fma_rn>},
      {"pack_bf16", elementwise<do_pack_bf16>},
      {"pack_f16", elementwise<do_pack_f16>},
      {"unpack_bf16", elementwise<do_unpack_bf16>},
      {"unpack_f16", elementwise<do_unpack_f16>},
      {"cvt_e4m3x2_f16x2", elementwise<do_e4m3_f16>},
      {"cvt_f32x2_e4m3x2", elementwise<do_f32_e4m3>},
  };
  for (const auto& entry : table) {
    if (!std::strcmp(entry.name, name)) return entry.run;
  }
  return nullptr;
}

Lanes find_lanes(const char* name) {
  static const struct {
    const char* name;
    Lanes run;
  } table[] = {
      {"shfl", lanes<do_shfl>},
      {"shfl_xor", lanes<do_shfl_xor>},
      {"shfl_up", lanes<do_shfl_up>},
      {"shfl_down", lanes<do_shfl_down>},
      {"shfl_wide", lanes<do_shfl_wide>},
      {"shfl_groups", lanes<do_shfl_groups>},
      {"shfl_xor_groups", lanes<do_shfl_xor_groups>},
      {"ballot", lanes<do_ballot>},
      {"any", lanes<do_any>},
      {"all", lanes<do_all>},
      {"reduce_add", lanes<do_add>},
      {"syncthreads_count", lanes<do_count>},
  };
  for (const auto& entry : table) {
    if (!std::strcmp(entry.name, name)) return entry.run;
  }
  return nullptr;
}

void run_copy(int bytes, void* out, const void* in, int n, int valid) {
  const auto kernel = bytes == 4 ? copy_kernel<4> : bytes == 8 ? copy_kernel<8> : copy_kernel<16>;
  launch(LaunchOptions{false}, kernel, dim3(1), dim3(32), size_t(n * bytes), nullptr, static_cast<char*>(out),
         static_cast<const char*>(in), n, valid);
}

void run_atomics(uint32_t* words, uint64_t* wide) {
  launch(LaunchOptions{false}, atomics_kernel, dim3(4), dim3(64), 0, nullptr, words, wide);
}

}  // namespace octavo::cuda::primitives
