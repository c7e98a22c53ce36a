// Device memory: the tensors that a call named, the order of accesses to them between the threads of a block, between
// blocks, and between launches that overlap. In a build without checks tensors are named in vain.
#include <unordered_map>

#include "check.h"

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
std::vector<Acquired> acquired;                    // by the running block
bool fenced;                                       // the running block did a fence
std::vector<uint32_t> block_cover;                 // what fences before the last barrier of the whole block cover
std::vector<std::vector<uint32_t>> thread_covers;  // since then; empty: none

WriterPages writers, previous_writers;  // of this launch and of the one before
size_t last_range = 0;

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

// What a kernel launched with `overlap` must not do before pdl_wait: the kernel before it may still read what this
// writes, or write what this reads. Reported at the thread's pdl_wait: a kernel without one is never launched so.
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

}  // namespace

bool in_device_memory(const char* p, size_t bytes) {
  if (last_range < disjoint.size() && p >= disjoint[last_range].begin && p + bytes <= disjoint[last_range].end)
    return true;
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
  return "; the nearest has " + std::to_string(best->end - best->begin) + " bytes, this is at " +
         std::to_string(p - best->begin);
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
        if (clocks.ordered(me, int(thread), time)) continue;
      } else {
        // A counter's own address: this block's atomic came after the others', and its later accesses come after that.
        const bool counter = old >> 29 & 1 && std::any_of(acquired.begin(), acquired.end(), [&](const Acquired& a) {
                               return a.from->address == reinterpret_cast<uintptr_t>(p);
                             });
        Link link = counter ? Link::kOrdered : find_link(acquired, block, int(thread), time, false);
        if (link != Link::kOrdered) link = std::max(link, find_link(acquired, block, int(thread), time, true));
        if (link == Link::kOrdered) continue;
        if (link == Link::kUnfenced) {
          fail(Kind::kMissingFence, pc,
               "%s of device memory %p after an atomic that block %lld did too, but without "
               "fence_gpu between its write and its atomic, or between this block's atomic and now",
               verb(access), static_cast<const void*>(p), static_cast<long long>(block));
        }
      }
      fail(Kind::kRace, pc, "%s of device memory %p races with a write by block %lld thread %lld of the same launch",
           verb(access), static_cast<const void*>(p), static_cast<long long>(block), static_cast<long long>(thread));
    }
    if (write) {
      const Writer mine =
          uint64_t(w.block) << 40 | uint64_t(me) << 30 | uint64_t(access == Access::kAtomic) << 29 | clocks.now(me);
      std::fill(found, found + count, mine);
    }
  }
}

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

void begin_device() {
  acquired.clear();
  fenced = false;
}

void join_fences(const int* threads, int count) {
  if (!fenced) return;
  const bool all = count == worker->threads;
  std::vector<uint32_t> cover;
  for (int i = 0; i < count; ++i) {
    auto& mine = thread_covers[size_t(threads[i])];
    if (mine.empty()) continue;
    merge(all ? block_cover : cover, mine);
    if (all) mine.clear();
  }
  for (int i = 0; !cover.empty() && i < count; ++i) thread_covers[size_t(threads[i])] = cover;
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
    const uint32_t known = std::max((clocks.epoch << kLocalBits) - 1, clocks.known(me, t));
    cover[size_t(t)] = std::max(cover[size_t(t)], t == me ? clocks.now(me) : known);
  }
  clocks.tick(me);               // what comes now is not covered
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

}  // namespace simt
#else
}  // namespace simt
#endif
