// Loads, stores, atomics and asynchronous copies.
#include "reading.h"

namespace ptx {
namespace {

// Shared and global memory, and what generic addresses point to: the host's memory, shared memory's copy in the block.
template <bool Shared>
uint8_t* at(Warp& w, const Op& op, int lane, size_t bytes) {
  if constexpr (Shared) {
    return shared_at(w, get<uint32_t>(w, op.o[0], lane) + uint32_t(op.n), bytes);
  } else {
    const uint64_t address = get<uint64_t>(w, op.o[0], lane) + uint64_t(op.n);
    if (address % bytes) fail("an address of memory is no multiple of " + std::to_string(bytes));
    return reinterpret_cast<uint8_t*>(address);
  }
}
template <class T, int N, bool Shared, class Register = T>
void load(Warp& w, const Op& op, uint32_t lanes) {
  each(lanes, [&](int lane) {
    T values[N];
    std::memcpy(values, at<Shared>(w, op, lane, sizeof values), sizeof values);
    for (int i = 0; i < N; ++i) put<Register>(w, op.o[1 + i], lane, Register(values[i]));
  });
}
template <class T, int N, bool Shared, class Register = T>
void store(Warp& w, const Op& op, uint32_t lanes) {
  each(lanes, [&](int lane) {
    T values[N];
    for (int i = 0; i < N; ++i) values[i] = T(get<Register>(w, op.o[1 + i], lane));
    std::memcpy(at<Shared>(w, op, lane, sizeof values), values, sizeof values);
  });
}
template <class T, bool Shared, auto F>
void atomic(Warp& w, const Op& op, uint32_t lanes) {  // o: address, result, operand
  each(lanes, [&](int lane) {
    uint8_t* p = at<Shared>(w, op, lane, sizeof(T));
    T old;
    std::memcpy(&old, p, sizeof old);
    const T now = F(old, get<T>(w, op.o[2], lane));
    std::memcpy(p, &now, sizeof now);
    put<T>(w, op.o[1], lane, old);
  });
}

void cp_async(Warp& w, const Op& op, uint32_t lanes) {  // o: to, from, bytes to read; n: bytes to write
  each(lanes, [&](int lane) {
    Copy copy{lane, w.group[lane], int(op.n), get<uint32_t>(w, op.o[0], lane), {}};
    shared_at(w, copy.to, size_t(op.n));
    const uint64_t from = get<uint64_t>(w, op.o[1], lane);
    const uint32_t bytes = op.o[2] < 0 ? uint32_t(op.n) : get<uint32_t>(w, op.o[2], lane);
    if (bytes > uint32_t(op.n)) fail("cp.async reads more than it writes");
    if (from % uint64_t(op.n)) fail("cp.async from an address that is no multiple of its size");
    std::memcpy(copy.data, reinterpret_cast<const uint8_t*>(from), bytes);
    std::memset(w.block->shared.data() + copy.to, 0xFF, size_t(op.n));  // until it lands
    w.copies.push_back(copy);
  });
}
void cp_commit(Warp& w, const Op&, uint32_t lanes) {
  each(lanes, [&](int lane) { ++w.group[lane]; });
}
void cp_wait(Warp& w, const Op& op, uint32_t lanes) {  // n: the newest groups that may stay
  std::erase_if(w.copies, [&](const Copy& copy) {
    if (!(lanes >> copy.lane & 1) || copy.group >= w.group[copy.lane] - int(op.n)) return false;
    std::memcpy(w.block->shared.data() + copy.to, copy.data, size_t(copy.bytes));
    return true;
  });
}

template <class T, int N>
Execute memory(bool is_load, bool is_shared, bool is_wide) {
  if constexpr (std::is_integral_v<T>) {  // a register of 64 bits: zeros or the sign above what is loaded
    using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    if (is_wide && is_load) return is_shared ? Execute(load<T, N, true, Wide>) : Execute(load<T, N, false, Wide>);
    if (is_wide) return is_shared ? Execute(store<T, N, true, Wide>) : Execute(store<T, N, false, Wide>);
  }
  if (is_load) return is_shared ? Execute(load<T, N, true>) : Execute(load<T, N, false>);
  return is_shared ? Execute(store<T, N, true>) : Execute(store<T, N, false>);
}

template <class T>
Execute atomics(std::string_view how, bool is_shared) {
  const auto pick = [&](Execute shared, Execute device) { return is_shared ? shared : device; };
#define PTX_ATOMIC(F) pick(atomic<T, true, F>, atomic<T, false, F>)
  if (how == "add") return PTX_ATOMIC(([](T old, T x) { return T(old + x); }));
  if (how == "max") return PTX_ATOMIC(([](T old, T x) { return std::max(old, x); }));
  if (how == "min") return PTX_ATOMIC(([](T old, T x) { return std::min(old, x); }));
  if (how == "inc") return PTX_ATOMIC(([](T old, T x) { return old >= x ? T(0) : T(old + 1); }));
#undef PTX_ATOMIC
  return nullptr;
}

bool read_access(const Reader& r) {
  const bool is_load = r.part(0) == "ld";
  const bool is_shared = r.address(is_load ? 1 : 0);
  const Operand& values = r.in.operands.at(is_load ? 0 : 1);
  const int count = values.parts.empty() ? 1 : int(values.parts.size());
  const int bytes = is_wide_register(r.registers, count == 1 ? values.text : values.parts[0]) ? 8 : 4;
  if (width(r.type()) > bytes) fail("a register narrower than what is loaded");
  const bool is_wide = bytes > width(r.type());
  if ((count > 1) != (r.has("v2") || r.has("v4"))) fail("a vector of another size");
  for (int i = 0; i < count; ++i) {
    r.op.o[1 + i] = resolve(r.registers, count == 1 ? values.text : values.parts[size_t(i)], bytes);
  }
  with_type(r.type(), [&]<class T>(Tag<T>) {
    r.run(count == 1   ? memory<T, 1>(is_load, is_shared, is_wide)
          : count == 2 ? memory<T, 2>(is_load, is_shared, is_wide)
                       : memory<T, 4>(is_load, is_shared, is_wide));
  });
  return true;
}


bool read_copy(const Reader& r) {
  if (r.has("commit_group")) return r.run(cp_commit);
  if (r.has("wait_group")) {
    r.op.n = std::stoll(r.in.operands.at(0).text);
    return r.run(cp_wait);
  }
  const auto& operands = r.in.operands;
  r.op.o[0] = r.at(0, 4);
  r.op.o[1] = r.at(1, 8);
  r.op.n = std::stoll(operands.at(2).text);
  r.op.o[2] = operands.size() > 3 ? r.at(3, 4) : -1;
  const bool known = r.has("async") && (r.op.n == 16 || (r.has("ca") && (r.op.n == 4 || r.op.n == 8)));
  if (!known || operands.size() > 4 || operands[0].offset || operands[1].offset) fail("a cp that is not known");
  return r.run(cp_async);
}

bool read_atomic(const Reader& r) {
  const std::string &type = r.type(), &how = r.part(r.in.name.size() - 2);
  const bool is_shared = r.address(1);
  r.op.o[1] = r.at(0, width(type));
  r.op.o[2] = r.at(2, width(type));
  if (type == "u64") return r.run(atomics<uint64_t>(how, is_shared));
  if (type != "u32") fail("an atom of a type that is not known");
  return r.run(atomics<uint32_t>(how, is_shared));
}

}  // namespace

bool read_memory(const Reader& r) {
  const std::string& name = r.part(0);
  if (name == "ld" || name == "st") return read_access(r);
  if (name == "cp") return read_copy(r);
  return name == "atom" && read_atomic(r);
}

}  // namespace ptx
