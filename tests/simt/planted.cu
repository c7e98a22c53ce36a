// One mistake a kernel: with `good` it is not made. What each is reported as stands in test_planted.py.
#include "launch.h"
#include "planted.h"
#include "prim.cuh"

namespace octavo::planted {
namespace {

using namespace octavo::cuda;  // NOLINT: a test file

struct Args {
  float* out;
  const float* in;
  uint32_t* counters;
  const float* host;
  bool good;
};

int thread() { return int(threadIdx.x); }

// ---- Barriers ----

__global__ void barrier_in_branch(Args a) {
  if (a.good || thread() < 32) bar_sync();
  a.out[thread()] = 0.f;
}

__global__ void barrier_after_exit(Args a) {
  if (!a.good && thread() == 5) return;
  bar_sync();
  a.out[thread()] = 0.f;
}

__global__ void two_barriers(Args a) {  // every thread meets one, but not the same
  if (a.good) {
    bar_sync();
  } else if (thread() < 32) {
    bar_sync();
  } else {
    bar_sync();
  }
  a.out[thread()] = 0.f;
}

__global__ void named_barrier_count(Args a) {
  bar_sync(1, a.good ? 64 : 96);
  a.out[thread()] = 0.f;
}

__global__ void named_barrier_order(Args a) {  // orders those who meet at it
  OCTAVO_SHARED(float, s, [128]);
  const int t = thread();
  s[t] = float(t);
  bar_sync();
  s[t] = -float(t);
  bar_sync(1 + t / (a.good ? 64 : 32), a.good ? 64 : 32);
  const float x = s[t ^ 32];
  if (t < 64) a.out[t] = x;
}

// ---- Order between threads ----

__global__ void missing_barrier(Args a) {  // read after write
  OCTAVO_SHARED(float, s, [64]);
  const int t = thread();
  s[t] = 0.f;
  bar_sync();
  s[t] = float(t);
  if (a.good) bar_sync();
  a.out[t] = s[t ^ 33];
}

__global__ void missing_barrier_reuse(Args a) {  // write after read
  OCTAVO_SHARED(float, s, [64]);
  const int t = thread();
  s[t] = 1.f;
  bar_sync();
  const float x = s[63 - t];
  if (a.good) bar_sync();
  s[t] = x;
  bar_sync();
  a.out[t] = s[t];
}

__global__ void missing_barrier_bytes(Args a) {  // neighbours in one word, of which one is read by another thread
  OCTAVO_SHARED(uint8_t, s, [64]);
  const int t = thread();
  s[t] = 0;
  bar_sync();
  s[t] = uint8_t(t);
  if (a.good) bar_sync();
  a.out[t] = float(s[t ^ 32]);
}

__global__ void missing_barrier_device(Args a) {
  const int t = thread();
  a.out[t] = float(t);
  if (a.good) bar_sync();
  const float x = a.out[t ^ 33];
  bar_sync();
  a.out[t] = x;
}

__global__ void missing_warp_sync(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  const int t = thread();
  s[t] = 0.f;
  bar_sync();
  s[t] = float(t);
  shfl(t, 0);  // gives no order
  if (a.good) warp_sync();
  a.out[t] = s[t ^ 1];
}

__global__ void warp_sync_across_warps(Args a) {  // orders a warp, not the block
  OCTAVO_SHARED(float, s, [64]);
  const int t = thread();
  s[t] = 0.f;
  bar_sync();
  s[t] = float(t);
  warp_sync();
  a.out[t] = s[a.good ? t ^ 1 : t ^ 32];
}

__global__ void shared_atomics(Args a) {  // atomics may meet; a plain load between them may not
  OCTAVO_SHARED(uint32_t, sum, );
  if (thread() == 0) sum = 0;
  bar_sync();
  atom_add_u32(&sum, 1);
  if (a.good) bar_sync();
  a.out[thread()] = float(sum);
}

// ---- Memory ----

__global__ void shared_bounds(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  const int t = thread();
  s[t + (a.good ? 0 : 1)] = 1.f;
  a.out[t] = 0.f;
}

__global__ void dynamic_shared_bounds(Args a) {
  OCTAVO_DYNAMIC_SHARED(float, s);
  const int t = thread();
  s[t + (a.good ? 0 : 1)] = 1.f;
  a.out[t] = 0.f;
}

__global__ void device_bounds(Args a) { a.out[thread() + (a.good ? 0 : 1)] = 1.f; }

__global__ void device_bounds_below(Args a) { a.out[thread()] = a.in[thread() - (a.good ? 0 : 1)]; }

__global__ void host_pointer(Args a) { a.out[thread()] = a.good ? 0.f : a.host[thread()]; }

__global__ void misaligned_device(Args a) {
  if (thread() == 0) *reinterpret_cast<float4*>(a.out + (a.good ? 4 : 2)) = make_float4(1, 2, 3, 4);
}

__global__ void misaligned_shared(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  if (thread() == 0) *reinterpret_cast<float2*>(s + (a.good ? 2 : 3)) = make_float2(1, 2);
}

__global__ void misaligned_ldmatrix(Args a) {
  OCTAVO_SHARED(uint32_t, s, [64]);
  const int t = thread();
  s[t] = 1;
  bar_sync();
  if (t < 32) {
    uint32_t r[1];
    ldmatrix<1, false>(r, s + (t & 7) * 4 + (a.good ? 0 : 1));
    a.out[t] = float(r[0]);
  }
}

__global__ void ldmatrix_of_device_memory(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  const int t = thread();
  s[t] = 1.f;
  bar_sync();
  if (t < 32) {
    uint32_t r[1];
    ldmatrix<1, false>(r, (a.good ? s : a.in) + (t & 7) * 4);
    a.out[t] = float(r[0]);
  }
}

__global__ void copy_of_shared_memory(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  OCTAVO_SHARED(float, from, [64]);
  const int t = thread();
  from[t] = 1.f;
  cp_async<4>(&s[t], a.good ? a.in + t : from + t);
  cp_commit();
  cp_wait<0>();
  a.out[t] = s[t];
}

__global__ void misaligned_copy(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  if (thread() == 0) {
    cp_async<16>(s, a.in + (a.good ? 4 : 2));
    cp_commit();
    cp_wait<0>();
  }
}

__global__ void uninitialised_shared(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  const int t = thread();
  if (a.good || t != 7) s[t] = 1.f;
  bar_sync();
  a.out[t] = s[t];
}

__global__ void uninitialised_ldmatrix(Args a) {
  OCTAVO_SHARED(uint32_t, s, [32]);
  const int t = thread();
  if (t < (a.good ? 32 : 31)) s[t] = 1;
  bar_sync();
  if (t < 32) {
    uint32_t r[1];
    ldmatrix<1, false>(r, s + (t & 7) * 4);
    a.out[t] = float(r[0]);
  }
}

// ---- cp.async ----

__global__ void copy_not_waited(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  const int t = thread();
  cp_async<4>(&s[t], a.in + t);
  cp_commit();
  if (a.good) cp_wait<0>();
  a.out[t] = s[t];
  cp_wait<0>();
}

__global__ void copy_waited_too_weakly(Args a) {
  OCTAVO_SHARED(float, s, [2][64]);
  const int t = thread();
  for (int i = 0; i < 2; ++i) {
    cp_async<4>(&s[i][t], a.in + t);
    cp_commit();
  }
  if (a.good) {
    cp_wait<0>();
  } else {
    cp_wait<1>();
  }
  a.out[t] = s[0][t] + s[1][t];
  cp_wait<0>();
}

__global__ void copy_not_committed(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  const int t = thread();
  cp_async<4>(&s[t], a.in + t);
  if (a.good) cp_commit();
  cp_wait<0>();
  a.out[t] = s[t];
}

__global__ void copy_of_another_thread(Args a) {  // waited for by its thread, but no barrier
  OCTAVO_SHARED(float, s, [64]);
  const int t = thread();
  s[t] = 0.f;
  bar_sync();
  cp_async<4>(&s[t], a.in + t);
  cp_commit();
  cp_wait<0>();
  if (a.good) bar_sync();
  a.out[t] = s[t ^ 32];
}

__global__ void copy_into_stage_in_use(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  const int t = thread();
  float sum = 0.f;
  for (int i = 0; i < 3; ++i) {
    cp_async<4>(&s[t], a.in + t);
    cp_commit();
    cp_wait<0>();
    bar_sync();
    sum += s[63 - t];
    if (a.good) bar_sync();
  }
  a.out[t] = sum;
}

__global__ void copy_pending_at_exit(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  cp_async<4>(&s[thread()], a.in + thread());
  cp_commit();
  if (a.good) cp_wait<0>();
}

__global__ void misaligned_source_of_zeros(Args a) {  // its address must be one, even where nothing is read
  OCTAVO_SHARED(float, s, [64]);
  if (thread() == 0) {
    cp_async<16>(s, a.in + (a.good ? 4 : 2), false);
    cp_commit();
    cp_wait<0>();
  }
}

__global__ void copy_past_shared(Args a) {
  OCTAVO_SHARED(float4, s, [16]);
  const int t = thread();
  if (t < 16) cp_async<16>(&s[t + (a.good ? 0 : 1)], a.in + 4 * t);
  cp_commit();
  cp_wait<0>();
}

__global__ void copy_past_source(Args a) {  // a false `valid` touches no source
  OCTAVO_SHARED(float4, s, [32]);
  const int t = thread();
  if (t < 32) cp_async<16>(&s[t], a.in + 4 * t, a.good ? t < 16 : true);
  cp_commit();
  cp_wait<0>();
  if (t < 32) a.out[t] = s[t].x;
}

// ---- Warps ----

__global__ void shuffle_in_branch(Args a) {
  const int t = thread();
  float x = float(t);
  if (a.good) {
    x = shfl_xor(x, 1);
  } else if (t & 1) {
    x = shfl_xor(x, 2);
  }
  bar_sync();
  a.out[t] = x;
}

__global__ void shuffles_in_both_branches(Args a) {  // masks must name the lanes that are there
  const int t = thread();
  float x;
  if (t & 1) {
    x = __shfl_xor_sync(a.good ? 0xaaaaaaaau : ~0u, float(t), 2);
  } else {
    x = __shfl_xor_sync(a.good ? 0x55555555u : ~0u, float(t), 2);
  }
  a.out[t] = x;
}

__global__ void shuffle_after_exit(Args a) {
  const int t = thread();
  if (!a.good && t >= 40) return;
  a.out[t] = shfl_xor(float(t), 1);
}

__global__ void shuffle_outside_mask(Args a) {
  const int t = thread();
  a.out[t] = __shfl_sync(a.good ? ~0u : 0xffffu, float(t), 0);
}

__global__ void mma_in_branch(Args a) {
  const int t = thread();
  FragC c{};
  if (a.good || t % 32 < 16) mma_bf16(c, FragA{}, FragB{}, c);
  a.out[t] = c.r[0];
}

// ---- Blocks of one launch ----

__global__ void blocks_write_one_address(Args a) {
  if (thread() == 0) a.out[a.good ? blockIdx.x : 0] = float(blockIdx.x);
}

__global__ void block_reads_another(Args a) {
  if (thread() != 0) return;
  a.out[blockIdx.x] = 1.f;
  if (!a.good) a.out[32 + blockIdx.x] = a.out[(blockIdx.x + 1) % gridDim.x];
}

enum class Fences { kBoth, kNoneBeforeAtomic, kNoneAfterAtomic, kTooEarly };

// The last block to arrive sums what all wrote. How the writes of all threads get published: by a fence of each before
// the barrier (`each_thread`), or by one of thread 0 after it, which is cumulative.
__device__ void last_block_sums(const Args& a, bool atomic, Fences fences, bool each_thread) {
  OCTAVO_SHARED(uint32_t, ticket, );
  const int t = thread();
  if (fences == Fences::kTooEarly) fence_gpu();
  if (t < 4) a.out[4 * blockIdx.x + unsigned(t)] = 1.f;
  const bool before = fences == Fences::kBoth || fences == Fences::kNoneAfterAtomic;
  if (before && each_thread) fence_gpu();
  bar_sync();
  if (t == 0) {
    if (before && !each_thread) fence_gpu();
    if (atomic) {
      ticket = atom_inc(a.counters, gridDim.x - 1);
    } else {
      ticket = a.counters[0];
      a.counters[0] = ticket + 1;
    }
  }
  bar_sync();
  if (ticket != gridDim.x - 1) return;
  if (fences != Fences::kNoneAfterAtomic) fence_gpu();
  if (t == 0) {
    float sum = 0.f;
    for (unsigned i = 0; i < 4 * gridDim.x; ++i) sum += ldcg(a.out + i);
    a.out[63] = sum;
  }
}

__global__ void counter_without_atomic(Args a) { last_block_sums(a, a.good, Fences::kBoth, true); }
__global__ void counter_without_fence(Args a) {
  last_block_sums(a, true, a.good ? Fences::kBoth : Fences::kNoneBeforeAtomic, true);
}
__global__ void counter_with_one_fence(Args a) {
  last_block_sums(a, true, a.good ? Fences::kBoth : Fences::kTooEarly, false);
}
__global__ void counter_without_fence_after(Args a) {
  last_block_sums(a, true, a.good ? Fences::kBoth : Fences::kNoneAfterAtomic, true);
}

// ---- Launches that overlap ----

__global__ void write_before_wait(Args a) {
  if (!a.good) a.out[thread()] = 1.f;
  pdl_wait();
  pdl_launch();
  a.out[thread()] = 2.f;
}

__global__ void launch_before_wait(Args a) {
  if (!a.good) pdl_launch();
  pdl_wait();
  pdl_launch();
  a.out[thread()] = a.in[thread()];
}

__global__ void producer(Args a) {
  pdl_wait();
  pdl_launch();
  a.out[thread()] = a.in[thread()];
}

__global__ void read_before_wait(Args a) {  // of what the launch before wrote; `in` it did not write
  const float x = (a.good ? a.in : a.out)[thread()];
  pdl_wait();
  pdl_launch();
  a.out[thread()] = x + 1.f;
}

void run_read_before_wait(const Memory& m, bool good) {
  const Args args{m.out, m.in, m.counters, m.host, good};
  launch(producer, dim3(1), dim3(64), 0, nullptr, args);
  launch(read_before_wait, dim3(1), dim3(64), 0, nullptr, args);
}

__global__ void exit_before_wait(Args a) {
  if (!a.good && thread() >= 32) return;
  pdl_wait();
  pdl_launch();
  a.out[thread()] = 0.f;
}

// ---- What the hardware does not have ----

__global__ void too_much_shared(Args a) {
  OCTAVO_SHARED(float, s, [64]);
  s[thread()] = 0.f;
  a.out[thread()] = 0.f;
}

__global__ void nothing(Args) {}

void run_grid_too_high(const Memory&, bool good) {
  launch(LaunchOptions{false}, nothing, dim3(1, good ? 65535 : 65536), dim3(1), 0, nullptr, Args{});
}

template <void (*Kernel)(Args), unsigned Blocks = 1, unsigned Threads = 64, size_t Shared = 0,
          size_t SharedBad = Shared, bool Overlap = false>
void run(const Memory& m, bool good) {
  launch(LaunchOptions{Overlap}, Kernel, dim3(Blocks), dim3(Threads), good ? Shared : SharedBad, nullptr,
         Args{m.out, m.in, m.counters, m.host, good});
}

}  // namespace

const Case cases[] = {
    {"barrier_in_branch", run<barrier_in_branch>},
    {"barrier_after_exit", run<barrier_after_exit>},
    {"two_barriers", run<two_barriers>},
    {"named_barrier_count", run<named_barrier_count>},
    {"named_barrier_order", run<named_barrier_order, 1, 128>},
    {"missing_barrier", run<missing_barrier>},
    {"missing_barrier_reuse", run<missing_barrier_reuse>},
    {"missing_barrier_bytes", run<missing_barrier_bytes>},
    {"missing_barrier_device", run<missing_barrier_device>},
    {"missing_warp_sync", run<missing_warp_sync>},
    {"warp_sync_across_warps", run<warp_sync_across_warps>},
    {"shared_atomics", run<shared_atomics>},
    {"shared_bounds", run<shared_bounds>},
    {"dynamic_shared_bounds", run<dynamic_shared_bounds, 1, 64, 256>},
    {"device_bounds", run<device_bounds>},
    {"device_bounds_below", run<device_bounds_below>},
    {"host_pointer", run<host_pointer>},
    {"misaligned_device", run<misaligned_device>},
    {"misaligned_shared", run<misaligned_shared>},
    {"misaligned_ldmatrix", run<misaligned_ldmatrix>},
    {"ldmatrix_of_device_memory", run<ldmatrix_of_device_memory>},
    {"copy_of_shared_memory", run<copy_of_shared_memory>},
    {"misaligned_copy", run<misaligned_copy>},
    {"misaligned_source_of_zeros", run<misaligned_source_of_zeros>},
    {"uninitialised_shared", run<uninitialised_shared>},
    {"uninitialised_ldmatrix", run<uninitialised_ldmatrix>},
    {"copy_not_waited", run<copy_not_waited>},
    {"copy_waited_too_weakly", run<copy_waited_too_weakly>},
    {"copy_not_committed", run<copy_not_committed>},
    {"copy_of_another_thread", run<copy_of_another_thread>},
    {"copy_into_stage_in_use", run<copy_into_stage_in_use>},
    {"copy_pending_at_exit", run<copy_pending_at_exit>},
    {"copy_past_shared", run<copy_past_shared>},
    {"copy_past_source", run<copy_past_source>},
    {"shuffle_in_branch", run<shuffle_in_branch>},
    {"shuffles_in_both_branches", run<shuffles_in_both_branches>},
    {"shuffle_after_exit", run<shuffle_after_exit>},
    {"shuffle_outside_mask", run<shuffle_outside_mask>},
    {"mma_in_branch", run<mma_in_branch>},
    {"blocks_write_one_address", run<blocks_write_one_address, 4>},
    {"block_reads_another", run<block_reads_another, 4>},
    {"counter_without_atomic", run<counter_without_atomic, 8>},
    {"counter_without_fence", run<counter_without_fence, 8>},
    {"counter_with_one_fence", run<counter_with_one_fence, 8>},
    {"counter_without_fence_after", run<counter_without_fence_after, 8>},
    {"write_before_wait", run<write_before_wait, 1, 64, 0, 0, true>},
    {"launch_before_wait", run<launch_before_wait, 1, 64, 0, 0, true>},
    {"read_before_wait", run_read_before_wait},
    {"exit_before_wait", run<exit_before_wait, 1, 64, 0, 0, true>},
    {"too_much_shared", run<too_much_shared, 1, 64, 230000, 232448>},
    {"grid_too_high", run_grid_too_high},
};
const int num_cases = int(sizeof cases / sizeof cases[0]);

}  // namespace octavo::planted
