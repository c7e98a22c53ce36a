// Registers of a warp by lane, and instructions of one result that work lane by lane.
#pragma once

#include <cstring>
#include <type_traits>

#include "machine.h"

namespace ptx {

template <class T>
inline T as(auto x) {
  static_assert(sizeof(T) <= sizeof(x));
  T y;
  std::memcpy(&y, &x, sizeof(T));
  return y;
}

template <class T>
using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class T>
inline T get(const Warp& w, int o, int lane) {
  return as<T>(reinterpret_cast<const Word<T>*>(w.registers.data() + o)[lane]);
}
template <class T>
inline void put(Warp& w, int o, int lane, T x) {
  Word<T> word = 0;
  if constexpr (std::is_integral_v<T>) {
    word = Word<T>(x);  // the sign above a narrow one
  } else {
    std::memcpy(&word, &x, sizeof(T));
  }
  reinterpret_cast<Word<T>*>(w.registers.data() + o)[lane] = word;
}
inline uint32_t& predicate(Warp& w, int o) { return *reinterpret_cast<uint32_t*>(w.registers.data() + o); }
inline void set_predicate(Warp& w, int o, uint32_t lanes, uint32_t bits) {
  predicate(w, o) = (predicate(w, o) & ~lanes) | (bits & lanes);
}

inline uint8_t* shared_at(Warp& w, uint32_t address, size_t bytes) {
  if (address % bytes) fail("an address of shared memory is no multiple of " + std::to_string(bytes));
  if (address + bytes > w.block->shared.size()) fail("beyond shared memory, at " + std::to_string(address));
  return w.block->shared.data() + address;
}

template <class F>
inline void each(uint32_t lanes, F f) {
  if (lanes == ~0u) {  // the compiler makes vectors of this one
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  } else {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lanes >> lane & 1) f(lane);
    }
  }
}

template <class D, class A, auto F>
void unary(Warp& w, const Op& op, uint32_t lanes) {
  each(lanes, [&](int lane) { put<D>(w, op.o[0], lane, F(get<A>(w, op.o[1], lane))); });
}
template <class D, class A, class B, auto F>
void binary(Warp& w, const Op& op, uint32_t lanes) {
  each(lanes, [&](int lane) { put<D>(w, op.o[0], lane, F(get<A>(w, op.o[1], lane), get<B>(w, op.o[2], lane))); });
}
template <class D, class A, class B, class C, auto F>
void ternary(Warp& w, const Op& op, uint32_t lanes) {
  each(lanes, [&](int lane) {
    put<D>(w, op.o[0], lane, F(get<A>(w, op.o[1], lane), get<B>(w, op.o[2], lane), get<C>(w, op.o[3], lane)));
  });
}

}  // namespace ptx
