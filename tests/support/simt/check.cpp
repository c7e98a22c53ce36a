// The memory checker's frame: who is asked about an access, the clocks, and the hooks that the compiler calls. Empty in
// a build without checks.
//
// GCC's own access instrumentation (-fsanitize=kernel-address with calls instead of inline tests) turns every load and
// store of a kernel file into a call of the hooks at the end. Shuffles, votes, ldmatrix and mma give no order (CUDA C++
// Programming Guide, "Warp Shuffle Functions"), which is how a missing __syncwarp shows.
#include "check.h"

#ifdef SIMT_CHECK
namespace simt {

Clocks clocks;

const char* verb(Access access) {
  switch (access) {
    case Access::kRead: return "read";
    case Access::kWrite: return "write";
    case Access::kAtomic: return "atomic";
    case Access::kCopyIssued: return "cp.async";
    case Access::kCopyLanded: return "end of a cp.async";
  }
  return "access";
}

void check_block() {
  clocks.epoch = 1;
  clocks.crossed = false;
  std::fill_n(clocks.local, kMaxThreads, 0);
  std::fill_n(clocks.row_epoch, kMaxThreads, 0);
  clocks.rows.resize(std::max(clocks.rows.size(), size_t(worker->threads) * size_t(worker->threads)));
  begin_shared();
  begin_device();
}

void check_join(const int* threads, int count) {
  const int all = worker->threads;
  if (count == all) {
    if (++clocks.epoch > kMaxEpoch)
      fail(Kind::kUnsupported, nullptr, "more than %u barriers in a checked block", kMaxEpoch);
    clocks.crossed = false;
    std::fill_n(clocks.local, all, 0);
    return join_fences(threads, count);
  }
  join_fences(threads, count);
  const int warp = threads[0] >> 5;
  for (int i = 1; i < count; ++i) clocks.crossed = clocks.crossed || threads[i] >> 5 != warp;
  // Before anything crossed, a row holds times of its own warp only.
  const int first = clocks.crossed ? 0 : warp * 32, last = clocks.crossed ? all : std::min(all, warp * 32 + 32);
  uint32_t joined[kMaxThreads] = {};
  for (int i = 0; i < count; ++i) {
    const int t = threads[i];
    uint32_t* row = &clocks.rows[size_t(t) * size_t(all)];
    if (clocks.row_epoch[t] != clocks.epoch) {
      std::fill(row, row + all, 0);
      clocks.row_epoch[t] = clocks.epoch;
    }
    row[t] = clocks.now(t);
    for (int k = first; k < last; ++k) joined[k] = std::max(joined[k], row[k]);
  }
  for (int i = 0; i < count; ++i) {
    const int t = threads[i];
    std::copy(joined + first, joined + last, &clocks.rows[size_t(t) * size_t(all)] + first);
    clocks.tick(t);
  }
}

void check_access(const void* address, size_t bytes, Access access, const void* pc) {
  const auto* p = static_cast<const char*>(address);
  Worker& w = *worker;
  const auto offset = size_t(p - w.arena);
  if (offset < kArena) {
    shared_access(offset, bytes, access, pc);
    if (counting) [[unlikely]] count_access(p, bytes, access, pc);
    return;
  }
  if (in_device_memory(p, bytes)) {
    device_access(p, bytes, access, pc);
    if (counting) [[unlikely]] count_access(p, bytes, access, pc);
    return;
  }
  const auto* parameters = static_cast<const char*>(w.launch->parameters);
  const bool constant =
      (p >= parameters && p < parameters + w.launch->parameters_size) || (p >= &__ehdr_start && p < &_end);
  if (constant && access == Access::kRead) return;
  fail(Kind::kOutOfBounds, pc, "%zu-byte %s of %p, which no tensor of this call holds%s", bytes, verb(access), address,
       nearest_range(p).c_str());
}

}  // namespace simt

// Most accesses of a kernel are to its own stack: those leave at once.
static inline __attribute__((always_inline)) void simt_hook(const void* p, size_t bytes, simt::Access access,
                                                            const void* pc) {
  const simt::Worker* w = simt::worker;
  if (!w || !w->self || size_t(static_cast<const char*>(p) - w->self->stack) < simt::kStack) return;
  simt::check_access(p, bytes, access, pc);
}
#define SIMT_HOOK(name, bytes, access) \
  extern "C" void __asan_##name##_noabort(const void* p) { simt_hook(p, bytes, access, __builtin_return_address(0)); }
SIMT_HOOK(load1, 1, simt::Access::kRead)
SIMT_HOOK(load2, 2, simt::Access::kRead)
SIMT_HOOK(load4, 4, simt::Access::kRead)
SIMT_HOOK(load8, 8, simt::Access::kRead)
SIMT_HOOK(load16, 16, simt::Access::kRead)
SIMT_HOOK(store1, 1, simt::Access::kWrite)
SIMT_HOOK(store2, 2, simt::Access::kWrite)
SIMT_HOOK(store4, 4, simt::Access::kWrite)
SIMT_HOOK(store8, 8, simt::Access::kWrite)
SIMT_HOOK(store16, 16, simt::Access::kWrite)
extern "C" void __asan_loadN_noabort(const void* p, size_t n) {
  simt_hook(p, n, simt::Access::kRead, __builtin_return_address(0));
}
extern "C" void __asan_storeN_noabort(const void* p, size_t n) {
  simt_hook(p, n, simt::Access::kWrite, __builtin_return_address(0));
}
extern "C" void __asan_handle_no_return() {}

// -fsanitize=alignment without its library.
struct TypeMismatch {
  const char* file;
  unsigned line, column;
  const void* type;
  unsigned char log_alignment, kind;
};
extern "C" void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t p) {
  if (!simt::worker || !simt::worker->self) return;
  simt::fail(simt::Kind::kMisaligned, nullptr, "access to %p needs %d-byte alignment at %s:%u",
             reinterpret_cast<void*>(p), 1 << data->log_alignment, data->file, data->line);
}
#endif
