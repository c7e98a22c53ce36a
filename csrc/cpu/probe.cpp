// What the machine gives on this instruction set: a read stream, and multiply-adds that never leave the registers.
#include "octavo/kernels_probe.h"

#include "octavo/simd_int8.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int kChains = 24;

float read(const void* data, int64_t bytes) {
  float total[64] = {};
  int64_t lines = bytes / 256;
  parallel_for(lines, 4096, [&](int64_t begin, int64_t end) {
    // Two streams a thread read about 5 % more than one on Zen 4.
    int64_t half = (end - begin) / 2;
    const float* p = static_cast<const float*>(data) + begin * 64;
    Vec a = zero(), b = zero(), c = zero(), d = zero();
    for (int64_t i = 0; i < half; ++i, p += 64) {
      const float* q = p + half * 64;
      a = max(load(q), max(load(p), a));
      b = max(load(q + 16), max(load(p + 16), b));
      c = max(load(q + 32), max(load(p + 32), c));
      d = max(load(q + 48), max(load(p + 48), d));
    }
    total[begin * 63 / (lines + 1)] = reduce_max(max(max(a, b), max(c, d)));
  });
  float sum = 0;
  for (float t : total) sum += t;
  return sum;
}

#if defined(OCTAVO_ISA_AVX512)
constexpr int kInRegisters = kChains;
#else
constexpr int kInRegisters = 6;
#endif

OCTAVO_INLINE Vec first(int i, Vec) { return broadcast(float(i)); }
OCTAVO_INLINE IntVec first(int i, IntVec) { return broadcast_int(i); }
OCTAVO_INLINE Vec value(Vec v) { return v; }
OCTAVO_INLINE Vec value(IntVec v) { return to_float(v); }

template <class A, class Step>
OCTAVO_INLINE void run_chains(int64_t rounds, float* sink, const Step& step) {
  constexpr int chains = kInRegisters;
  A acc[chains];
#pragma GCC unroll 24
  for (int i = 0; i < chains; ++i) acc[i] = first(i, A{});
  for (int64_t r = 0; r < rounds * kChains / chains; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < chains; ++i) acc[i] = step(acc[i]);
  }
  Vec sum = zero();
#pragma GCC unroll 24
  for (int i = 0; i < chains; ++i) sum = sum + value(acc[i]);
  *sink = reduce_add(sum);
}

double multiply_add_float32(int64_t rounds, float* sink) {
  int threads = num_threads();
  float partial[256] = {};
  parallel_for(threads, 1, [&](int64_t begin, int64_t) {
    Vec a = broadcast(sink[0]), b = broadcast(sink[1]);
    run_chains<Vec>(rounds, &partial[begin % 256], [&](Vec acc) { return fma(a, b, acc); });
  });
  for (float p : partial) sink[0] += p;
  return double(threads) * double(rounds) * kChains * 16 * 2;
}

double multiply_add_bfloat16(int64_t rounds, float* sink) {
  int threads = num_threads();
  float partial[256] = {};
  parallel_for(threads, 1, [&](int64_t begin, int64_t) {
    bf16 line[32];
    for (int i = 0; i < 32; ++i) line[i] = to_bf16(sink[i % 2]);
    Pairs a = load_pairs(line);
    PairBroadcast b = broadcast_pair(line);
    run_chains<Vec>(rounds, &partial[begin % 256], [&](Vec acc) { return dot2_bf16(acc, a, b); });
  });
  for (float p : partial) sink[0] += p;
  return double(threads) * double(rounds) * kChains * 16 * 4;
}

double multiply_add_int8(int64_t rounds, float* sink) {
  int threads = num_threads();
  float partial[256] = {};
  parallel_for(threads, 1, [&](int64_t begin, int64_t) {
    uint8_t line[64];
    for (int i = 0; i < 64; ++i) line[i] = uint8_t(to_bits(sink[0]) + uint32_t(i));
    Codes codes = load_codes8(line);
    int32_t quad = int32_t(to_bits(sink[0]));
    const int32_t* a = &quad;
    run_chains<IntVec>(rounds, &partial[begin % 256], [&](IntVec acc) {
#if !defined(OCTAVO_ISA_AVX512)
      // Where a product is several instructions, those that never change would leave the loop.
      asm volatile("" : "+r"(a));
#endif
      return dot8(acc, codes, a);
    });
  });
  for (float p : partial) sink[0] += p;
  return double(threads) * double(rounds) * kChains * 16 * 8;
}

}  // namespace

const ProbeKernels probe_kernels = {read, multiply_add_float32, multiply_add_bfloat16, multiply_add_int8};

}  // namespace octavo::OCTAVO_ISA
