// The memory checker. GCC's own access instrumentation (-fsanitize=kernel-address with calls instead of inline tests)
// turns every load and store of a kernel file into a call of the hooks at the end of this file.
//
// Order between threads of a block is kept as vector clocks. A thread's time is epoch << 12 | local: a barrier of the
// whole block starts a new epoch, in which all that went before is ordered for everyone; a barrier of some threads only
// joins their rows. Shuffles, votes, ldmatrix and mma give no order (CUDA C++ Programming Guide, "Warp Shuffle
// Functions"), which is how a missing __syncwarp shows.
#include <unordered_map>

#include "runtime.h"

extern "C" {
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));
}

namespace simt {

namespace {

struct Range {
  const char* begin;
  const char* end;
  bool permanent;
};
std::vector<Range> ranges;    // as they were named
std::vector<Range> disjoint;  // their union, sorted: views of one tensor overlap
bool launched = false;        // since the last tensor was named

}  // namespace

void device_memory(const void* p, size_t bytes, bool permanent) {
  if (!kChecking || !bytes) return;
  // The tensors of one call: those of the call before may be freed by now.
  if (launched && !permanent) std::erase_if(ranges, [](const Range& r) { return !r.permanent; });
  if (!permanent) launched = false;
  ranges.push_back({static_cast<const char*>(p), static_cast<const char*>(p) + bytes, permanent});
}

void forget_device_memory(const void* p) {
  std::erase_if(ranges, [p](const Range& r) { return r.permanent && r.begin == p; });
}

#ifdef SIMT_CHECK
namespace {

constexpr int kLocalBits = 12;
constexpr uint32_t kMaxEpoch = (1u << 17) - 1;

// Of one aligned word of shared memory, or where its bytes differ (kSplit) of one byte.
struct Cell {
  uint32_t written, read[2];
  uint32_t write_pc, read_pc[2];  // from the library's begin
  uint16_t writer, reader[2];
  uint8_t flags;
};
enum : uint8_t { kWritten = 1, kInFlight = 2, kByAtomic = 4, kSplit = 8 };

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
  bool empty() const { return used_ == 0; }
  void clear() {
    if (empty()) return;
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

// How blocks of one launch are ordered: an atomic on device memory publishes what the block's fences before it cover,
// and acquires what earlier atomics on that address published, once the block does a fence after it.
struct Publication;
struct Acquired {
  const Publication* from;
  size_t count;    // entries of it that were there
  bool effective;  // a fence followed
};
struct Entry {
  int64_t block;
  std::shared_ptr<const std::vector<uint32_t>> cover;  // per thread, up to which time; null: no fence so far
  std::vector<Acquired> acquired;                      // by that block until then
};
struct Publication {
  uintptr_t address;
  std::vector<Entry> entries;
};
std::unordered_map<uintptr_t, std::unique_ptr<Publication>> publications;
std::vector<Acquired> acquired;  // by the running block
bool fenced;                     // the running block did a fence
std::vector<uint32_t> block_cover;                 // what fences before the last barrier of the whole block cover
std::vector<std::vector<uint32_t>> thread_covers;  // since then; empty: none

WriterPages writers, previous_writers;  // of this launch and of the one before
const std::unique_ptr<Cell[]> cells = std::make_unique_for_overwrite<Cell[]>(kArena / 4);
const std::unique_ptr<Cell[]> byte_cells = std::make_unique_for_overwrite<Cell[]>(kArena);  // where a word is split
size_t last_range = 0, last_variable = 0;
uint32_t epoch;
bool crossed;  // in this epoch a barrier joined threads of different warps
uint32_t local_time[kMaxThreads], row_epoch[kMaxThreads];
std::vector<uint32_t> rows;

uint32_t now(int thread) { return epoch << kLocalBits | local_time[thread]; }

void merge(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
  if (into.empty()) into.assign(from.size(), 0);
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

enum class Link { kNone, kUnfenced, kOrdered };

// Whether a write of another block is published to this one: by that block itself, or by one that acquired it.
Link find_link(const std::vector<Acquired>& list, int64_t block, int thread, uint32_t time, bool transitive) {
  Link best = Link::kNone;
  for (size_t k = list.size(); k-- > 0;) {  // the latest first
    const Acquired& a = list[k];
    for (size_t i = 0; i < a.count; ++i) {
      const Entry& e = a.from->entries[i];
      Link link = Link::kNone;
      if (transitive) {
        link = find_link(e.acquired, block, thread, time, false);
      } else if (e.block == block) {
        link = e.cover && (*e.cover)[size_t(thread)] >= time ? Link::kOrdered : Link::kUnfenced;
      }
      if (link == Link::kOrdered && !a.effective) link = Link::kUnfenced;
      if (link == Link::kOrdered) return link;
      best = std::max(best, link);
    }
  }
  return best;
}

bool ordered(int me, int other, uint32_t time) {
  if (time < epoch << kLocalBits || other == me) return true;
  return row_epoch[me] == epoch && rows[size_t(me) * size_t(worker->threads) + size_t(other)] >= time;
}

bool writes(Access access) { return access != Access::kRead; }

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

uint32_t pack_pc(const void* pc) { return uint32_t(static_cast<const char*>(pc) - &__ehdr_start); }
std::string source_of(uint32_t pc) { return source_line(&__ehdr_start + pc); }

// Slow: only for what is wrong, to say how.
void explain(const Cell& c, size_t offset, Access access, const void* pc) {
  const int me = worker->self->index;
  if (c.flags & kInFlight && access != Access::kCopyLanded) {
    fail(Kind::kAsyncPending, pc, "%s of shared offset %zu, to which a cp.async of thread %u%s is in flight", verb(access), offset,
         c.writer, source_of(c.write_pc).c_str());
  }
  if (!(c.flags & kWritten)) fail(Kind::kUninitialised, pc, "%s of uninitialised shared memory, offset %zu", verb(access), offset);
  if (c.written && !ordered(me, c.writer, c.written)) {
    fail(Kind::kRace, pc, "no barrier between a write of shared offset %zu by thread %u%s and this %s", offset, c.writer,
         source_of(c.write_pc).c_str(), verb(access));
  }
  const int r = c.read[0] && !ordered(me, c.reader[0], c.read[0]) ? 0 : 1;
  fail(Kind::kRace, pc, "no barrier between a read of shared offset %zu by thread %u%s and this %s", offset, c.reader[r],
       source_of(c.read_pc[r]).c_str(), verb(access));
}

void touch(Cell& c, int me, uint32_t time, size_t offset, Access access, const void* pc) {
  if (c.flags & kInFlight && access != Access::kCopyLanded) [[unlikely]] return explain(c, offset, access, pc);
  if (!(c.flags & kWritten) && (access == Access::kRead || access == Access::kAtomic)) [[unlikely]] {
    return explain(c, offset, access, pc);
  }
  const bool both_atomic = access == Access::kAtomic && c.flags & kByAtomic;
  if (c.written && !both_atomic && !ordered(me, c.writer, c.written)) [[unlikely]] return explain(c, offset, access, pc);
  if (!writes(access)) {
    // Two readers, since the thread that writes later is often itself the last one.
    if (c.read[0] && c.reader[0] != me) {
      c.reader[1] = c.reader[0];
      c.read[1] = c.read[0];
      c.read_pc[1] = c.read_pc[0];
    }
    c.reader[0] = uint16_t(me);
    c.read[0] = time;
    c.read_pc[0] = pack_pc(pc);
    return;
  }
  if ((c.read[0] && !ordered(me, c.reader[0], c.read[0])) || (c.read[1] && !ordered(me, c.reader[1], c.read[1]))) [[unlikely]] {
    return explain(c, offset, access, pc);
  }
  c.writer = uint16_t(me);
  c.written = time;
  c.write_pc = pack_pc(pc);
  c.read[0] = c.read[1] = 0;
  c.flags = uint8_t(kWritten | (access == Access::kAtomic ? kByAtomic : access == Access::kCopyIssued ? kInFlight : 0));
}

bool in_shared(size_t offset, size_t bytes) {
  const Worker& w = *worker;
  if (offset + bytes <= w.launch->dynamic_shared) return true;
  const auto holds = [&](const Variable& v) { return offset >= v.offset && offset + bytes <= v.offset + v.size; };
  if (last_variable < w.variables.size() && holds(w.variables[last_variable])) return true;
  for (size_t i = 0; i < w.variables.size(); ++i) {
    if (!holds(w.variables[i])) continue;
    last_variable = i;
    return true;
  }
  return false;
}

void shared_access(size_t offset, size_t bytes, Access access, const void* pc) {
  Worker& w = *worker;
  if (!in_shared(offset, bytes)) {
    fail(Kind::kOutOfBounds, pc, "%zu-byte %s out of bounds of shared memory, offset %zu (dynamic size %zu)", bytes,
         verb(access), offset, w.launch->dynamic_shared);
  }
  const int me = w.self->index;
  const uint32_t time = now(me);
  for (size_t end = offset + bytes; offset < end;) {
    Cell& word = cells[offset / 4];
    const size_t stop = std::min(end, (offset | 3) + 1);
    const bool whole = stop - offset == 4;
    if (whole && !(word.flags & kSplit)) {
      touch(word, me, time, offset, access, pc);
      offset = stop;
      continue;
    }
    if (!(word.flags & kSplit)) {
      std::fill_n(&byte_cells[offset & ~size_t(3)], 4, word);
      word.flags |= kSplit;
    }
    for (; offset < stop; ++offset) touch(byte_cells[offset], me, time, offset, access, pc);
    if (whole && writes(access)) word = byte_cells[offset - 1];  // all four are alike again
  }
}

bool in_device_memory(const char* p, size_t bytes) {
  if (last_range < disjoint.size() && p >= disjoint[last_range].begin && p + bytes <= disjoint[last_range].end) return true;
  const auto after = std::upper_bound(disjoint.begin(), disjoint.end(), p,
                                      [](const char* address, const Range& r) { return address < r.begin; });
  if (after == disjoint.begin() || p + bytes > (after - 1)->end) return false;
  last_range = size_t(after - 1 - disjoint.begin());
  return true;
}

std::string nearest_range(const char* p) {
  const Range* best = nullptr;
  for (const Range& r : disjoint) {
    if (!best || r.begin <= p) best = &r;
  }
  if (!best) return "; the call named no tensor";
  return "; the nearest has " + std::to_string(best->end - best->begin) + " bytes, this is at " + std::to_string(p - best->begin);
}

// What a kernel launched with `overlap` must not do before pdl_wait: the kernel before it may still read what this writes,
// or write what this reads. Reported at the thread's pdl_wait: a kernel without one is never launched so.
void note_early(const char* p, size_t bytes, bool write, const void* pc) {
  bool hazard = write;
  for (size_t i = 0; !hazard && !previous_writers.empty() && i < bytes; ++i) {
    const auto address = reinterpret_cast<uintptr_t>(p + i);
    const Writer* found = previous_writers.find(address / kPageBytes);
    hazard = found && found[address % kPageBytes];
  }
  if (!hazard) return;
  worker->self->early = pc;
  worker->self->early_write = write;
}

void device_access(const char* p, size_t bytes, Access access, const void* pc) {
  Worker& w = *worker;
  const bool write = writes(access);
  if (!w.self->waited && !w.self->early) note_early(p, bytes, write, pc);
  if (!write && writers.empty()) return;
  const int me = w.self->index;
  for (size_t i = 0; i < bytes;) {
    const auto address = reinterpret_cast<uintptr_t>(p + i);
    const uintptr_t page = address / kPageBytes;
    const size_t count = std::min<size_t>(bytes - i, kPageBytes - address % kPageBytes);
    i += count;
    Writer* found = write ? writers.make(page) : writers.find(page);
    if (!found) continue;
    found += address % kPageBytes;
    Writer looked_at = 0;
    for (size_t k = 0; k < count; ++k) {
      const Writer old = found[k];
      if (old == looked_at) continue;  // mostly the same one for all bytes, or none
      looked_at = old;
      if (!old || (access == Access::kAtomic && (old >> 29 & 1))) continue;
      const auto block = int64_t(old >> 40), thread = int64_t(old >> 30 & 1023);
      const auto time = uint32_t(old & ((1u << 29) - 1));
      if (block == w.block) {
        if (ordered(me, int(thread), time)) continue;
      } else {
        // A counter's own address: this block's atomic came after the others', and its later accesses come after that.
        const bool counter = old >> 29 & 1 && std::any_of(acquired.begin(), acquired.end(), [&](const Acquired& a) {
          return a.from->address == reinterpret_cast<uintptr_t>(p);
        });
        Link link = counter ? Link::kOrdered : find_link(acquired, block, int(thread), time, false);
        if (link != Link::kOrdered) link = std::max(link, find_link(acquired, block, int(thread), time, true));
        if (link == Link::kOrdered) continue;
        if (link == Link::kUnfenced) {
          fail(Kind::kMissingFence, pc, "%s of device memory %p after an atomic that block %lld did too, but without "
               "fence_gpu between its write and its atomic, or between this block's atomic and now", verb(access),
               static_cast<const void*>(p), static_cast<long long>(block));
        }
      }
      fail(Kind::kRace, pc, "%s of device memory %p races with a write by block %lld thread %lld of the same launch", verb(access),
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
  std::swap(writers, previous_writers);
  writers.clear();
  publications.clear();
  disjoint = ranges;
  std::sort(disjoint.begin(), disjoint.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  size_t kept = 0;
  for (const Range& r : disjoint) {
    if (kept && r.begin < disjoint[kept - 1].end) {
      disjoint[kept - 1].end = std::max(disjoint[kept - 1].end, r.end);
    } else {
      disjoint[kept++] = r;
    }
  }
  disjoint.resize(kept);
}

void check_block() {
  Worker& w = *worker;
  epoch = 1;
  crossed = false;
  std::fill(local_time, local_time + kMaxThreads, 0);
  std::fill(row_epoch, row_epoch + kMaxThreads, 0);
  rows.resize(std::max(rows.size(), size_t(w.threads) * size_t(w.threads)));
  std::fill_n(cells.get(), (w.arena_used + 3) / 4, Cell{});
  acquired.clear();
  fenced = false;
}

void check_variable(size_t offset, size_t bytes) { std::fill_n(&cells[offset / 4], (bytes + 3) / 4, Cell{}); }

void check_join(const int* threads, int count) {
  const int all = worker->threads;
  if (count == all) {
    if (++epoch > kMaxEpoch) fail(Kind::kUnsupported, nullptr, "more than %u barriers in a checked block", kMaxEpoch);
    crossed = false;
    std::fill(local_time, local_time + all, 0);
    for (int t = 0; fenced && t < all; ++t) {
      if (thread_covers[size_t(t)].empty()) continue;
      merge(block_cover, thread_covers[size_t(t)]);
      thread_covers[size_t(t)].clear();
    }
    return;
  }
  std::vector<uint32_t> cover;
  for (int i = 0; fenced && i < count; ++i) {
    if (!thread_covers[size_t(threads[i])].empty()) merge(cover, thread_covers[size_t(threads[i])]);
  }
  for (int i = 0; !cover.empty() && i < count; ++i) thread_covers[size_t(threads[i])] = cover;
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

void check_fence() {
  const int me = worker->self->index, all = worker->threads;
  if (!fenced) {
    fenced = true;
    block_cover.assign(size_t(all), 0);
    thread_covers.assign(size_t(all), {});
  }
  auto& cover = thread_covers[size_t(me)];
  if (cover.empty()) cover.assign(size_t(all), 0);
  for (int t = 0; t < all; ++t) {
    uint32_t known = (epoch << kLocalBits) - 1;
    if (row_epoch[me] == epoch) known = std::max(known, rows[size_t(me) * size_t(all) + size_t(t)]);
    if (t == me) known = now(me);
    cover[size_t(t)] = std::max(cover[size_t(t)], known);
  }
  if (local_time[me] < (1u << kLocalBits) - 1) ++local_time[me];  // what comes now is not covered
  std::vector<Acquired> latest;  // one an address
  for (size_t k = acquired.size(); k-- > 0;) {
    const auto same = [&](const Acquired& a) { return a.from == acquired[k].from; };
    if (std::none_of(latest.begin(), latest.end(), same)) latest.push_back({acquired[k].from, acquired[k].count, true});
  }
  acquired.assign(latest.rbegin(), latest.rend());
}

void check_pdl_wait() {
  const Fiber& f = *worker->self;
  if (!f.early) return;
  fail(Kind::kBeforeWait, f.early, "device memory is %s before pdl_wait, while the kernel before may still %s it",
       f.early_write ? "written" : "read", f.early_write ? "use" : "write");
}

void check_publish(const void* p) {
  Worker& w = *worker;
  if (size_t(static_cast<const char*>(p) - w.arena) < kArena) return;  // shared memory orders no blocks
  auto& slot = publications[reinterpret_cast<uintptr_t>(p)];
  if (!slot) slot = std::make_unique<Publication>(Publication{reinterpret_cast<uintptr_t>(p), {}});
  const bool unfenced_again = !fenced && !slot->entries.empty() && slot->entries.back().block == w.block;
  if (!unfenced_again) {
    Entry entry{w.block, nullptr, acquired};
    if (fenced) {
      std::vector<uint32_t> cover = block_cover;
      const auto& mine = thread_covers[size_t(w.self->index)];
      if (!mine.empty()) merge(cover, mine);
      entry.cover = std::make_shared<const std::vector<uint32_t>>(std::move(cover));
    }
    slot->entries.push_back(std::move(entry));
  }
  std::erase_if(acquired, [&](const Acquired& a) { return a.from == slot.get() && !a.effective; });
  acquired.push_back({slot.get(), slot->entries.size(), false});
}

void check_access(const void* address, size_t bytes, Access access, const void* pc) {
  const auto* p = static_cast<const char*>(address);
  Worker& w = *worker;
  const auto offset = size_t(p - w.arena);
  if (offset < kArena) return shared_access(offset, bytes, access, pc);
  if (in_device_memory(p, bytes)) return device_access(p, bytes, access, pc);
  const auto* parameters = static_cast<const char*>(w.launch->parameters);
  const bool constant = (p >= parameters && p < parameters + w.launch->parameters_size) || (p >= &__ehdr_start && p < &_end);
  if (constant && access == Access::kRead) return;
  fail(Kind::kOutOfBounds, pc, "%zu-byte %s of %p, which no tensor of this call holds%s", bytes,
       verb(access), address, nearest_range(p).c_str());
}

}  // namespace simt

// Most accesses of a kernel are to its own stack: those leave at once.
static inline __attribute__((always_inline)) void simt_hook(const void* p, size_t bytes, simt::Access access, const void* pc) {
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
  simt::fail(simt::Kind::kMisaligned, nullptr, "access to %p needs %d-byte alignment at %s:%u", reinterpret_cast<void*>(p),
             1 << data->log_alignment, data->file, data->line);
}
#else
}  // namespace simt
#endif
