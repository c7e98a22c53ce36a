// What a warp does together, each as one function over all lanes: shuffles, votes, ldmatrix, mma; and the atomics.
// Layouts: PTX ISA, "Matrix fragments for mma.m16n8k16 / m16n8k32" and "ldmatrix".
#include "runtime.h"
#include "tensor_core.h"

namespace simt {
namespace {

// Kinds of `meet`, only compared with each other.
enum : int { kShuffleOp = 0, kReduceOp = 16, kWarpBarrierOp = 32, kMmaOp = 48, kLdmatrixOp = 64 };

struct ShuffleIn {
  uint64_t value;
  int operand, width;
};

void shuffle_body(WarpOp& op, int mode) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(op.arrived >> lane & 1)) continue;
    const auto& in = *static_cast<const ShuffleIn*>(op.in[lane]);
    // As the manual of shfl.sync computes it; of an operand the low five bits count.
    const int operand = in.operand & 31, segment = 32 - in.width, first = lane & segment, last = first | (31 & ~segment);
    int from = lane;
    switch (Shuffle(mode)) {
      case Shuffle::kIndex: from = first | (operand & ~segment); break;
      case Shuffle::kUp: from = lane - operand >= first ? lane - operand : lane; break;
      case Shuffle::kDown: from = lane + operand <= last ? lane + operand : lane; break;
      case Shuffle::kXor: from = (lane ^ operand) <= last ? lane ^ operand : lane; break;
    }
    // A lane that is not there has no value: poison.
    const bool there = op.arrived >> from & 1;
    *static_cast<uint64_t*>(op.out[lane]) = there ? static_cast<const ShuffleIn*>(op.in[from])->value : ~uint64_t(0);
  }
}

void reduce_body(WarpOp& op, int what) {
  uint32_t result = 0;
  bool first = true;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(op.arrived >> lane & 1)) continue;
    const uint32_t x = *static_cast<const uint32_t*>(op.in[lane]);
    if (Reduce(what) == Reduce::kBallot) {
      result |= uint32_t(x != 0) << lane;
      continue;
    }
    if (first) {
      result = x;
      first = false;
      continue;
    }
    switch (Reduce(what)) {
      case Reduce::kAdd: result += x; break;
      case Reduce::kMin: result = std::min(result, x); break;
      case Reduce::kMax: result = std::max(result, x); break;
      case Reduce::kMinSigned: result = uint32_t(std::min(int(result), int(x))); break;
      case Reduce::kMaxSigned: result = uint32_t(std::max(int(result), int(x))); break;
      case Reduce::kAnd: result &= x; break;
      case Reduce::kOr: result |= x; break;
      case Reduce::kXor: result ^= x; break;
      case Reduce::kBallot: break;
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (op.arrived >> lane & 1) *static_cast<uint32_t*>(op.out[lane]) = result;
  }
}

struct MmaIn {
  const uint32_t *a, *b;
  const void* c;
};

template <bool Bf16>
void mma_float_body(WarpOp& op, int) {
  tensor_core::Tile tile;
  for (int lane = 0; lane < 32; ++lane) {
    const auto& in = *static_cast<const MmaIn*>(op.in[lane]);
    const int g = lane >> 2, t = (lane & 3) * 2;
    for (int i = 0; i < 4; ++i) {
      for (int e = 0; e < 2; ++e) tile.a[g + 8 * (i & 1)][t + e + 8 * (i >> 1)] = uint16_t(in.a[i] >> (16 * e));
      tile.c[g + 8 * (i >> 1)][t + (i & 1)] = static_cast<const float*>(in.c)[i];
    }
    for (int i = 0; i < 2; ++i) {
      for (int e = 0; e < 2; ++e) tile.b[t + e + 8 * i][g] = uint16_t(in.b[i] >> (16 * e));
    }
  }
  tensor_core::multiply<Bf16>(tile);
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane >> 2, t = (lane & 3) * 2;
    for (int i = 0; i < 4; ++i) static_cast<float*>(op.out[lane])[i] = tile.c[g + 8 * (i >> 1)][t + (i & 1)];
  }
}

