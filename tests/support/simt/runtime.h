// The emulator's own state, shared by its .cpp files; kernels never see it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "error.h"
#include "simt.h"

// simt.h's names for kernels would get in the way of members and of locals here.
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#undef warpSize

namespace simt {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / 32;
constexpr size_t kRedZone = 128;  // between shared variables
constexpr size_t kArena = 2 * kMaxShared;
constexpr size_t kStack = 256 << 10;

#ifdef SIMT_CHECK
constexpr bool kChecking = true;
#else
constexpr bool kChecking = false;
#endif

struct PendingCopy {
  char* to;
  unsigned char bytes[16];
  int size;
  int group;
  int line;
};

struct Fiber {
  uint3 thread;
  int index;
  bool done;
  void* stack_pointer;
  char* stack;
  int group;    // of cp.async: the one that the next copy joins
  bool waited;  // did pdl_wait
  bool early_write;
  const void* early;  // where it touched, before that, what it must not
  std::vector<PendingCopy> pending;
};

// Lanes of one warp that meet: each leaves its operands and the place of its result, both on its own stack.
struct WarpOp {
  uint32_t mask, arrived;
  int kind, line;
  bool active;
  const void* in[32];
  void* out[32];
};
constexpr int kOpsPerWarp = 4;  // pending ones with disjoint masks

struct BarrierState {
  int arrived, line, result;
  std::vector<int> members;
};

struct Variable {
  const void* key;
  size_t offset, size;
};

struct Launch {
  bool overlap;
  size_t asked_shared;
  dim3 grid, block;
  size_t dynamic_shared;
  void (*kernel)(void*);
  void* parameters;
  size_t parameters_size;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
};

// One OS thread's: it runs one block at a time, all threads of the block as fibers.
struct Worker {
  std::vector<std::unique_ptr<Fiber>> fibers;
  int threads = 0, live = 0;
  Fiber* self = nullptr;  // null while host code runs
  void* main_stack = nullptr;
  uint32_t runnable[kMaxWarps], alive[kMaxWarps];
  int last_lane[kMaxWarps];
  WarpOp ops[kMaxWarps][kOpsPerWarp];
  BarrierState barriers[16];
  char* arena = nullptr;
  size_t arena_used = 0;
  std::vector<Variable> variables;
  Launch* launch = nullptr;
  int64_t block = 0;
  uint3 block_index;
  uint64_t random = 1;
};
// initial-exec: a fiber never moves to another OS thread, so the address may be kept.
extern thread_local Worker* worker __attribute__((tls_model("initial-exec")));

inline bool is_shared(const void* p) { return size_t(static_cast<const char*>(p) - worker->arena) < kArena; }

// Which runnable thread goes next. kRandom is seeded; kDescending also takes the blocks from the last to the first.
enum class Order { kAscending, kDescending, kRandom };
struct Settings {
  Order order = Order::kAscending;
  uint64_t seed = 1;
  int os_threads = 1;  // of a build without checks
};
extern Settings settings;
extern Kind last_error;

// fiber.cpp
void start_fibers(Worker& w);     // returns when the last fiber of the block is done, or one failed
[[noreturn]] void leave_block();  // from a fiber: abandons all fibers of the block
void stall();                     // the current fiber waits until woken
void wake(int thread);
void prepare_fibers(Worker& w);

// block.cpp
void thread_exits();
[[noreturn]] void fail(Kind kind, const void* pc, const char* format, ...) __attribute__((format(printf, 3, 4)));
std::string source_line(const void* pc);  // " at file:line"
// The last lane to arrive runs `body`; returns true in that lane.
bool meet(uint32_t mask, int kind, int line, const void* in, void* out, void (*body)(WarpOp&, int), int argument);

// check.cpp; in a build without checks only the registration exists, and does nothing
enum class Access { kRead, kWrite, kAtomic, kCopyIssued, kCopyLanded };
#ifdef SIMT_CHECK
void check_launch();
void check_block();
void check_variable(size_t offset, size_t bytes);
void check_access(const void* p, size_t bytes, Access access, const void* pc);
void check_join(const int* threads, int count);
void check_fence();
void check_pdl_wait();
void check_publish(const void* p);

// count.cpp: only while `counting`
extern bool counting;
void start_counting(bool on);  // forgets what was counted
void count_block();
void count_access(const void* p, size_t bytes, Access access, const void* pc);
void count_meeting(int warp);  // all of its lanes are here
void count_block_end();
std::string counted();
#else
inline void check_launch() {}
inline void check_block() {}
inline void check_variable(size_t, size_t) {}
inline void check_access(const void*, size_t, Access, const void*) {}
inline void check_join(const int*, int) {}
inline void check_fence() {}
inline void check_pdl_wait() {}
inline void check_publish(const void*) {}
constexpr bool counting = false;
inline void start_counting(bool) {}
inline void count_block() {}
inline void count_meeting(int) {}
inline void count_block_end() {}
inline std::string counted() { return ""; }
#endif

}  // namespace simt
