// One fork-join pool for the process: the calling thread is worker 0, the others wait for it, spinning for 50 us and then
// asleep. A worker that finds itself on the caller's core leaves it; nothing else is bound to a core.
#pragma once

#include "octavo/types.h"

namespace octavo {

// Threads that take part in parallel_for, the caller included.
int num_threads();
// Ends the workers and starts num_threads - 1 new ones; at least 1. Must not be called from inside parallel_for.
void set_num_threads(int num_threads);
// Cores this process may run on (its affinity mask).
int num_cores();

// Runs task(context, part, parts) once for every part in [0, parts), and returns when all are done. The caller runs part 0;
// then it and the workers claim parts in order, so a worker that sleeps or was descheduled is not waited for unless it
// began one. Called from inside a task, or while another thread holds the pool, all parts run on the calling thread. What
// is computed must not depend on parts. parts <= 65535.
void fork_join(int parts, void (*task)(void* context, int part, int parts), void* context);

// 64-byte aligned memory that belongs to the calling thread, grows and is never given back; contents don't survive the
// next call on the same thread.
void* thread_scratch(size_t bytes);

// body(begin, end) over a partition of [0, n) in runs of at least `grain` adjacent items. Long ranges are cut in four
// runs a thread, so that a core that is slow or busy elsewhere does less; short ones in one, whose sizes differ by one item
// at most. `body` is taken by reference: nothing is allocated.
template <class Body>
static inline void parallel_for(int64_t n, int64_t grain, const Body& body) {
  struct Context {
    const Body& body;
    int64_t n;
  } context{body, n};
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  int64_t threads = num_threads(), most = n >= 16 * threads ? 4 * threads : threads;
  int64_t parts = (n + grain - 1) / grain;
  if (threads == 1) parts = 1;
  if (parts > most) parts = most;
  if (parts > threads) parts -= parts % threads;
  if (parts == 1) return body(int64_t{0}, n);
  fork_join(
      static_cast<int>(parts),
      [](void* opaque, int part, int parts) {
        auto* context = static_cast<Context*>(opaque);
        int64_t begin = context->n * part / parts;
        int64_t end = context->n * (part + 1) / parts;
        if (begin < end) context->body(begin, end);
      },
      &context);
}

// body(i) for every i in [0, items), each claimed by itself: a thread that wakes late or is disturbed does fewer. For
// items that take some microseconds. items <= 65535.
template <class Body>
static inline void fork_each(int64_t items, const Body& body) {
  auto task = [](void* opaque, int item, int) { (*static_cast<const Body*>(opaque))(item); };
  fork_join(static_cast<int>(items), task, const_cast<Body*>(&body));
}

}  // namespace octavo
