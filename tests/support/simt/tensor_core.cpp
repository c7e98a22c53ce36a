// The sums of a tensor core, as a bit-accurate model has them for sm_90 (Xie et al., arXiv 2511.10909): exact products of
// 16 k and c, each cut off 25 bits below the leading bit of the largest, then added, and cut off to float32. sm_80 takes 8
// k at a time and 24 bits. So what must agree to the bit is tried on sums whose grouping shows.
#include "tensor_core.h"

#include <algorithm>
#include <bit>
#include <cmath>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace tensor_core {
namespace {

constexpr int kFraction = 25;

// Values, and the exponents that terms are lined up by.
struct Operands {
  float a[16][16], b[16][8];
  int a_exponent[16][16], b_exponent[16][8];
};

double power_of_two(int exponent) { return std::bit_cast<double>(uint64_t(exponent + 1023) << 52); }

float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7FFF;
  if (magnitude >= 0x7C00) return std::bit_cast<float>(sign | 0x7F800000u | (magnitude & 0x3FF) << 13);
  // A power of two does the exponent, subnormals included: exact.
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f));
}

template <bool Bf16>
void read(float& value, int& exponent, uint16_t x) {
  value = Bf16 ? std::bit_cast<float>(uint32_t(x) << 16) : half_to_float(x);
  const int field = Bf16 ? x >> 7 & 255 : x >> 10 & 31;
  // Of a zero the least there is, so that it never moves the others.
  exponent = value == 0 ? -126 : std::max(field, 1) - (Bf16 ? 127 : 15);
}

// Towards zero; there is one NaN.
float truncated(double x) {
  if (x != x) return std::bit_cast<float>(0x7fffffffu);
  if (std::fabs(x) < 0x1p-126) return float(std::trunc(x * 0x1p149) * 0x1p-149);
  return float(std::bit_cast<double>(std::bit_cast<uint64_t>(x) >> 29 << 29));
}

void sum_row(const Operands& o, int m, float* c) {
  for (int n = 0; n < 8; ++n) {
    int largest = std::max(int(std::bit_cast<uint32_t>(c[n]) >> 23 & 255), 1) - 127;
    for (int k = 0; k < 16; ++k) largest = std::max(largest, o.a_exponent[m][k] + o.b_exponent[k][n]);
    const double scale = power_of_two(kFraction - largest);
    double sum = std::trunc(double(c[n]) * scale);
    for (int k = 0; k < 16; ++k) sum += std::trunc(double(o.a[m][k]) * double(o.b[k][n]) * scale);
    c[n] = truncated(sum * power_of_two(largest - kFraction));
  }
}

#ifdef __x86_64__
// The same where float32 and int32 hold all that counts: of products below its range nothing is left. Most of an emulated
// kernel's time goes here.
__attribute__((target("avx2"))) void sum_row_avx2(const Operands& o, int m, float* c) {
  const __m256 add = _mm256_loadu_ps(c);
  const __m256i field = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(add), 23), _mm256_set1_epi32(255));
  __m256i largest = _mm256_sub_epi32(_mm256_max_epi32(field, _mm256_set1_epi32(1)), _mm256_set1_epi32(127));
  for (int k = 0; k < 16; ++k) {
    const __m256i right = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(o.b_exponent[k]));
    largest = _mm256_max_epi32(largest, _mm256_add_epi32(_mm256_set1_epi32(o.a_exponent[m][k]), right));
  }
  const __m256i high = _mm256_cmpgt_epi32(largest, _mm256_set1_epi32(100));
  const __m256i low = _mm256_cmpgt_epi32(_mm256_set1_epi32(-60), largest);
  if (_mm256_movemask_epi8(_mm256_or_si256(high, low))) return sum_row(o, m, c);
  const __m256i biased = _mm256_sub_epi32(_mm256_set1_epi32(kFraction + 127), largest);
  const __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  __m256i sums[2] = {_mm256_cvttps_epi32(_mm256_mul_ps(add, scale)), _mm256_setzero_si256()};  // each below 2^31
  for (int k = 0; k < 16; ++k) {
    const __m256 product = _mm256_mul_ps(_mm256_set1_ps(o.a[m][k]), _mm256_loadu_ps(o.b[k]));
    sums[k % 2] = _mm256_add_epi32(sums[k % 2], _mm256_cvttps_epi32(_mm256_mul_ps(product, scale)));
  }
  int even[8], odd[8], exponents[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(even), sums[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(odd), sums[1]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(exponents), largest);
  for (int n = 0; n < 8; ++n) c[n] = truncated((double(even[n]) + odd[n]) * power_of_two(exponents[n] - kFraction));
}
const auto fastest = __builtin_cpu_supports("avx2") ? sum_row_avx2 : sum_row;
#else
constexpr auto fastest = sum_row;
#endif

}  // namespace

template <bool Bf16>
void multiply(Tile& t) {
  Operands o;
  for (int i = 0; i < 256; ++i) read<Bf16>(o.a[i / 16][i % 16], o.a_exponent[i / 16][i % 16], t.a[i / 16][i % 16]);
  for (int i = 0; i < 128; ++i) read<Bf16>(o.b[i / 8][i % 8], o.b_exponent[i / 8][i % 8], t.b[i / 8][i % 8]);
  for (int m = 0; m < 16; ++m) fastest(o, m, t.c[m]);
}
template void multiply<false>(Tile& t);
template void multiply<true>(Tile& t);

}  // namespace tensor_core
