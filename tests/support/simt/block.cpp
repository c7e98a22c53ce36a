// A launch, its blocks, the block's barriers, shared memory, and how lanes of a warp meet.
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "runtime.h"

namespace simt {

Settings settings;
Kind last_error = Kind::kNone;

namespace {

std::mutex launch_mutex;                       // one launch at a time
std::vector<std::unique_ptr<Worker>> workers;  // with their fibers' stacks; one an OS thread of a launch
std::mutex error_mutex;
Kind error_kind = Kind::kNone;
std::string error_text;

void run_block(Worker& w, int64_t block) {
  const Launch& l = *w.launch;
  w.block = block;
  const auto b = uint64_t(block);
  w.block_index = uint3{unsigned(b % l.grid.x), unsigned(b / l.grid.x % l.grid.y), unsigned(b / l.grid.x / l.grid.y)};
  w.live = w.threads;
  w.variables.clear();
  w.arena_used = (l.dynamic_shared + 15) / 16 * 16 + kRedZone;
  memset(w.arena, 0xFF, w.arena_used);
  for (auto& warp : w.ops) {
    for (auto& op : warp) op.active = false;
  }
  for (auto& barrier : w.barriers) {
    barrier.arrived = 0;
    barrier.members.clear();
  }
  prepare_fibers(w);
  check_block();
  if (counting) count_block();
  start_fibers(w);
  if (counting) count_block_end();
}

void run_blocks(Launch* launch, int index) {
  Worker& w = *(worker = workers[size_t(index)].get());
  w.launch = launch;
  w.threads = int(launch->block.x * launch->block.y * launch->block.z);
  w.random = settings.seed * 77 + unsigned(index);
  const int64_t blocks = int64_t(launch->grid.x) * launch->grid.y * launch->grid.z;
  for (int64_t i; !launch->failed && (i = launch->next++) < blocks;) {
    run_block(w, settings.order == Order::kDescending ? blocks - 1 - i : i);
  }
}

WarpOp* find_op(WarpOp* ops, uint32_t mask, int kind, int line) {
  for (int i = 0; i < kOpsPerWarp; ++i) {
    WarpOp& op = ops[i];
    if (!op.active || !(op.mask & mask)) continue;
    if (op.mask == mask && op.kind == kind && op.line == line) return &op;
    fail(Kind::kWarpMismatch, nullptr,
         "warp operation at line %d (mask %08x) meets a pending one of line %d (mask %08x)", line, mask, op.line,
         op.mask);
  }
  for (int i = 0; i < kOpsPerWarp; ++i) {
    WarpOp& op = ops[i];
    if (op.active) continue;
    op.active = true;
    op.mask = mask;
    op.kind = kind;
    op.line = line;
    op.arrived = 0;
    return &op;
  }
  fail(Kind::kWarpMismatch, nullptr, "warp operation at line %d (mask %08x) is the fifth pending one of its warp", line,
       mask);
}

// `line` of a barrier, or 0 at the thread's end.
void check_no_warp_op(int line) {
  const Worker& w = *worker;
  const int warp = w.self->index >> 5, lane = w.self->index & 31;
  for (const WarpOp& op : w.ops[warp]) {
    if (!op.active || !(op.mask >> lane & 1)) continue;
    const std::string what = line ? "barrier at line " + std::to_string(line) : "the thread exits";
    fail(Kind::kWarpMismatch, nullptr, "%s while lanes wait for this one in a warp operation at line %d", what.c_str(),
         op.line);
  }
}

}  // namespace

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kNone: return "none";
    case Kind::kRace: return "race";
    case Kind::kOutOfBounds: return "out_of_bounds";
    case Kind::kUninitialised: return "uninitialised";
    case Kind::kMissingFence: return "missing_fence";
    case Kind::kBeforeWait: return "before_wait";
    case Kind::kAsyncPending: return "async_pending";
    case Kind::kDivergentBarrier: return "divergent_barrier";
    case Kind::kWarpMismatch: return "warp_mismatch";
    case Kind::kDeadlock: return "deadlock";
    case Kind::kMisaligned: return "misaligned";
    case Kind::kUnsupported: return "unsupported";
  }
  return "unknown";
}

