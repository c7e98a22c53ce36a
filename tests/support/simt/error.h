// The mistakes that the emulator finds. Tests compare kinds; texts are for people.
#pragma once

#include <stdexcept>
#include <string>

namespace simt {

enum class Kind {
  kNone,
  kRace,              // two threads, or two blocks, touch one address with no order between them
  kMissingFence,      // blocks ordered by an atomic, but without __threadfence on both sides
  kOutOfBounds,       // of shared memory, or of every tensor that the call named
  kUninitialised,     // shared memory read before it was written
  kBeforeWait,        // in front of pdl_wait: a write, a read of what the launch before wrote, pdl_launch, or the end
  kAsyncPending,      // a cp.async still in flight touched, or left behind at the thread's exit
  kDivergentBarrier,  // a block barrier that not every thread reaches
  kWarpMismatch,      // lanes named in one warp operation don't meet in it
  kDeadlock,
  kMisaligned,
  kUnsupported,  // more than the hardware has: threads, shared memory, barriers
};

const char* kind_name(Kind kind);

struct Error : std::runtime_error {
  Error(Kind k, const std::string& text) : std::runtime_error(text), kind(k) {}
  Kind kind;
};

}  // namespace simt
