// The fork-join pool. A step of a small model forks hundreds of times a second for microseconds of work each, so
// workers spin for a short while after each task (to wake a sleeper takes about 10 us) and sleep in the kernel when idle.
#include "octavo/thread_pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <new>
#include <vector>

namespace octavo {
namespace {

constexpr int64_t kSpinNanoseconds = 50'000;

void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

thread_local bool inside_task = false;

class Pool {
 public:
  Pool() { start(num_cores()); }

  int size() const { return size_.load(std::memory_order_relaxed); }

  void resize(int size) {
    std::lock_guard<std::mutex> lock(owner_);
    if (size == this->size()) return;
    stop();
    start(size);
  }

  void run(int parts, void (*task)(void*, int, int), void* context) {
    std::unique_lock<std::mutex> lock(owner_, std::defer_lock);
    if (parts <= 1 || size() == 1 || inside_task || !lock.try_lock()) {
      for (int part = 0; part < parts; ++part) task(context, part, parts);
      return;
    }
    publish_cpu(0);
    task_ = task;
    context_ = context;
    done_.store(0, std::memory_order_relaxed);
    uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
    ticket_.store(uint64_t{epoch} << 32 | uint64_t(parts) << 16 | 1, std::memory_order_release);
    epoch_.store(epoch, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) futex_wake(epoch_, size());
    inside_task = true;
    task(context, 0, parts);
    inside_task = false;
    done_.fetch_add(1, std::memory_order_seq_cst);
    take_parts(epoch);
    join(uint32_t(parts));
  }

 private:
  // Claims parts of this epoch until none is left. The task may be read after a claim only: the claimed part keeps the
  // caller from returning, so nothing of this epoch changes meanwhile. A late worker's claim fails on the epoch.
  void take_parts(uint32_t epoch) {
    inside_task = true;
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (uint32_t(ticket >> 32) == epoch) {
      int part = int(ticket & 0xffff), parts = int(ticket >> 16 & 0xffff);
      if (part >= parts) break;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
      task_(context_, part, parts);
      bool last = done_.fetch_add(1, std::memory_order_seq_cst) + 1 == uint32_t(parts);
      if (last && joiner_waits_.load(std::memory_order_seq_cst)) futex_wake(done_, 1);
      ticket = ticket_.load(std::memory_order_acquire);
    }
    inside_task = false;
  }

  void join(uint32_t parts) {
    if (spins_) {
      for (int64_t end = now() + kSpinNanoseconds; now() < end;) {
        for (int i = 0; i < 32; ++i) {
          if (done_.load(std::memory_order_acquire) == parts) return;
          cpu_relax();
        }
      }
    }
    joiner_waits_.store(true, std::memory_order_seq_cst);
    for (uint32_t done; (done = done_.load(std::memory_order_seq_cst)) != parts;) futex_wait(done_, done);
    joiner_waits_.store(false, std::memory_order_relaxed);
  }

  void work(int index, uint32_t seen) {
    for (;;) {
      seen = await_epoch(seen);
      if (stopping_.load(std::memory_order_relaxed)) return;
      leave_shared_core(index);
      take_parts(seen);
    }
  }

  // Where thread `index` runs now; returns whether it moved since.
  bool publish_cpu(int index) {
    const int cpu = sched_getcpu();
    if (cpus_[size_t(index)].load(std::memory_order_relaxed) == cpu) return false;
    cpus_[size_t(index)].store(cpu, std::memory_order_relaxed);
    return true;
  }

  // A scheduler that packs threads wakes a worker on the caller's core and may leave it there for seconds: it takes the
  // core from the caller, does a part and spins, and nothing runs in parallel (measured: 65 us for a fork of 2 * 5 us).
  // So a worker that finds itself on the core of the caller, or of a worker before it, asks for any core but theirs.
  // Cores beyond those stay allowed: a worker is never bound to one that another process may keep busy.
  void leave_shared_core(int index) {
    const bool moved = publish_cpu(index);
    const int cpu = cpus_[size_t(index)].load(std::memory_order_relaxed);
    int with = 0;
    while (with < index && cpus_[size_t(with)].load(std::memory_order_relaxed) != cpu) with += moved ? 1 : index;
    if (with >= index || !spins_) return;
    cpu_set_t allowed = allowed_;
    for (int other = 0; other < index; ++other) {
      const int taken = cpus_[size_t(other)].load(std::memory_order_relaxed);
      if (taken >= 0) CPU_CLR(size_t(taken), &allowed);
    }
    if (CPU_COUNT(&allowed) == 0) return;
    sched_setaffinity(0, sizeof(allowed), &allowed);  // it may fail where the machine's cores have changed: then it stays
    publish_cpu(index);
  }

