// A launch: blocks one after the other, the warps of a block in turn, each until it waits or ends.
//
// Lanes of a warp that part go on one group after the other, the one furthest behind first: it meets the others where
// the paths come together again. An instruction that names lanes (shuffles, votes, mma, ldmatrix, bar.warp.sync) waits
// for them.
#include <algorithm>
#include <climits>

#include "lanes.h"

namespace ptx {
namespace {

std::string where(const Warp& w, const Op& op) {
  return w.block->kernel->name + " line " + std::to_string(op.line);
}

// The nearest place at or behind pc where lanes other than these are.
int next_stop(const Warp& w, uint32_t lanes, int pc) {
  int next = INT_MAX;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((w.alive & ~lanes) >> lane & 1 && w.pc[lane] >= pc) next = std::min(next, w.pc[lane]);
  }
  return next;
}

// Runs the warp until it waits at a barrier or has ended.
void advance(Warp& w) {
  const auto& code = w.block->kernel->code;
  uint32_t waiting = 0;  // lanes at an instruction that others must come to
  while (w.alive) {
    int pc = INT_MAX;
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((w.alive & ~waiting) >> lane & 1) pc = std::min(pc, w.pc[lane]);
    }
    if (pc == INT_MAX) {
      fail("lanes that an instruction names don't come to it: " + where(w, code[size_t(w.pc[__builtin_ctz(w.alive)])]));
    }
    uint32_t lanes = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (w.alive >> lane & 1 && w.pc[lane] == pc) lanes |= 1u << lane;
    }
    waiting &= ~lanes;
    int next = next_stop(w, lanes, pc);
    while (lanes && pc < next) {
      const Op& op = code[size_t(pc)];
      uint32_t active = lanes;
      if (op.guard >= 0) {
        const uint32_t p = predicate(w, op.guard);
        active &= op.guard_negated ? ~p : p;
      }
      if (op.kind == Kind::kRun) {
        if (active) op.run(w, op, active);
        ++pc;
      } else if (!active) {
        ++pc;
      } else if (op.kind == Kind::kBranch) {
        if (active != lanes) {
          for (int lane = 0; lane < kLanes; ++lane) {
            if (active >> lane & 1) w.pc[lane] = int(op.n);
          }
          lanes &= ~active;
          ++pc;
          break;
        }
        pc = int(op.n);
        next = next_stop(w, lanes, pc);
      } else if (op.kind == Kind::kExit) {
        w.alive &= ~active;
        lanes &= ~active;
        ++pc;
      } else {
        const bool is_barrier = op.kind == Kind::kBarrier;
        const uint32_t named = is_barrier      ? w.alive
                               : op.members < 0 ? ~0u
                                              : get<uint32_t>(w, op.members, __builtin_ctz(active));
        if (active != named) {
          waiting |= lanes;
          break;
        }
        ++pc;
        if (is_barrier) {
          w.barrier = int(get<uint32_t>(w, op.o[0], __builtin_ctz(active)));
          w.barrier_threads = op.o[1] < 0 ? 0 : int(get<uint32_t>(w, op.o[1], __builtin_ctz(active)));
          w.barrier_op = &op;
          std::fill(w.pc, w.pc + kLanes, pc);
          return;
        }
        op.run(w, op, active);
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lanes >> lane & 1) w.pc[lane] = pc;
    }
  }
}

