// The memory checker. GCC's own access instrumentation (-fsanitize=kernel-address with calls instead of inline tests)
// turns every load and store of a kernel file into a call of the hooks at the end of this file.
//
// Order between threads of a block is kept as vector clocks. A thread's time is epoch << 12 | local: a barrier of the
// whole block starts a new epoch, in which all that went before is ordered for everyone; a barrier of some threads only
// joins their rows. Shuffles, votes, ldmatrix and mma give no order (CUDA C++ Programming Guide, "Warp Shuffle
// Functions"), which is how a missing __syncwarp shows.
#include "runtime.h"

extern "C" {
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));
}

namespace simt {

namespace {

struct Range {
  const char* begin;
  size_t size;
  bool permanent;
};
std::vector<Range> ranges;  // sorted
bool launched = false;      // since the last tensor was named

}  // namespace

void device_memory(const void* p, size_t bytes, bool permanent) {
  if (!kChecking || !bytes) return;
  // The tensors of one call: those of the call before may be freed by now.
  if (launched && !permanent) std::erase_if(ranges, [](const Range& r) { return !r.permanent; });
  if (!permanent) launched = false;
  const Range range{static_cast<const char*>(p), bytes, permanent};
  auto at = std::lower_bound(ranges.begin(), ranges.end(), range,
                             [](const Range& a, const Range& b) { return a.begin < b.begin; });
  // Views of one tensor overlap: the union of what the call names.
  if (at != ranges.end() && at->begin == range.begin) {
    at->size = std::max(at->size, bytes);
  } else {
    ranges.insert(at, range);
  }
}

void forget_device_memory(const void* p) {
  std::erase_if(ranges, [p](const Range& r) { return r.begin == p; });
}

#ifdef SIMT_CHECK
namespace {

constexpr int kLocalBits = 12;
constexpr uint32_t kMaxEpoch = (1u << 17) - 1;

struct Cell {  // of one byte of shared memory
  uint32_t written, read[2];
  uint16_t writer, reader[2];
  uint8_t flags;
};
enum : uint8_t { kWritten = 1, kInFlight = 2, kByAtomic = 4 };

// The last writer of one byte of device memory in this launch: block 24 bits, thread 10, by an atomic 1, time 29.
using Writer = uint64_t;
constexpr size_t kPageBytes = 4096;

class WriterPages {  // only pages that this launch wrote exist
 public:
  Writer* find(uintptr_t page) {
    if (page == last_page_) return last_;
    for (size_t i = hash(page);; ++i) {
      const Entry& e = table_[i & (table_.size() - 1)];
      if (!e.cells) return nullptr;
      if (e.page == page) return remember(page, e.cells);
    }
  }
  Writer* make(uintptr_t page) {
    if (Writer* found = find(page)) return found;
    if ((used_ + 1) * 2 > table_.size()) grow();
    if (used_ == pool_.size()) pool_.push_back(std::make_unique<Writer[]>(kPageBytes));
    Writer* cells = pool_[used_++].get();
    std::fill(cells, cells + kPageBytes, 0);
    insert(page, cells);
    return remember(page, cells);
  }
  void clear() {
    std::fill(table_.begin(), table_.end(), Entry{});
    used_ = 0;
    last_page_ = 0;
  }