  uint32_t await_epoch(uint32_t seen) {
    uint32_t epoch;
    if (spins_) {
      for (int64_t end = now() + kSpinNanoseconds; now() < end;) {
        for (int i = 0; i < 32; ++i) {
          if ((epoch = epoch_.load(std::memory_order_acquire)) != seen) return epoch;
          cpu_relax();
        }
      }
    }
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while ((epoch = epoch_.load(std::memory_order_seq_cst)) == seen) futex_wait(epoch_, seen);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
    return epoch;
  }

  struct Start {
    Pool* pool;
    int index;
    uint32_t epoch;
  };

  void start(int size) {
    stopping_.store(false, std::memory_order_relaxed);
    // More spinners than cores would starve the thread that has the work.
    spins_ = size <= num_cores();
    cpus_ = std::vector<std::atomic<int>>(size_t(size));
    for (std::atomic<int>& cpu : cpus_) cpu.store(-1, std::memory_order_relaxed);
    if (sched_getaffinity(0, sizeof(allowed_), &allowed_) != 0) CPU_ZERO(&allowed_);
    // Workers take no signals: those belong to the threads of the host program.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int started = 1;
    for (; started < size; ++started) {
      auto* start = new Start{this, started, epoch_.load()};
      pthread_t thread;
      auto entry = [](void* opaque) -> void* {
        Start start = *static_cast<Start*>(opaque);
        delete static_cast<Start*>(opaque);
        start.pool->work(start.index, start.epoch);
        return nullptr;
      };
      if (pthread_create(&thread, nullptr, entry, start) != 0) {
        delete start;
        break;
      }
      char name[16];
      snprintf(name, sizeof(name), "octavo-cpu-%u", unsigned(started) % 1000);
      pthread_setname_np(thread, name);
      threads_.push_back(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    size_.store(started, std::memory_order_relaxed);
  }

  void stop() {
    stopping_.store(true, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(epoch_, size());
    for (pthread_t thread : threads_) pthread_join(thread, nullptr);
    threads_.clear();
  }

  alignas(64) std::atomic<uint32_t> epoch_{0};
  void (*task_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> stopping_{false};
  bool spins_ = true;
  // epoch << 32 | parts << 16 | next part.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> done_{0};
  std::atomic<bool> joiner_waits_{false};
  alignas(64) std::atomic<int> sleepers_{0};
  alignas(64) std::mutex owner_;
  std::atomic<int> size_{1};
  std::vector<pthread_t> threads_;
  std::vector<std::atomic<int>> cpus_;  // where each thread was last seen, the caller first; -1: nowhere yet
  cpu_set_t allowed_;                   // the cores of the thread that started the pool
};

// Never destroyed: workers may be asleep on its words when the process leaves main.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

struct Scratch {
  void* memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { free(memory); }
};
thread_local Scratch scratch;

}  // namespace

int num_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? int(online) : 1;
}

int num_threads() { return pool().size(); }

void set_num_threads(int num_threads) { pool().resize(num_threads < 1 ? 1 : num_threads); }

void fork_join(int parts, void (*task)(void*, int, int), void* context) { pool().run(parts, task, context); }

void* thread_scratch(size_t bytes) {
  if (bytes > scratch.bytes) {
    free(scratch.memory);
    scratch.bytes = 0;
    size_t rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    scratch.memory = aligned_alloc(64, rounded);
    if (!scratch.memory) throw std::bad_alloc();
    scratch.bytes = rounded;
  }
  return scratch.memory;
}

}  // namespace octavo