// "file:line" of the innermost frame that is no primitive; run once, for an error.
std::string source_line(const void* pc) {
  Dl_info info;
  if (!pc || !dladdr(pc, &info)) return "";
  char command[600];
  snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
           size_t(static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase)) - 1);
  std::string found;
  if (FILE* pipe = popen(command, "r")) {
    char line[512];
    while (fgets(line, sizeof line, pipe)) {
      std::string text(line);
      text = text.substr(text.rfind('/') + 1);
      text = text.substr(0, text.find_first_of(" \n"));
      if (!found.empty() && found.rfind("prim.cuh", 0) != 0 && found.rfind("simt.h", 0) != 0) break;
      found = text;
    }
    pclose(pipe);
  }
  return found.empty() ? "" : " at " + found;
}

uint3 thread_index() { return worker->self->thread; }
uint3 block_index() { return worker->block_index; }
dim3 block_size() { return worker->launch->block; }
dim3 grid_size() { return worker->launch->grid; }
int lane() { return worker->self->index & 31; }

void fail(Kind kind, const void* pc, const char* format, ...) {
  char text[600];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  const uint3 b = block_index(), t = thread_index();
  char where[160];
  snprintf(where, sizeof where, "block (%u, %u, %u) thread (%u, %u, %u): ", b.x, b.y, b.z, t.x, t.y, t.z);
  {
    std::lock_guard<std::mutex> lock(error_mutex);
    if (error_kind == Kind::kNone) {
      error_kind = kind;
      error_text = std::string(kind_name(kind)) + ": " + where + text + source_line(pc);
    }
  }
  worker->launch->failed = true;
  leave_block();
}

void run(bool overlap, dim3 grid, dim3 block, size_t dynamic_shared, const void* function, void (*kernel)(void*),
         void* parameters, size_t size) {
  const auto refuse = [](const std::string& text) {
    throw Error(last_error = Kind::kUnsupported, "unsupported: " + text);
  };
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > 64) {
    refuse("cudaErrorInvalidConfiguration: a block of " + std::to_string(threads) +
           " threads; 1 to 1024 are allowed, up to 64 of them along z");
  }
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    refuse("cudaErrorInvalidConfiguration: a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
           std::to_string(grid.z) + " blocks; 2147483647 x 65535 x 65535 are allowed");
  }
  if (kChecking && uint64_t(grid.x) * grid.y * grid.z >> 24) refuse("more than 2^24 blocks in a checked launch");
  const size_t asked = asked_shared(function);
  if (const auto text = shared_mistake(dynamic_shared, dynamic_shared, asked); !text.empty()) refuse(text);
  Launch launch;
  launch.asked_shared = asked;
  launch.overlap = overlap;
  launch.grid = grid;
  launch.block = block;
  launch.dynamic_shared = dynamic_shared;
  launch.kernel = kernel;
  launch.parameters = parameters;
  launch.parameters_size = size;
  std::lock_guard<std::mutex> lock(launch_mutex);
  error_kind = Kind::kNone;
  const int os_threads = kChecking ? 1 : settings.os_threads;
  while (int(workers.size()) < os_threads) {
    workers.push_back(std::make_unique<Worker>());
    workers.back()->arena = static_cast<char*>(aligned_alloc(1024, kArena));
  }
  check_launch();
  std::vector<std::thread> others;
  for (int i = 1; i < os_threads; ++i) others.emplace_back(run_blocks, &launch, i);
  run_blocks(&launch, 0);
  for (auto& thread : others) thread.join();
  if (error_kind != Kind::kNone) throw Error(last_error = error_kind, error_text);
}

void thread_exits() {
  Worker& w = *worker;
  Fiber& f = *w.self;
  if (!f.pending.empty()) {
    fail(Kind::kAsyncPending, nullptr, "the thread exits with %zu cp.async not waited for, the first of line %d",
         f.pending.size(), f.pending[0].line);
  }
  if (w.launch->overlap && !f.waited) fail(Kind::kBeforeWait, nullptr, "the thread exits without pdl_wait");
  if (w.barriers[0].arrived) {
    fail(Kind::kDivergentBarrier, nullptr, "the thread exits while %d threads wait at the barrier of line %d",
         w.barriers[0].arrived, w.barriers[0].line);
  }
  check_no_warp_op(0);
  f.done = true;
  w.alive[f.index >> 5] &= ~(1u << (f.index & 31));
  if (--w.live == 0) leave_block();
  stall();
  __builtin_unreachable();
}

