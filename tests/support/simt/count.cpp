// What the memories see of each warp-wide access, where a test asked for it (simt_count): wavefronts of shared memory,
// sectors of device memory, by kernel and place in its code. Empty in a build without checks.
//
// Fibers run one after another, so the lanes of one access are put together again: same warp, same place, the same how
// manieth time since all lanes of the warp last met (a barrier, a shuffle, an mma, ldmatrix). What that can't see: lanes
// that leave out a turn of a loop in which nobody meets are taken to be in step with the others' later turns, a call
// that was not inlined counts all its callers as one place, and what nvcc hoists, keeps in registers or reads twice.
#include <map>
#include <unordered_map>

#include "check.h"

#ifdef SIMT_CHECK
namespace simt {

bool counting = false;

namespace {

constexpr int kBanks = 32;
constexpr uintptr_t kSector = 32, kLine = 128;
constexpr ptrdiff_t kNearby = 192;  // bytes of code

struct Request {
  uint32_t lanes = 0;
  uintptr_t at[32];
  uint8_t bytes[32];
};

// Of one place in the code and one warp, since its lanes met.
struct Site {
  std::vector<Request> requests;
  uint32_t turns[32] = {};
};

struct Key {
  const void* pc;
  Access access;
  bool shared;
  auto operator<=>(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& k) const {
    return reinterpret_cast<uintptr_t>(k.pc) * 8 + size_t(k.access) * 2 + k.shared;
  }
};

// The latest access of a lane, while words beside it may still be part of it.
struct Latest {
  Site* site = nullptr;
  Key key;
  const void* pc;
  size_t turn;
};

struct Warp {
  std::unordered_map<Key, Site, KeyHash> sites;
  std::vector<std::pair<const Key, Site>*> touched;
  Latest latest[32];
};
Warp warps[kMaxWarps];

struct Counts {
  uint64_t requests, bytes, wavefronts, ideal, sectors, lines, widest;
};
using Sectors = std::unordered_map<uintptr_t, uint32_t>;  // a bit a byte
struct Kernel {
  uint64_t launches = 0, blocks = 0;
  int threads = 0;
  size_t shared = 0, in_flight = 0;  // bytes of a block, the most
  std::map<Key, Counts> sites;
  Sectors read, written;
};
std::map<const void*, Kernel> kernels;
Kernel* running = nullptr;
// Bytes of cp.async of each thread of the running block, and the most they were: threads run one after the other, so a
// ring without barriers is never seen full in all of them at once.
size_t in_flight[kMaxThreads], most_in_flight[kMaxThreads];

template <class F>
void for_lanes(const Request& r, int first, int last, F f) {
  for (int lane = first; lane < last; ++lane) {
    if (r.lanes >> lane & 1) f(r.at[lane], size_t(r.bytes[lane]));
  }
}

// Passes over shared memory: 32 lanes of up to 4 bytes, 16 of 8 or 8 of 16 at a time, each as often as its busiest bank
// has different words (atomics: accesses), ideally as often as the words of a pass fill all banks.
void count_shared(const Request& r, int widest, bool atomic, Counts& c) {
  const int lanes = widest <= 4 ? 32 : widest <= 8 ? 16 : 8;
  for (int first = 0; first < 32; first += lanes) {
    std::vector<uintptr_t> words;
    for_lanes(r, first, first + lanes, [&](uintptr_t at, size_t bytes) {
      for (uintptr_t word = at / 4; word <= (at + bytes - 1) / 4; ++word) words.push_back(word);
    });
    uint64_t bank[kBanks] = {}, accesses = 0;
    std::sort(words.begin(), words.end());
    if (atomic) {
      for (uintptr_t word : words) accesses = std::max(accesses, ++bank[word % kBanks]);
    }
    words.erase(std::unique(words.begin(), words.end()), words.end());
    if (!atomic) {
      for (uintptr_t word : words) accesses = std::max(accesses, ++bank[word % kBanks]);
    }
    c.wavefronts += accesses;
    c.ideal += (words.size() + kBanks - 1) / kBanks;
    c.bytes += words.size() * 4;
  }
}

void count_device(const Request& r, Access access, Counts& c) {
  std::map<uintptr_t, uint32_t> sectors;
  for_lanes(r, 0, 32, [&](uintptr_t at, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) sectors[(at + i) / kSector] |= 1u << (at + i) % kSector;
  });
  uintptr_t line = 0;
  uint64_t bytes = 0;
  for (const auto& [sector, mask] : sectors) {
    bytes += uint64_t(__builtin_popcount(mask));
    ++c.sectors;
    c.lines += sector / (kLine / kSector) != line;
    line = sector / (kLine / kSector);
    if (access != Access::kWrite) running->read[sector] |= mask;
    if (access != Access::kRead) running->written[sector] |= mask;
  }
  c.bytes += bytes;
  c.ideal += (bytes + kSector - 1) / kSector;
}

void count_request(const Key& key, const Request& r) {
  Counts& c = running->sites[key];
  int widest = 0;
  for_lanes(r, 0, 32, [&](uintptr_t, size_t bytes) { widest = std::max(widest, int(bytes)); });
  ++c.requests;
  c.widest = std::max(c.widest, uint64_t(widest));
  key.shared ? count_shared(r, widest, key.access == Access::kAtomic, c) : count_device(r, key.access, c);
}

// GCC loads and stores the words of a vector one by one, nvcc at once: what neighbours in memory and in the code touch
// one after the other, aligned to its size, is one access.
bool extends(const Latest& latest, const Key& key, uintptr_t at, size_t bytes, int lane) {
  if (!latest.site || bytes < 4 || latest.key.access != key.access || latest.key.shared != key.shared) return false;
  if (key.access != Access::kRead && key.access != Access::kWrite) return false;
  const ptrdiff_t distance = static_cast<const char*>(key.pc) - static_cast<const char*>(latest.pc);
  const Request& r = latest.site->requests[latest.turn];
  if (distance <= 0 || distance > kNearby || r.at[lane] + r.bytes[lane] != at) return false;
  const size_t whole = r.bytes[lane] + bytes <= 8 ? 8 : 16;
  return r.bytes[lane] + bytes <= 16 && r.at[lane] % whole == 0;
}

}  // namespace

