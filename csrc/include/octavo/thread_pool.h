// One fork-join pool for the process: the calling thread is worker 0, the others wait for it.
#pragma once

#include "octavo/types.h"

namespace octavo {

// Threads that take part in parallel_for, the caller included.
int num_threads();
// Ends the workers and starts num_threads - 1 new ones; at least 1. Must not be called from inside parallel_for.
void set_num_threads(int num_threads);
// Cores this process may run on (its affinity mask).
int num_cores();

// Runs task(context, part, parts) for every part in [0, parts), part 0 on the calling thread, and returns when all are
// done. parts is cut to num_threads(). Called from inside a task, or while another thread holds the pool, all parts
// run on the calling thread: the result never depends on how many threads took part.
void fork_join(int parts, void (*task)(void* context, int part, int parts), void* context);

// 64-byte aligned memory that belongs to the calling thread, grows and is never given back; contents don't survive the
// next call on the same thread.
void* thread_scratch(size_t bytes);

// body(begin, end) over a static partition of [0, n), at least `grain` items to a thread. Items of one thread are
// adjacent. `body` is taken by reference: nothing is allocated.
template <class Body>
static inline void parallel_for(int64_t n, int64_t grain, const Body& body) {
  struct Context {
    const Body& body;
    int64_t n;
  } context{body, n};
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  int64_t parts = (n + grain - 1) / grain;
  if (parts > num_threads()) parts = num_threads();
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

}  // namespace octavo
