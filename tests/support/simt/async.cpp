// cp.async. A copy reads its source when issued; its bytes land when the issuing thread waits, as a write by that
// thread, and until then the destination holds 0xFF and may not be touched. So all three mistakes show: reading before
// the wait, reading another thread's copy without a barrier after its wait, refilling a stage that is still read.
#include "runtime.h"

namespace simt {

void cp_async(void* to, const void* from, int bytes, bool valid, int line) {
  const void* pc = __builtin_return_address(0);
  Worker& w = *worker;
  const auto offset = size_t(static_cast<char*>(to) - w.arena);
  if (!is_shared(to)) fail(Kind::kOutOfBounds, pc, "cp.async at line %d to %p, which is not shared memory", line, to);
  const uintptr_t both = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (both & uintptr_t(bytes - 1)) {
    fail(Kind::kMisaligned, pc, "cp.async of %d bytes at line %d, to offset %zu from %p", bytes, line, offset, from);
  }
  if (valid && is_shared(from)) {
    fail(Kind::kOutOfBounds, pc, "cp.async at line %d from %p, which is shared memory, not device memory", line, from);
  }
  PendingCopy copy{static_cast<char*>(to), {}, bytes, w.self->group, line};
  if (valid) {
    check_access(from, size_t(bytes), Access::kRead, pc);
    memcpy(copy.bytes, from, size_t(bytes));
  }
  check_access(to, size_t(bytes), Access::kCopyIssued, pc);
  memset(to, 0xFF, size_t(bytes));
  w.self->pending.push_back(copy);
}

void cp_commit() { ++worker->self->group; }

void cp_wait(int pending) {
  Fiber& f = *worker->self;
  size_t kept = 0;
  for (const PendingCopy& copy : f.pending) {
    if (copy.group >= f.group - pending) {
      f.pending[kept++] = copy;
      continue;
    }
    check_access(copy.to, size_t(copy.size), Access::kCopyLanded, __builtin_return_address(0));
    memcpy(copy.to, copy.bytes, size_t(copy.size));
  }
  f.pending.resize(kept);
}

}  // namespace simt
