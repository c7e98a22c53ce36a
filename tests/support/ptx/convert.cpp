// Moves, conversions between types, and between kinds of addresses.
#include "numbers.h"
#include "reading.h"

namespace ptx {
namespace {

// Floats to integers saturate, NaN becomes 0.
template <class D, class A, bool Truncate>
D converted(A x) {
  if constexpr (std::is_floating_point_v<A> && std::is_integral_v<D>) {
    if (std::isnan(x)) return 0;
    const double r = Truncate ? std::trunc(double(x)) : std::nearbyint(double(x));
    if (r <= double(std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
    if (r >= std::ldexp(1.0, std::numeric_limits<D>::digits)) return std::numeric_limits<D>::max();
    return D(r);
  } else {
    return D(x);
  }
}
template <class D, class A>
Execute conversion(bool truncate, bool to_integral) {
  if constexpr (std::is_same_v<D, A> && std::is_floating_point_v<A>) {
    if (to_integral) return truncate ? unary<D, A, [](A a) { return D(std::trunc(a)); }> : unary<D, A, [](A a) { return D(std::nearbyint(a)); }>;
  }
  return truncate ? unary<D, A, converted<D, A, true>> : unary<D, A, converted<D, A, false>>;
}


template <class T>
T same(T x) {
  return x;
}
template <class Whole, class Half>
Whole joined(Half low, Half high) {
  return Whole(Whole(high) << 8 * sizeof(Half) | low);
}
template <class Half, class Whole>
void take_apart(Warp& w, const Op& op, uint32_t lanes) {
  each(lanes, [&](int lane) {
    const Whole x = get<Whole>(w, op.o[2], lane);
    put<Half>(w, op.o[0], lane, Half(x));
    put<Half>(w, op.o[1], lane, Half(x >> 8 * sizeof(Half)));
  });
}
// Shared memory's generic address is that of the block's bytes on the host.
void generic_address(Warp& w, const Op& op, uint32_t lanes) {
  const auto base = reinterpret_cast<uint64_t>(w.block->shared.data());
  each(lanes, [&](int lane) { put<uint64_t>(w, op.o[0], lane, base + get<uint64_t>(w, op.o[1], lane)); });
}

bool read_move(const Reader& r) {
  const std::string& type = r.type();
  const Operand &to = r.in.operands.at(0), &from = r.in.operands.at(1);
  if (!to.parts.empty()) {  // taken apart
    const bool wide = type == "b64";
    r.op.o[0] = resolve(r.registers, to.parts.at(0), 4);
    r.op.o[1] = resolve(r.registers, to.parts.at(1), 4);
    r.op.o[2] = resolve(r.registers, from.text, wide ? 8 : 4);
    r.run(wide ? take_apart<uint32_t, uint64_t> : take_apart<uint16_t, uint32_t>);
  } else if (!from.parts.empty()) {  // put together
    if (from.parts.size() != 2) fail("more than two parts");
    r.op.o[0] = resolve(r.registers, to.text, width(type));
    r.op.o[1] = resolve(r.registers, from.parts[0], 4);
    r.op.o[2] = resolve(r.registers, from.parts[1], 4);
    r.run(type == "b64" ? binary<uint64_t, uint32_t, uint32_t, joined<uint64_t, uint32_t>>
                        : binary<uint32_t, uint16_t, uint16_t, joined<uint32_t, uint16_t>>);
  } else {
    r.set({width(type), width(type)});
    r.run(width(type) == 8 ? unary<uint64_t, uint64_t, same<uint64_t>> : unary<uint32_t, uint32_t, same<uint32_t>>);
  }
  return true;
}

template <class T>
uint32_t pack2(float high, float low) {
  return uint32_t(narrow<T>(double(high)).bits) << 16 | narrow<T>(double(low)).bits;
}

bool read_number_conversion(const Reader& r) {
  const std::string& from = r.type();
  const std::string& to = r.in.name.at(r.in.name.size() - 2);
  if (to == "bf16x2" || (to == "f16x2" && from == "f32")) {
    r.set({4, 4, 4});
    return r.run(to == "bf16x2" ? binary<uint32_t, float, float, pack2<bf16>> : binary<uint32_t, float, float, pack2<f16>>);
  }
  if (to == "f16x2" && from == "e4m3x2") {
    r.set({4, 4});
    return r.run(unary<uint32_t, uint16_t, [](uint16_t x) { return pack2<f16>(e4m3(uint8_t(x >> 8)), e4m3(uint8_t(x))); }>);
  }
  if (to == "e4m3x2" && r.has("satfinite")) {
    r.set({4, 4, 4});
    return r.run(binary<uint16_t, float, float, [](float a, float b) { return uint16_t(to_e4m3(a) << 8 | to_e4m3(b)); }>);
  }
  const bool is_wide = is_wide_register(r.registers, r.in.operands.at(1).text) && width(from) == 4;
  r.set({width(to), is_wide ? 8 : width(from)});
  if (from == "f16" && to == "f32") return r.run(unary<float, uint16_t, [](uint16_t x) { return widen(f16{x}); }>);
  if (from == "bf16" && to == "f32") return r.run(unary<float, uint16_t, [](uint16_t x) { return widen(bf16{x}); }>);
  if (from == "f32" && to == "f16") return r.run(unary<uint16_t, float, [](float x) { return narrow<f16>(x).bits; }>);
  if (from == "f32" && to == "bf16") return r.run(unary<uint16_t, float, [](float x) { return narrow<bf16>(x).bits; }>);
  const bool known = with_type(to, [&]<class D>(Tag<D>) {
    with_type(from, [&]<class A>(Tag<A>) {
      if constexpr (std::is_integral_v<A>) {
        if (is_wide) return void(r.run(unary<D, uint64_t, [](uint64_t x) { return D(A(x)); }>));
      }
      r.run(conversion<D, A>(r.has("rzi"), r.has("rzi") || r.has("rni")));
    });
  });
  if (!known) fail("a conversion that is not known");
  return true;
}

}  // namespace

bool read_conversion(const Reader& r) {
  const std::string& name = r.part(0);
  if (name == "mov" && r.type() != "pred") return read_move(r);
  if (name == "cvt") return read_number_conversion(r);
  if (name != "cvta") return false;
  r.set({8, 8});
  if (r.part(1) == "shared") return r.run(generic_address);
  if (r.part(1) != "global" && r.part(2) != "global") fail("a cvta that is not known");
  return r.run(unary<uint64_t, uint64_t, same<uint64_t>>);
}

}  // namespace ptx
