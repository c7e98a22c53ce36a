// What the parts of the memory checker share: the order between threads of the running block.
#pragma once

#include "runtime.h"

extern "C" {
extern char __ehdr_start __attribute__((visibility("hidden")));  // of this library, both by the linker
extern char _end __attribute__((visibility("hidden")));
}

namespace simt {

constexpr int kLocalBits = 12;
constexpr uint32_t kMaxEpoch = (1u << 17) - 1;

// Vector clocks. A thread's time is epoch << 12 | local: a barrier of the whole block starts a new epoch, in which all
// that went before is ordered for everyone; a barrier of some threads only joins their rows.
struct Clocks {
  uint32_t epoch;
  bool crossed;  // in this epoch a barrier joined threads of different warps
  uint32_t local[kMaxThreads];
  uint32_t row_epoch[kMaxThreads];  // a row of an older epoch knows nothing
  std::vector<uint32_t> rows;       // [thread, other]: up to which time of the other

  uint32_t now(int thread) const { return epoch << kLocalBits | local[thread]; }
  uint32_t known(int me, int other) const {
    return row_epoch[me] == epoch ? rows[size_t(me) * size_t(worker->threads) + size_t(other)] : 0;
  }
  bool ordered(int me, int other, uint32_t time) const {
    return time < epoch << kLocalBits || other == me || known(me, other) >= time;
  }
  void tick(int thread) {  // saturates: then a race may be missed, none invented
    if (local[thread] < (1u << kLocalBits) - 1) ++local[thread];
  }
};
extern Clocks clocks;

inline bool writes(Access access) { return access != Access::kRead; }
const char* verb(Access access);

// check_shared.cpp
void begin_shared();
void shared_access(size_t offset, size_t bytes, Access access, const void* pc);

// check_device.cpp
void begin_device();
bool in_device_memory(const char* p, size_t bytes);
std::string nearest_range(const char* p);
void device_access(const char* p, size_t bytes, Access access, const void* pc);
void join_fences(const int* threads, int count);

}  // namespace simt