void run_block(Block& block, std::vector<Warp>& warps, const std::vector<uint8_t>& parameters, const unsigned ids[3],
               const unsigned grid[3], const unsigned threads[3]) {
  const Kernel& kernel = *block.kernel;
  std::fill(block.shared.begin(), block.shared.end(), uint8_t(0xFF));
  int first = 0;
  for (Warp& w : warps) {
    std::copy(kernel.registers.begin(), kernel.registers.end(), w.registers.begin());
    const int count = std::min(block.threads - first, kLanes);
    w.alive = count == kLanes ? ~0u : (1u << count) - 1;
    std::fill(w.pc, w.pc + kLanes, 0);
    std::fill(w.group, w.group + kLanes, 0);
    w.copies.clear();
    w.barrier = -1;
    for (const auto& [o, offset] : kernel.parameter_addresses) {
      each(~0u, [&, o = o, offset = offset](int lane) {
        put<uint64_t>(w, o, lane, reinterpret_cast<uint64_t>(parameters.data() + offset));
      });
    }
    each(~0u, [&](int lane) {
      const unsigned thread = unsigned(first + lane);
      const unsigned tid[3] = {thread % threads[0], thread / threads[0] % threads[1], thread / threads[0] / threads[1]};
      for (int i = 0; i < 3; ++i) {
        if (kernel.tid[i] >= 0) put<uint32_t>(w, kernel.tid[i], lane, tid[i]);
        if (kernel.ctaid[i] >= 0) put<uint32_t>(w, kernel.ctaid[i], lane, ids[i]);
        if (kernel.ntid[i] >= 0) put<uint32_t>(w, kernel.ntid[i], lane, threads[i]);
        if (kernel.nctaid[i] >= 0) put<uint32_t>(w, kernel.nctaid[i], lane, grid[i]);
      }
      if (kernel.laneid >= 0) put<uint32_t>(w, kernel.laneid, lane, uint32_t(lane));
    });
    first += kLanes;
  }
  while (true) {
    for (Warp& w : warps) {
      if (w.alive && w.barrier < 0) advance(w);
    }
    bool over = true, moved = false;
    for (Warp& w : warps) {
      if (!w.alive) continue;
      over = false;
      int arrived = 0, there = 0;
      for (const Warp& other : warps) {
        if (!other.alive) continue;
        there += __builtin_popcount(other.alive);
        if (other.barrier == w.barrier) arrived += __builtin_popcount(other.alive);
      }
      if (w.barrier >= 0 && arrived == (w.barrier_threads ? w.barrier_threads : there)) {
        const int id = w.barrier;
        int count = 0;
        for (const Warp& other : warps) {
          if (other.alive && other.barrier == id && other.barrier_op->run) {
            count += __builtin_popcount(predicate(const_cast<Warp&>(other), other.barrier_op->o[3]) & other.alive);
          }
        }
        for (Warp& other : warps) {
          if (!other.alive || other.barrier != id) continue;
          if (const Op& op = *other.barrier_op; op.run) {  // bar.red
            if (op.n == 'p') each(other.alive, [&](int lane) { put<uint32_t>(other, op.o[2], lane, uint32_t(count)); });
            else set_predicate(other, op.o[2], ~0u, (op.n == 'o' ? count > 0 : count == arrived) ? ~0u : 0u);
          }
          other.barrier = -1;
        }
        moved = true;
        break;
      }
    }
    if (over) return;
    if (!moved) fail("a barrier that not all threads come to: " + kernel.name);
  }
}

}  // namespace

void launch(const Kernel& kernel, const unsigned grid[3], const unsigned threads[3], size_t dynamic_shared, void** arguments) {
  std::vector<uint8_t> storage(size_t(kernel.parameter_bytes) + 64);
  for (size_t i = 0; i < kernel.parameters.size(); ++i) {
    const auto [offset, size] = kernel.parameters[i];
    std::memcpy(storage.data() + offset, arguments[i], size_t(size));
  }
  Block block{&kernel, std::vector<uint8_t>(kernel.static_shared + dynamic_shared), int(threads[0] * threads[1] * threads[2])};
  if (block.threads > 1024) fail("a block too large: " + kernel.name);
  std::vector<Warp> warps(size_t((block.threads + kLanes - 1) / kLanes));
  for (Warp& w : warps) {
    w.block = &block;
    w.registers.resize(kernel.registers.size());
  }
  for (unsigned z = 0; z < grid[2]; ++z) {
    for (unsigned y = 0; y < grid[1]; ++y) {
      for (unsigned x = 0; x < grid[0]; ++x) {
        const unsigned ids[3] = {x, y, z};
        run_block(block, warps, storage, ids, grid, threads);
      }
    }
  }
}

}  // namespace ptx