void count_access(const void* p, size_t bytes, Access access, const void* pc) {
  const int thread = worker->self->index;
  if (access == Access::kCopyLanded) {
    in_flight[thread] -= bytes;
    return;
  }
  if (access == Access::kCopyIssued) {
    most_in_flight[thread] = std::max(most_in_flight[thread], in_flight[thread] += bytes);
  }
  const int lane = thread & 31;
  Warp& warp = warps[thread >> 5];
  const Key key{pc, access, is_shared(p)};
  Latest& latest = warp.latest[lane];
  auto at = reinterpret_cast<uintptr_t>(p);
  if (key.shared) at -= reinterpret_cast<uintptr_t>(worker->arena);
  if (extends(latest, key, at, bytes, lane)) {
    Request& r = latest.site->requests[latest.turn];
    r.bytes[lane] = uint8_t(r.bytes[lane] + bytes);
    latest.pc = pc;
    return;
  }
  auto& found = *warp.sites.try_emplace(key).first;
  Site& site = found.second;
  if (site.requests.empty()) warp.touched.push_back(&found);
  for (; bytes; at += 16, bytes -= std::min<size_t>(bytes, 16)) {
    const size_t turn = site.turns[lane]++;
    if (turn == site.requests.size()) site.requests.emplace_back();
    Request& r = site.requests[turn];
    r.lanes |= 1u << lane;
    r.at[lane] = at;
    r.bytes[lane] = uint8_t(std::min<size_t>(bytes, 16));
    latest = {&site, key, pc, turn};
  }
}

void count_meeting(int index) {
  Warp& warp = warps[index];
  for (auto* touched : warp.touched) {
    for (const Request& r : touched->second.requests) count_request(touched->first, r);
    touched->second.requests.clear();
    std::fill_n(touched->second.turns, 32, 0);
  }
  warp.touched.clear();
  std::fill_n(warp.latest, 32, Latest{});
}

// The launch's parameters begin with the kernel's address (simt::launch).
void count_block() {
  void* kernel;
  memcpy(&kernel, worker->launch->parameters, sizeof kernel);
  running = &kernels[kernel];
  running->launches += worker->block == 0;
  ++running->blocks;
  running->threads = worker->threads;
  std::fill_n(in_flight, kMaxThreads, 0);
  std::fill_n(most_in_flight, kMaxThreads, 0);
  for (Warp& warp : warps) {
    warp.touched.clear();
    warp.sites.clear();
  }
}

void count_block_end() {
  for (int warp = 0; warp * 32 < worker->threads; ++warp) count_meeting(warp);
  size_t shared = worker->launch->dynamic_shared;
  for (const Variable& v : worker->variables) shared += v.size;
  running->shared = std::max(running->shared, shared);
  size_t flying = 0;
  for (size_t bytes : most_in_flight) flying += bytes;
  running->in_flight = std::max(running->in_flight, flying);
}

void start_counting(bool on) {
  counting = on;
  kernels.clear();
}

// Lines of words; addresses are offsets into the library.
std::string counted() {
  std::string text;
  const auto offset = [](const void* p) { return std::to_string(static_cast<const char*>(p) - &__ehdr_start); };
  const auto bytes = [](const Sectors& sectors) {
    uint64_t sum = 0;
    for (const auto& [sector, mask] : sectors) sum += uint64_t(__builtin_popcount(mask));
    return std::to_string(sum) + ' ' + std::to_string(sectors.size() * kSector);
  };
  for (const auto& [address, k] : kernels) {
    text += "kernel " + offset(address) + ' ' + std::to_string(k.launches) + ' ' + std::to_string(k.blocks) + ' ' +
            std::to_string(k.threads) + ' ' + std::to_string(k.shared) + ' ' + std::to_string(k.in_flight) + ' ' + bytes(k.read) + ' ' + bytes(k.written) + '\n';
    for (const auto& [key, c] : k.sites) {
      text += "site " + offset(key.pc) + ' ' + (key.shared ? "shared " : "device ");
      text += key.access == Access::kRead         ? "read"
              : key.access == Access::kWrite      ? "write"
              : key.access == Access::kCopyIssued ? "copy"
                                                  : "atomic";
      for (uint64_t n : {c.widest, c.requests, c.bytes, c.wavefronts, c.ideal, c.sectors, c.lines}) {
        text += ' ' + std::to_string(n);
      }
      text += '\n';
    }
  }
  return text;
}

}  // namespace simt
#endif