bool meet(uint32_t mask, int kind, int line, const void* in, void* out, void (*body)(WarpOp&, int), int argument) {
  Worker& w = *worker;
  const int warp = w.self->index >> 5, lane = w.self->index & 31;
  if (!(mask >> lane & 1)) {
    fail(Kind::kWarpMismatch, nullptr, "lane %d is not in the mask %08x of the warp operation at line %d", lane, mask,
         line);
  }
  if (mask & ~w.alive[warp]) {
    const int threads_left = w.threads - warp * 32;
    const uint32_t exist = threads_left >= 32 ? ~0u : (1u << threads_left) - 1;
    if (mask & exist & ~w.alive[warp]) {
      fail(Kind::kWarpMismatch, nullptr, "the warp operation at line %d names lanes %08x that have exited", line,
           mask & exist & ~w.alive[warp]);
    }
  }
  WarpOp* op = find_op(w.ops[warp], mask, kind, line);
  op->in[lane] = in;
  op->out[lane] = out;
  op->arrived |= 1u << lane;
  if (op->arrived != (mask & w.alive[warp])) {
    stall();
    return false;
  }
  op->active = false;
  if (counting && op->arrived == w.alive[warp]) count_meeting(warp);
  if (body) body(*op, argument);
  w.runnable[warp] |= op->arrived;
  return true;
}

int barrier(int id, int count, Vote vote, int predicate, int line) {
  Worker& w = *worker;
  if (id < 0 || id > 15) fail(Kind::kUnsupported, nullptr, "barrier %d at line %d; there are 0 to 15", id, line);
  BarrierState& b = w.barriers[id];
  if (!count && w.live != w.threads) {
    fail(Kind::kDivergentBarrier, nullptr, "barrier at line %d after %d threads of the block have exited", line,
         w.threads - w.live);
  }
  if (b.arrived == 0) {
    b.line = line;
    b.result = vote == Vote::kAnd;
  } else if (!count && b.line != line) {
    fail(Kind::kDivergentBarrier, nullptr, "barrier at line %d while %d threads wait at the one of line %d", line,
         b.arrived, b.line);
  }
  check_no_warp_op(line);
  if (vote == Vote::kCount) b.result += predicate != 0;
  if (vote == Vote::kAnd) b.result = b.result && predicate;
  if (vote == Vote::kOr) b.result = b.result || predicate;
  b.members.push_back(w.self->index);
  if (++b.arrived < (count ? count : w.threads)) {
    stall();
    return b.result;
  }
  b.arrived = 0;
  check_join(b.members.data(), int(b.members.size()));
  for (int thread : b.members) {
    if (counting && thread % 32 == 0) count_meeting(thread / 32);
    wake(thread);
  }
  b.members.clear();
  return b.result;
}

void* static_shared(const void* key, size_t bytes, size_t align) {
  Worker& w = *worker;
  for (const Variable& v : w.variables) {
    if (v.key == key) return w.arena + v.offset;
  }
  align = std::max<size_t>(align, 16);
  const size_t offset = (w.arena_used + align - 1) / align * align;
  size_t total = w.launch->dynamic_shared + bytes;
  for (const Variable& v : w.variables) total += v.size;
  const auto text = shared_mistake(w.launch->dynamic_shared, total, w.launch->asked_shared);
  if (!text.empty()) fail(Kind::kUnsupported, nullptr, "%s", text.c_str());
  w.arena_used = offset + (bytes + 15) / 16 * 16 + kRedZone;
  memset(w.arena + offset, 0xFF, bytes);
  w.variables.push_back({key, offset, bytes});
  check_variable(offset, bytes);
  return w.arena + offset;
}

void* dynamic_shared() { return worker->arena; }

}  // namespace simt