 private:
  struct Entry {
    uintptr_t page = 0;
    Writer* cells = nullptr;
  };
  static size_t hash(uintptr_t page) { return size_t(page * 0x9E3779B97F4A7C15ull >> 20); }
  Writer* remember(uintptr_t page, Writer* cells) {
    last_page_ = page;
    return last_ = cells;
  }
  void insert(uintptr_t page, Writer* cells) {
    size_t i = hash(page);
    while (table_[i & (table_.size() - 1)].cells) ++i;
    table_[i & (table_.size() - 1)] = {page, cells};
  }
  void grow() {
    std::vector<Entry> old(table_.size() * 2);
    old.swap(table_);
    for (const Entry& e : old) {
      if (e.cells) insert(e.page, e.cells);
    }
  }
  std::vector<Entry> table_ = std::vector<Entry>(256);
  std::vector<std::unique_ptr<Writer[]>> pool_;
  size_t used_ = 0;
  uintptr_t last_page_ = 0;
  Writer* last_ = nullptr;
};

WriterPages writers;
std::vector<Cell> cells;
size_t last_range = 0;
uint32_t epoch;
bool crossed;  // in this epoch a barrier joined threads of different warps
uint32_t local_time[kMaxThreads], row_epoch[kMaxThreads];
std::vector<uint32_t> rows;

uint32_t now(int thread) { return epoch << kLocalBits | local_time[thread]; }

bool ordered(int me, int other, uint32_t time) {
  if (other == me || time < epoch << kLocalBits) return true;
  return row_epoch[me] == epoch && rows[size_t(me) * size_t(worker->threads) + size_t(other)] >= time;
}

void shared_access(size_t offset, size_t bytes, Access access, const void* pc) {
  Worker& w = *worker;
  const bool write = access != Access::kRead;
  const char* verb = access == Access::kAtomic ? "atomic" : write ? "write" : "read";
  bool inside = offset + bytes <= w.launch->dynamic_shared;
  for (size_t i = 0; !inside && i < w.variables.size(); ++i) {
    const Variable& v = w.variables[i];
    inside = offset >= v.offset && offset + bytes <= v.offset + v.size;
  }
  if (!inside) {
    fail(Kind::kOutOfBounds, pc, "%zu-byte %s out of bounds of shared memory, offset %zu (dynamic size %zu)", bytes, verb,
         offset, w.launch->dynamic_shared);
  }
  const int me = w.self->index;
  const uint32_t time = now(me);
  for (size_t i = offset; i < offset + bytes; ++i) {
    Cell& c = cells[i];
    if (c.flags & kInFlight) {
      fail(Kind::kAsyncPending, pc, "%s of shared offset %zu, to which a cp.async of thread %u is in flight", verb, i, c.writer);
    }
    if (access != Access::kWrite && !(c.flags & kWritten)) {
      fail(Kind::kUninitialised, pc, "%s of uninitialised shared memory, offset %zu", verb, i);
    }
    if (c.written && !(access == Access::kAtomic && (c.flags & kByAtomic)) && !ordered(me, c.writer, c.written)) {
      fail(Kind::kRace, pc, "%s of shared offset %zu races with a write by thread %u: no barrier between", verb, i, c.writer);
    }
    if (write) {
      for (int r = 0; r < 2; ++r) {
        if (c.read[r] && !ordered(me, c.reader[r], c.read[r])) {
          fail(Kind::kRace, pc, "%s of shared offset %zu races with a read by thread %u: no barrier between", verb, i,
               c.reader[r]);
        }
      }
      c.writer = uint16_t(me);
      c.written = time;
      c.flags = uint8_t(kWritten | (access == Access::kAtomic ? kByAtomic : 0));
      c.read[0] = c.read[1] = 0;
    } else {
      // Two readers, since the thread that writes later is often itself the last one.
      if (c.read[0] && c.reader[0] != me) {
        c.reader[1] = c.reader[0];
        c.read[1] = c.read[0];
      }
      c.reader[0] = uint16_t(me);
      c.read[0] = time;
    }
  }
}

bool in_device_memory(const char* p, size_t bytes) {
  if (last_range < ranges.size()) {
    const Range& r = ranges[last_range];
    if (p >= r.begin && p + bytes <= r.begin + r.size) return true;
  }
  for (size_t i = 0; i < ranges.size() && ranges[i].begin <= p; ++i) {
    if (p + bytes <= ranges[i].begin + ranges[i].size) {
      last_range = i;
      return true;
    }
  }
  return false;
}

std::string nearest_range(const char* p) {
  const Range* best = nullptr;
  for (const Range& r : ranges) {
    if (r.begin <= p) best = &r;
  }
  if (!best) best = ranges.empty() ? nullptr : &ranges[0];
  if (!best) return "; the call named no tensor";
  return "; the nearest has " + std::to_string(best->size) + " bytes, this is at " + std::to_string(p - best->begin);
}

void device_access(const char* p, size_t bytes, Access access, const void* pc) {
  Worker& w = *worker;
  const bool write = access != Access::kRead;
  const char* verb = access == Access::kAtomic ? "atomic" : write ? "write" : "read";
  const int me = w.self->index;
  for (size_t i = 0; i < bytes;) {
    const auto address = reinterpret_cast<uintptr_t>(p + i);
    const uintptr_t page = address / kPageBytes;
    const size_t count = std::min<size_t>(bytes - i, kPageBytes - address % kPageBytes);
    i += count;
    Writer* found = write ? writers.make(page) : writers.find(page);
    if (!found) continue;
    found += address % kPageBytes;
    for (size_t k = 0; k < count; ++k) {
      const Writer old = found[k];
      if (!old || (access == Access::kAtomic && (old >> 29 & 1))) continue;
      const auto block = int64_t(old >> 40), thread = int64_t(old >> 30 & 1023);
      const bool fine = block == w.block ? ordered(me, int(thread), uint32_t(old & ((1u << 29) - 1))) : false;
      if (fine) continue;
      fail(Kind::kRace, pc, "%s of device memory %p races with a write by block %lld thread %lld of the same launch", verb,
           static_cast<const void*>(p), static_cast<long long>(block), static_cast<long long>(thread));
    }
    if (write) {
      const Writer mine = uint64_t(w.block) << 40 | uint64_t(me) << 30 | uint64_t(access == Access::kAtomic) << 29 | now(me);
      std::fill(found, found + count, mine);
    }
  }
}

}  // namespace

void check_launch() {
  launched = true;
  writers.clear();
}

void check_block() {
  Worker& w = *worker;
  if (w.block >> 24) fail(Kind::kUnsupported, nullptr, "more than 2^24 blocks in a checked launch");
  epoch = 1;
  crossed = false;
  std::fill(local_time, local_time + kMaxThreads, 0);
  std::fill(row_epoch, row_epoch + kMaxThreads, 0);
  rows.resize(std::max(rows.size(), size_t(w.threads) * size_t(w.threads)));
  cells.assign(w.arena_used, Cell{});
}

void check_variable(size_t, size_t) { cells.resize(worker->arena_used); }

void check_join(const int* threads, int count) {
  const int all = worker->threads;
  if (count == all) {
    if (++epoch > kMaxEpoch) fail(Kind::kUnsupported, nullptr, "more than %u barriers in a checked block", kMaxEpoch);
    crossed = false;
    std::fill(local_time, local_time + all, 0);
    return;
  }
  const int warp = threads[0] >> 5;
  for (int i = 1; i < count; ++i) crossed = crossed || threads[i] >> 5 != warp;
  // Before anything crossed, a row holds times of its own warp only.
  const int first = crossed ? 0 : warp * 32, last = crossed ? all : std::min(all, warp * 32 + 32);
  uint32_t joined[kMaxThreads] = {};
  for (int i = 0; i < count; ++i) {
    const int t = threads[i];
    uint32_t* row = &rows[size_t(t) * size_t(all)];
    if (row_epoch[t] != epoch) {
      std::fill(row, row + all, 0);
      row_epoch[t] = epoch;
    }
    row[t] = now(t);
    for (int k = first; k < last; ++k) joined[k] = std::max(joined[k], row[k]);
  }
  for (int i = 0; i < count; ++i) {
    const int t = threads[i];
    std::copy(joined + first, joined + last, &rows[size_t(t) * size_t(all)] + first);
    if (local_time[t] < (1u << kLocalBits) - 1) ++local_time[t];
  }
}

void check_fence() {}
void check_publish(const void*) {}

void check_async(const void* p, size_t bytes, bool pending) {
  const auto offset = size_t(static_cast<const char*>(p) - worker->arena);
  for (size_t i = offset; i < offset + bytes; ++i) {
    if (pending) {
      cells[i].flags |= kInFlight;
    } else {
      cells[i].flags &= uint8_t(~kInFlight);
    }
  }
}

void check_access(const void* address, size_t bytes, Access access, const void* pc) {
  const auto* p = static_cast<const char*>(address);
  Worker& w = *worker;
  if (on_stack(*w.self, p)) return;
  const auto offset = size_t(p - w.arena);
  if (offset < kArena) return shared_access(offset, bytes, access, pc);
  if (in_device_memory(p, bytes)) return device_access(p, bytes, access, pc);
  const auto* parameters = static_cast<const char*>(w.launch->parameters);
  const bool constant = (p >= parameters && p < parameters + w.launch->parameters_size) || (p >= &__ehdr_start && p < &_end);
  if (constant && access == Access::kRead) return;
  fail(Kind::kOutOfBounds, pc, "%zu-byte %s of %p, which no tensor of this call holds%s", bytes,
       access == Access::kRead ? "read" : "write", address, nearest_range(p).c_str());
}

}  // namespace simt

#define SIMT_HOOK(name, bytes, access)                                                                \
  extern "C" void __asan_##name##_noabort(const void* p) {                                            \
    if (simt::worker && simt::worker->self) simt::check_access(p, bytes, access, __builtin_return_address(0)); \
  }
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
  if (simt::worker && simt::worker->self) simt::check_access(p, n, simt::Access::kRead, __builtin_return_address(0));
}
extern "C" void __asan_storeN_noabort(const void* p, size_t n) {
  if (simt::worker && simt::worker->self) simt::check_access(p, n, simt::Access::kWrite, __builtin_return_address(0));
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
  simt::fail(simt::Kind::kMisaligned, nullptr, "access to %p needs %d-byte alignment at %s:%u", reinterpret_cast<void*>(p),
             1 << data->log_alignment, data->file, data->line);
}
#else
}  // namespace simt
#endif