void mma_int_body(WarpOp& op, int) {
  int a[16][32], b[32][8];
  uint32_t c[16][8];  // wraps as the hardware does
  for (int lane = 0; lane < 32; ++lane) {
    const auto& in = *static_cast<const MmaIn*>(op.in[lane]);
    const int g = lane >> 2, t = (lane & 3) * 4;
    for (int i = 0; i < 4; ++i) {
      for (int e = 0; e < 4; ++e) a[g + 8 * (i & 1)][t + e + 16 * (i >> 1)] = int8_t(in.a[i] >> (8 * e));
      c[g + 8 * (i >> 1)][t / 2 + (i & 1)] = uint32_t(static_cast<const int32_t*>(in.c)[i]);
    }
    for (int i = 0; i < 2; ++i) {
      for (int e = 0; e < 4; ++e) b[t + e + 16 * i][g] = int8_t(in.b[i] >> (8 * e));
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 32; ++k) {
      for (int n = 0; n < 8; ++n) c[m][n] += uint32_t(a[m][k] * b[k][n]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane >> 2, t = (lane & 3) * 2;
    for (int i = 0; i < 4; ++i) static_cast<int32_t*>(op.out[lane])[i] = int32_t(c[g + 8 * (i >> 1)][t + (i & 1)]);
  }
}

struct LdmatrixIn {
  uint16_t row[8];
};

void ldmatrix_body(WarpOp& op, int argument) {
  const int matrices = argument >> 1;
  const bool trans = argument & 1;
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane >> 2, t = (lane & 3) * 2;
    for (int j = 0; j < matrices; ++j) {
      const auto at = [&](int row, int column) {
        return uint32_t(static_cast<const LdmatrixIn*>(op.in[8 * j + row])->row[column]);
      };
      static_cast<uint32_t*>(op.out[lane])[j] = trans ? at(t, g) | at(t + 1, g) << 16 : at(g, t) | at(g, t + 1) << 16;
    }
  }
}

template <class T>
T apply(T old, T value, Atomic what) {
  switch (what) {
    case Atomic::kAdd: return old + value;
    case Atomic::kMin: return std::min(old, value);
    case Atomic::kMax: return std::max(old, value);
    case Atomic::kInc: return old >= value ? 0 : old + 1;
    case Atomic::kExchange: return value;
    case Atomic::kAnd: return old & value;
    case Atomic::kOr: return old | value;
  }
  return old;
}

// Real atomics, so that blocks may run on several OS threads.
template <class T, class F>
T atomic_update(T* p, int line, const void* pc, F update) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T)) {
    fail(Kind::kMisaligned, nullptr, "atomic on %p at line %d needs %zu-byte alignment", static_cast<void*>(p), line,
         sizeof(T));
  }
  check_access(p, sizeof(T), Access::kAtomic, pc);
  check_publish(p);
  T old, next;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do {
    next = update(old);
  } while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  return old;
}

}  // namespace

uint64_t shuffle(uint32_t mask, uint64_t value, int operand, int width, Shuffle mode, int line) {
  ShuffleIn in{value, operand, width};
  uint64_t out = 0;
  meet(mask, kShuffleOp + int(mode), line, &in, &out, shuffle_body, int(mode));
  return out;
}

uint32_t reduce(uint32_t mask, uint32_t value, Reduce what, int line) {
  uint32_t out = 0;
  meet(mask, kReduceOp + int(what), line, &value, &out, reduce_body, int(what));
  return out;
}

void warp_barrier(uint32_t mask, int line) {
  meet(
      mask, kWarpBarrierOp, line, nullptr, nullptr,
      [](WarpOp& op, int) {
        int threads[32], count = 0;
        for (int lane = 0; lane < 32; ++lane) {
          if (op.arrived >> lane & 1) threads[count++] = (worker->self->index & ~31) + lane;
        }
        check_join(threads, count);
      },
      0);
}

void mma(void* d, const uint32_t* a, const uint32_t* b, const void* c, Mma type, int line) {
  MmaIn in{a, b, c};
  const auto body = type == Mma::kS8 ? mma_int_body : type == Mma::kBf16 ? mma_float_body<true> : mma_float_body<false>;
  meet(~0u, kMmaOp + int(type), line, &in, d, body, 0);
}

void ldmatrix(uint32_t* r, int matrices, bool trans, const void* row, int line) {
  LdmatrixIn in{};
  if (lane() < 8 * matrices) {
    if (reinterpret_cast<uintptr_t>(row) & 15) {
      fail(Kind::kMisaligned, nullptr, "ldmatrix at line %d: row %p needs 16-byte alignment", line, row);
    }
    if (!is_shared(row))
      fail(Kind::kOutOfBounds, nullptr, "ldmatrix at line %d from %p, which is not shared memory", line, row);
    check_access(row, 16, Access::kRead, __builtin_return_address(0));
    memcpy(in.row, row, 16);
  }
  meet(~0u, kLdmatrixOp + 2 * matrices + trans, line, &in, r, ldmatrix_body, 2 * matrices + trans);
}

uint32_t atomic(uint32_t* p, uint32_t value, Atomic what, int line) {
  return atomic_update(p, line, __builtin_return_address(0), [=](uint32_t old) { return apply(old, value, what); });
}
uint64_t atomic(uint64_t* p, uint64_t value, Atomic what, int line) {
  return atomic_update(p, line, __builtin_return_address(0), [=](uint64_t old) { return apply(old, value, what); });
}
float atomic_add(float* p, float value, int line) {
  return atomic_update(p, line, __builtin_return_address(0), [=](float old) { return old + value; });
}
uint32_t compare_and_swap(uint32_t* p, uint32_t expected, uint32_t value, int line) {
  return atomic_update(p, line, __builtin_return_address(0),
                       [=](uint32_t old) { return old == expected ? value : old; });
}

void fence() { check_fence(); }

void pdl_wait() {
  if (code_version < 90) return;
  check_pdl_wait();
  worker->self->waited = true;
}

void pdl_launch(int line) {
  if (code_version >= 90 && !worker->self->waited)
    fail(Kind::kBeforeWait, nullptr, "pdl_launch at line %d before this thread's pdl_wait", line);
}

}  // namespace simt
