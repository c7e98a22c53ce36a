// A PTX machine: what nvcc makes of a kernel, executed on a CPU. One warp at a time, an instruction for all its lanes.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;

struct Warp;
struct Op;
using Execute = void (*)(Warp&, const Op&, uint32_t lanes);

// What the warp's loop does itself; kRun is left to Op::run. kMeet: kRun too, once every lane that the instruction
// names is there. kBarrier: of the block; Op::run is set where the instruction counts predicates.
enum class Kind : uint8_t { kRun, kMeet, kBranch, kExit, kBarrier };

// Operands are byte offsets into a warp's registers: 32 values of 4 bytes (16-bit registers too) or 8, a predicate one
// word with a bit a lane. Immediates, special registers and addresses of variables are registers that nobody writes.
struct Op {
  Execute run = nullptr;
  Kind kind = Kind::kRun;
  bool guard_negated = false;
  int guard = -1;    // of `@%p`: a predicate
  int o[14] = {};
  int members = -1;  // of kMeet: the mask of lanes it names; all where -1
  int64_t n = 0;     // an address's offset, a branch's target, a table, a number of bytes
  int line = 0;      // in the kernel's text
};

struct Kernel {
  std::string name;
  std::vector<Op> code;
  std::vector<uint8_t> registers;  // as a warp starts, addresses of parameters and special registers not yet set
  size_t static_shared = 0;        // dynamic shared memory begins behind it
  std::vector<std::pair<int, int>> parameters;           // offset and size, in order
  std::vector<std::pair<int, int>> parameter_addresses;  // register, offset of the parameter that it points to
  int parameter_bytes = 0;
  int tid[3] = {-1, -1, -1}, ctaid[3] = {-1, -1, -1};    // special registers, -1 where unused
  int ntid[3] = {-1, -1, -1}, nctaid[3] = {-1, -1, -1}, laneid = -1;
};

struct Copy {  // a cp.async that has not landed
  int lane, group, bytes;
  uint32_t to;
  uint8_t data[16];
};

struct Block {
  const Kernel* kernel;
  std::vector<uint8_t> shared;
  int threads;
};

struct Warp {
  Block* block;
  std::vector<uint8_t> registers;
  uint32_t alive = 0;
  int pc[kLanes] = {};
  int group[kLanes] = {};  // of cp.async, being filled
  std::vector<Copy> copies;
  int barrier = -1, barrier_threads = 0;  // where it waits
  const Op* barrier_op = nullptr;
};

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error("PTX: " + what); }

// Text to kernels; a kernel whose text has what the machine doesn't know is refused.
std::vector<Kernel> parse(std::string_view text);

// arguments: a pointer to each parameter's value.
void launch(const Kernel& kernel, const unsigned grid[3], const unsigned threads[3], size_t dynamic_shared,
            void** arguments);

}  // namespace ptx
