// One fiber a CUDA thread: stacks, the switch between them, and who runs next.
#include <sys/mman.h>

#include "runtime.h"

// Saves what the System V ABI lets a callee keep; mxcsr and the x87 control word are the same in every fiber.
extern "C" void simt_switch(void** save, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch,.-simt_switch
)");

namespace simt {

thread_local Worker* worker __attribute__((tls_model("initial-exec")));

namespace {

constexpr size_t kPage = 4096;

void run_kernel() {
  worker->launch->kernel(worker->launch->parameters);
  thread_exits();
}

char* new_stack() {
  void* p = mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Error(Kind::kUnsupported, "no memory for the stack of another thread");
  mprotect(p, kPage, PROT_NONE);
  return static_cast<char*>(p) + kPage;
}

uint64_t next_random(Worker& w) {
  w.random = w.random * 6364136223846793005ull + 1442695040888963407ull;
  return w.random >> 33;
}

int pick_lane(Worker& w, int warp) {
  uint32_t lanes = w.runnable[warp];
  if (settings.order == Order::kRandom) {
    for (auto skip = next_random(w) % unsigned(__builtin_popcount(lanes)); skip; --skip) lanes &= lanes - 1;
    return __builtin_ctz(lanes);
  }
  // Rotating: always taking the lowest one would starve the others as soon as lanes wait in a loop.
  const int last = w.last_lane[warp];
  if (settings.order == Order::kDescending) {
    const uint32_t below = lanes & ((1u << last) - 1);
    return 31 - __builtin_clz(below ? below : lanes);
  }
  const uint32_t above = last == 31 ? 0 : lanes & ~((2u << last) - 1);
  return __builtin_ctz(above ? above : lanes);
}

Fiber* pick() {
  Worker& w = *worker;
  const int warps = (w.threads + 31) / 32;
  int first = w.self ? w.self->index >> 5 : settings.order == Order::kDescending ? warps - 1 : 0;
  if (settings.order == Order::kRandom) first = int(next_random(w) % unsigned(warps));
  const int step = settings.order == Order::kDescending ? warps - 1 : 1;
  for (int i = 0, warp = first; i < warps; ++i, warp += step, warp -= warp >= warps ? warps : 0) {
    if (!w.runnable[warp]) continue;
    const int lane = pick_lane(w, warp);
    w.last_lane[warp] = lane;
    return w.fibers[size_t(warp * 32 + lane)].get();
  }
  return nullptr;
}

[[noreturn]] void deadlock() {
  Worker& w = *worker;
  std::string text;
  for (int i = 0; i < w.threads && text.size() < 200; ++i) {
    if (!w.fibers[size_t(i)]->done) text += " " + std::to_string(i);
  }
  for (auto& warp : w.ops) {
    for (auto& op : warp) {
      if (op.active) text += ", warp operation at line " + std::to_string(op.line);
    }
  }
  for (auto& b : w.barriers) {
    if (b.arrived) text += ", barrier at line " + std::to_string(b.line) + " has " + std::to_string(b.arrived);
  }
  fail(Kind::kDeadlock, nullptr, "every thread waits:%s", text.c_str());
}

}  // namespace

void prepare_fibers(Worker& w) {
  while (int(w.fibers.size()) < w.threads) {
    w.fibers.push_back(std::make_unique<Fiber>());
    w.fibers.back()->stack = new_stack();
  }
  const dim3 size = w.launch->block;
  for (int i = 0; i < kMaxWarps; ++i) {
    w.runnable[i] = 0;
    w.last_lane[i] = settings.order == Order::kDescending ? 0 : 31;
  }
  for (int i = 0; i < w.threads; ++i) {
    Fiber& f = *w.fibers[size_t(i)];
    const auto u = unsigned(i);
    f.index = i;
    f.done = false;
    f.group = 0;
    f.waited = false;
    f.early = nullptr;
    f.pending.clear();
    f.thread = uint3{u % size.x, u / size.x % size.y, u / size.x / size.y};
    // The frame that simt_switch pops: six registers, then the address it returns to, the stack then 8 below a
    // multiple of 16 as after a call.
    void** top = reinterpret_cast<void**>(f.stack + kStack) - 2;
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&run_kernel);
    for (int k = 0; k < 6; ++k) *--top = nullptr;
    f.stack_pointer = top;
    wake(i);
  }
  std::copy(w.runnable, w.runnable + kMaxWarps, w.alive);
}

void start_fibers(Worker& w) {
  w.self = nullptr;
  w.self = pick();
  simt_switch(&w.main_stack, w.self->stack_pointer);
  w.self = nullptr;
}

void leave_block() {
  void* abandoned;
  simt_switch(&abandoned, worker->main_stack);
  __builtin_unreachable();
}

void wake(int thread) { worker->runnable[thread >> 5] |= 1u << (thread & 31); }

void stall() {
  Worker& w = *worker;
  Fiber* me = w.self;
  w.runnable[me->index >> 5] &= ~(1u << (me->index & 31));
  Fiber* next = pick();
  if (!next) deadlock();
  w.self = next;
  simt_switch(&me->stack_pointer, next->stack_pointer);
}

}  // namespace simt
