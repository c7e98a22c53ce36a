// One warp, and accesses whose cost each memory's rules give: what is expected of each stands in test_accesses.py.
#include "counted.h"

#include "launch.h"
#include "prim.cuh"

namespace octavo::counted {
namespace {

using namespace octavo::cuda;  // NOLINT: a test file

int lane() { return int(threadIdx.x); }

// ---- Shared memory: a lane's word is `stride` words from its neighbour's ----

template <class T, int kStride>
__global__ void vectors(Memory m) {
  OCTAVO_SHARED(T, s, [32 * kStride]);
  pdl_wait();
  s[lane() * kStride] = T{};
  m.out[lane()] = 0.f;
}

__global__ void one_word(Memory m) {
  OCTAVO_SHARED(float, s, [1]);
  pdl_wait();
  if (lane() == 0) s[0] = 1.f;
  bar_sync();
  m.out[lane()] = s[0];
}

// Rows of 8 matrices, `pitch` bytes apart.
template <int kPitch>
__global__ void matrices(Memory m) {
  OCTAVO_SHARED(uint4, s, [32 * kPitch / 16]);
  pdl_wait();
  for (int i = lane(); i < 32 * kPitch / 16; i += 32) s[i] = uint4{};
  bar_sync();
  uint32_t r[4];
  ldmatrix<4, false>(r, s + lane() * (kPitch / 16));
  m.out[lane()] = float(r[0]);
}

template <int kPitch>
__global__ void copies(Memory m) {
  OCTAVO_SHARED(uint4, s, [32 * kPitch / 16]);
  pdl_wait();
  cp_async<16>(s + lane() * (kPitch / 16), m.in + lane() * 4);
  cp_commit();
  cp_wait<0>();
  m.out[lane()] = 0.f;
}

__global__ void one_counter(Memory m) {
  OCTAVO_SHARED(uint32_t, s, [1]);
  pdl_wait();
  if (lane() == 0) s[0] = 0;
  bar_sync();
  atom_add_u32(s, 1);
  m.out[lane()] = 0.f;
}

// ---- Device memory ----

template <int kStride, int kFirst>
__global__ void floats(Memory m) {
  pdl_wait();
  m.out[lane()] = m.in[kFirst + lane() * kStride];
}

// The words of a vector are used one by one, and the compiler loads them so.
__global__ void words_of_vectors(Memory m) {
  pdl_wait();
  const float4 x = reinterpret_cast<const float4*>(m.in)[lane()];
  m.out[lane()] = (x.x + x.w) * (x.y - x.z);
}

// Neighbours that are no vector: not aligned to the size of both.
__global__ void neighbours(Memory m) {
  pdl_wait();
  const float* x = m.in + 1 + 2 * lane();
  m.out[lane()] = x[0] - x[1];
}

// ---- Lanes that part ----

__global__ void branches(Memory m) {
  pdl_wait();
  if (lane() % 2) {
    m.out[lane()] = m.in[lane()] + 1.f;
  } else {
    m.out[lane()] = m.in[lane()] * 3.f;
  }
}

// Lane l makes 1 + l % 4 turns.
__global__ void loop(Memory m) {
  pdl_wait();
  float sum = 0.f;
#pragma unroll 1
  for (int i = 0; i <= lane() % 4; ++i) sum += m.in[32 * i + lane()];
  m.out[lane()] = sum;
}

// Every lane leaves out another turn of 32; the shuffle keeps them in step.
__global__ void turns_left_out(Memory m) {
  pdl_wait();
  float sum = 0.f;
#pragma unroll 1
  for (int i = 0; i < 32; ++i) {
    if (i != lane()) sum += m.in[32 * i + lane()];
    sum = shfl_xor(sum, 1);
  }
  m.out[lane()] = sum;
}

template <auto kKernel>
void run(const Memory& m) {
  launch(kKernel, dim3(1), dim3(32), 0, nullptr, m);
}

}  // namespace

const Case cases[] = {
    {"words 1", run<vectors<float, 1>>},
    {"words 2", run<vectors<float, 2>>},
    {"words 32", run<vectors<float, 32>>},
    {"words 33", run<vectors<float, 33>>},
    {"one word", run<one_word>},
    {"pairs", run<vectors<uint2, 1>>},
    {"pairs apart", run<vectors<uint2, 2>>},
    {"fours", run<vectors<uint4, 1>>},
    {"fours apart", run<vectors<uint4, 2>>},
    {"matrices 128", run<matrices<128>>},
    {"matrices 144", run<matrices<144>>},
    {"copies 16", run<copies<16>>},
    {"copies 64", run<copies<64>>},
    {"copies 80", run<copies<80>>},
    {"one counter", run<one_counter>},
    {"floats", run<floats<1, 0>>},
    {"floats late", run<floats<1, 3>>},
    {"floats apart", run<floats<8, 0>>},
    {"words of vectors", run<words_of_vectors>},
    {"neighbours", run<neighbours>},
    {"branches", run<branches>},
    {"loop", run<loop>},
    {"turns left out", run<turns_left_out>},
};
const int num_cases = int(sizeof cases / sizeof *cases);

}  // namespace octavo::counted
