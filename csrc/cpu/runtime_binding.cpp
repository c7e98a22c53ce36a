// Threads, instruction set, memory and probes: what the ops' owner sets once, and what benchmarks ask.
#include <malloc.h>
#include <sys/mman.h>
#include <time.h>

#include "octavo/binding.h"
#include "octavo/kernels_probe.h"

namespace octavo::binding {
namespace {

tvm::ffi::String get_isa() { return isa_name(isa()); }

// "" is the best one; the error lists what this machine runs.
void choose_isa(tvm::ffi::String name) {
  if (set_isa(name.c_str())) return;
  std::string known;
  for (Isa candidate : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (isa_supported(candidate)) known += std::string(known.empty() ? "" : ", ") + isa_name(candidate);
  }
  TVM_FFI_THROW(ValueError) << "instruction set '" << name.c_str() << "' is not available; this machine runs: " << known;
}

void choose_num_threads(int64_t count) {
  if (count < 1 || count > 1024) TVM_FFI_THROW(ValueError) << "num_threads is " << count << "; allowed: 1..1024";
  set_num_threads(int(count));
}

// glibc gives every block over 128 KiB its own mmap at first, so that each activation tensor would be faulted in anew
// at every step (about 0.25 us a page). Blocks below 32 MiB stay on the heap and the heap is not trimmed.
void tune_malloc() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 16 << 20);
}

// Asks for 2 MiB pages behind a tensor; only whole ones are affected. Returns whether the kernel agreed.
bool advise_huge_pages(TensorView memory) {
  constexpr uintptr_t page = 2 << 20;
  check_contiguous(memory, "memory");
  uintptr_t begin = reinterpret_cast<uintptr_t>(data<char>(memory));
  uintptr_t end = begin + uintptr_t(memory.numel()) * memory.dtype().bits / 8;
  begin = (begin + page - 1) / page * page;
  end = end / page * page;
  return begin < end && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0;
}

// Wall time, or with one thread its CPU time, which other processes' load disturbs less.
double seconds() {
  timespec t;
  clock_gettime(num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

volatile float sink_of_probes;

// Bytes a second of reading `memory` once with all threads.
double probe_bandwidth(TensorView memory) {
  check_contiguous(memory, "memory");
  int64_t bytes = memory.numel() * memory.dtype().bits / 8;
  double start = seconds();
  sink_of_probes = pick_probe_kernels().read(data<char>(memory), bytes);
  return double(bytes) / (seconds() - start);
}

// Floating-point operations a second of all threads together; about 24 * rounds instructions each.
double probe_arithmetic(bool bfloat16, int64_t rounds) {
  float values[2] = {1e-3f, 1e-3f};
  const ProbeKernels& kernels = pick_probe_kernels();
  double start = seconds();
  double done = (bfloat16 ? kernels.multiply_add_bfloat16 : kernels.multiply_add_float32)(rounds, values);
  double elapsed = seconds() - start;
  sink_of_probes = values[0];
  return done / elapsed;
}

// The same of int8 products that are added in int32: operations a second.
double probe_arithmetic_int8(int64_t rounds) {
  float sink[1] = {};
  double start = seconds();
  double done = pick_probe_kernels().multiply_add_int8(rounds, sink);
  double elapsed = seconds() - start;
  sink_of_probes = sink[0];
  return done / elapsed;
}

// The cost of one empty fork and join, in seconds, for tests and benchmarks.
double probe_fork_join(int64_t rounds) {
  double start = seconds();
  for (int64_t i = 0; i < rounds; ++i) fork_join(num_threads(), [](void*, int, int) {}, nullptr);
  return (seconds() - start) / double(rounds);
}

// How often each of n items is visited when `forks` partitions of them run one after the other: [n] int32 +=.
void count_visits(TensorView visits, int64_t forks) {
  check_int32(visits, "visits");
  int32_t* count = data<int32_t>(visits);
  for (int64_t f = 0; f < forks; ++f) {
    parallel_for(visits.size(0), 1, [&](int64_t begin, int64_t end) {
      // A nested call must run on this thread: the pool is taken.
      parallel_for(end - begin, 1, [&](int64_t from, int64_t to) {
        for (int64_t i = begin + from; i < begin + to; ++i) ++count[i];
      });
    });
  }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(isa, get_isa);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(set_isa, choose_isa);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(num_cores, [] { return int64_t(num_cores()); });
TVM_FFI_DLL_EXPORT_TYPED_FUNC(num_threads, [] { return int64_t(num_threads()); });
TVM_FFI_DLL_EXPORT_TYPED_FUNC(set_num_threads, choose_num_threads);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(tune_malloc, tune_malloc);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(advise_huge_pages, advise_huge_pages);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(probe_bandwidth, probe_bandwidth);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(probe_arithmetic, probe_arithmetic);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(probe_arithmetic_int8, probe_arithmetic_int8);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(probe_fork_join, probe_fork_join);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(count_visits, count_visits);

}  // namespace octavo::binding
