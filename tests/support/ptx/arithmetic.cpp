// Arithmetic, comparisons, selections and bits, lane by lane.
#include "numbers.h"
#include "reading.h"

namespace ptx {
namespace {

float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }

template <class T, auto F>
void compare(Warp& w, const Op& op, uint32_t lanes) {
  uint32_t bits = 0;
  each(lanes, [&](int lane) { bits |= uint32_t(F(get<T>(w, op.o[1], lane), get<T>(w, op.o[2], lane))) << lane; });
  set_predicate(w, op.o[0], lanes, bits);
}
template <class T>
void select(Warp& w, const Op& op, uint32_t lanes) {
  const uint32_t p = predicate(w, op.o[3]);
  each(lanes, [&](int lane) { put<T>(w, op.o[0], lane, get<T>(w, op.o[p >> lane & 1 ? 1 : 2], lane)); });
}
template <auto F>
void logic(Warp& w, const Op& op, uint32_t lanes) {
  set_predicate(w, op.o[0], lanes, F(predicate(w, op.o[1]), predicate(w, op.o[2])));
}

template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
Execute arithmetic(std::string_view name) {
  if constexpr (std::is_floating_point_v<T>) {
    if (name == "add") return binary<T, T, T, [](T a, T b) { return a + b; }>;
    if (name == "sub") return binary<T, T, T, [](T a, T b) { return a - b; }>;
    if (name == "mul") return binary<T, T, T, [](T a, T b) { return a * b; }>;
    if (name == "div") return binary<T, T, T, [](T a, T b) { return a / b; }>;
    if (name == "min") return binary<T, T, T, [](T a, T b) { return (std::isnan(a) || (b < a)) ? b : a; }>;
    if (name == "max") return binary<T, T, T, [](T a, T b) { return (std::isnan(a) || (b > a)) ? b : a; }>;
    if (name == "copysign") return binary<T, T, T, [](T a, T b) { return std::copysign(b, a); }>;
    if (name == "abs") return unary<T, T, [](T a) { return std::fabs(a); }>;
    if (name == "neg") return unary<T, T, [](T a) { return -a; }>;
    if (name == "rcp") return unary<T, T, [](T a) { return 1 / a; }>;
    if (name == "sqrt") return unary<T, T, [](T a) { return std::sqrt(a); }>;
    if (name == "fma") return ternary<T, T, T, T, [](T a, T b, T c) { return std::fma(a, b, c); }>;
  } else {
    using U = Unsigned<T>;
    if (name == "add") return binary<T, T, T, [](T a, T b) { return T(U(a) + U(b)); }>;
    if (name == "sub") return binary<T, T, T, [](T a, T b) { return T(U(a) - U(b)); }>;
    if (name == "mul") return binary<T, T, T, [](T a, T b) { return T(uint64_t(a) * uint64_t(b)); }>;  // .lo
    if (name == "mad") {
      return ternary<T, T, T, T, [](T a, T b, T c) { return T(uint64_t(a) * uint64_t(b) + uint64_t(c)); }>;
    }
    if (name == "div") {
      return binary<T, T, T, [](T a, T b) { return b == 0 ? T(-1) : b == T(-1) && T(-1) < 0 ? T(-U(a)) : T(a / b); }>;
    }
    if (name == "rem") {
      return binary<T, T, T, [](T a, T b) { return b == 0 ? a : b == T(-1) && T(-1) < 0 ? T(0) : T(a % b); }>;
    }
    if (name == "min") return binary<T, T, T, [](T a, T b) { return std::min(a, b); }>;
    if (name == "max") return binary<T, T, T, [](T a, T b) { return std::max(a, b); }>;
    if (name == "abs") return unary<T, T, [](T a) { return T(a < 0 ? -U(a) : U(a)); }>;
    if (name == "neg") return unary<T, T, [](T a) { return T(-U(a)); }>;
    if (name == "not") return unary<T, T, [](T a) { return T(~a); }>;
    if (name == "and") return binary<T, T, T, [](T a, T b) { return T(a & b); }>;
    if (name == "or") return binary<T, T, T, [](T a, T b) { return T(a | b); }>;
    if (name == "xor") return binary<T, T, T, [](T a, T b) { return T(a ^ b); }>;
    if (name == "shl") return binary<T, T, uint32_t, [](T a, uint32_t b) { return b >= 8 * sizeof(T) ? T(0) : T(U(a) << b); }>;
    if (name == "shr") {
      return binary<T, T, uint32_t, [](T a, uint32_t b) {
        constexpr uint32_t bits = 8 * sizeof(T);
        return std::is_signed_v<T> ? T(a >> std::min(b, bits - 1)) : b >= bits ? T(0) : T(a >> b);
      }>;
    }
    if (name == "popc") return unary<uint32_t, T, [](T a) { return uint32_t(__builtin_popcountll(U(a))); }>;
    if (name == "brev") {
      return unary<T, T, [](T a) {
        U r = 0;
        for (size_t i = 0; i < 8 * sizeof(T); ++i) r = U(r << 1 | (U(a) >> i & 1));
        return T(r);
      }>;
    }
  }
  return nullptr;
}

template <class T>
Execute comparison(std::string_view how) {
  if (how == "eq") return compare<T, [](T a, T b) { return a == b; }>;
  if (how == "lt" || how == "lo") return compare<T, [](T a, T b) { return a < b; }>;
  if (how == "le" || how == "ls") return compare<T, [](T a, T b) { return a <= b; }>;
  if (how == "gt" || how == "hi") return compare<T, [](T a, T b) { return (a > b); }>;
  if (how == "ge" || how == "hs") return compare<T, [](T a, T b) { return a >= b; }>;
  if constexpr (std::is_floating_point_v<T>) {
    if (how == "ne") return compare<T, [](T a, T b) { return (a < b) || (a > b); }>;
    if (how == "equ") return compare<T, [](T a, T b) { return !((a < b) || (a > b)); }>;
    if (how == "neu") return compare<T, [](T a, T b) { return !(a == b); }>;
    if (how == "ltu") return compare<T, [](T a, T b) { return !(a >= b); }>;
    if (how == "leu") return compare<T, [](T a, T b) { return !(a > b); }>;
    if (how == "gtu") return compare<T, [](T a, T b) { return !(a <= b); }>;
    if (how == "geu") return compare<T, [](T a, T b) { return !(a < b); }>;
    if (how == "num") return compare<T, [](T a, T b) { return !std::isnan(a) && !std::isnan(b); }>;
    if (how == "nan") return compare<T, [](T a, T b) { return std::isnan(a) || std::isnan(b); }>;
  } else {
    if (how == "ne") return compare<T, [](T a, T b) { return a != b; }>;
  }
  return nullptr;
}

template <class T>
uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int i = 0; i < 32; i += 16) {
    const auto value = [i](uint32_t x) { return double(widen(T{uint16_t(x >> i)})); };
    r |= uint32_t(narrow<T>(value(a) * value(b) + value(c)).bits) << i;
  }
  return r;
}

// d, a, b, position, length: a's lowest bits into b.
template <class T>
void insert_bits(Warp& w, const Op& op, uint32_t lanes) {
  each(lanes, [&](int lane) {
    const uint32_t position = get<uint32_t>(w, op.o[3], lane) & 255, length = get<uint32_t>(w, op.o[4], lane) & 255;
    const T a = get<T>(w, op.o[1], lane);
    T b = get<T>(w, op.o[2], lane);
    for (uint32_t i = 0; i < length && position + i < 8 * sizeof(T); ++i) {
      b = (b & ~(T(1) << (position + i))) | ((a >> i) & 1) << (position + i);
    }
    put<T>(w, op.o[0], lane, b);
  });
}

void lop3(Warp& w, const Op& op, uint32_t lanes) {  // n: the table
  each(lanes, [&](int lane) {
    const uint32_t a = get<uint32_t>(w, op.o[1], lane), b = get<uint32_t>(w, op.o[2], lane);
    const uint32_t c = get<uint32_t>(w, op.o[3], lane);
    uint32_t d = 0;
    for (int i = 0; i < 8; ++i) {
      if (op.n >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    }
    put<uint32_t>(w, op.o[0], lane, d);
  });
}

uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {  // prmt without a mode
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = (selector >> (4 * i)) & 15;
    const uint32_t byte = uint32_t((uint64_t(b) << 32 | a) >> (8 * (s & 7))) & 255;
    d |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
  }
  return d;
}

template <class D, class A>
D wide_product(A a, A b) {
  return D(a) * D(b);
}
template <class D, class A, int Shift>
A high_product(A a, A b) {
  return A((D(a) * D(b)) >> Shift);
}

bool read_bits(const Reader& r, const std::string& name, int bytes) {
  if (name == "lop3") {
    r.op.n = std::stoll(r.in.operands.at(4).text);
    for (size_t i = 0; i < 4; ++i) r.op.o[i] = r.at(i, 4);
    return r.run(lop3);
  }
  if (name == "prmt") {
    r.set({4, 4, 4, 4});
    if (r.in.name.size() > 2) fail("a mode of prmt");
    return r.run(ternary<uint32_t, uint32_t, uint32_t, uint32_t, permuted>);
  }
  if (name == "bfi") {
    r.set({bytes, bytes, bytes, 4, 4});
    return r.run(bytes == 8 ? insert_bits<uint64_t> : insert_bits<uint32_t>);
  }
  if (name == "bfind") {
    r.set({4, 4});
    if (!r.has("shiftamt") || r.type() != "u32") fail("a bfind that is not known");
    return r.run(unary<uint32_t, uint32_t, [](uint32_t x) { return x ? uint32_t(__builtin_clz(x)) : ~0u; }>);
  }
  return false;
}

bool read_approximation(const Reader& r, const std::string& name) {
  const int bytes = width(r.type());
  r.set({bytes, bytes});
  if (r.type() == "f64" && name == "rcp") {  // the upper word alone
    return r.run(unary<double, double, [](double x) { return as<double>(as<uint64_t>(1 / x) & ~uint64_t(~0u)); }>);
  }
  if (r.type() != "f32" || !r.has("ftz")) fail("an approximation that is not known");
  return r.run(name == "ex2"     ? unary<float, float, [](float x) { return flushed(std::exp2(flushed(x))); }>
               : name == "lg2"   ? unary<float, float, [](float x) { return std::log2(flushed(x)); }>
               : name == "rcp"   ? unary<float, float, [](float x) { return flushed(1 / flushed(x)); }>
               : name == "rsqrt" ? unary<float, float, [](float x) { return 1 / std::sqrt(flushed(x)); }>
                                 : nullptr);
}

bool read_product(const Reader& r, const std::string& type, int bytes) {  // mul.wide, mul.hi
  if (r.has("wide")) {
    const int to = bytes == 4 && type.ends_with("32") ? 8 : 4;
    r.set({to, bytes, bytes});
    return r.run(type == "s32"   ? binary<int64_t, int32_t, int32_t, wide_product<int64_t, int32_t>>
                 : type == "u32" ? binary<uint64_t, uint32_t, uint32_t, wide_product<uint64_t, uint32_t>>
                 : type == "s16" ? binary<int32_t, int16_t, int16_t, wide_product<int32_t, int16_t>>
                 : type == "u16" ? binary<uint32_t, uint16_t, uint16_t, wide_product<uint32_t, uint16_t>>
                                 : nullptr);
  }
  __extension__ using Wide = unsigned __int128;
  r.set({bytes, bytes, bytes});
  return r.run(type == "s32"   ? binary<int32_t, int32_t, int32_t, high_product<int64_t, int32_t, 32>>
               : type == "u32" ? binary<uint32_t, uint32_t, uint32_t, high_product<uint64_t, uint32_t, 32>>
               : type == "u64" ? binary<uint64_t, uint64_t, uint64_t, high_product<Wide, uint64_t, 64>>
                               : nullptr);
}

bool read_logic(const Reader& r, const std::string& name) {  // of predicates
  if (name == "not" || name == "mov") {
    r.set({0, 0});
    r.op.o[2] = r.op.o[1];
    return r.run(name == "not" ? logic<[](uint32_t a, uint32_t) { return ~a; }> : logic<[](uint32_t a, uint32_t) { return a; }>);
  }
  r.set({0, 0, 0});
  return r.run(name == "and"   ? logic<[](uint32_t a, uint32_t b) { return a & b; }>
               : name == "or"  ? logic<[](uint32_t a, uint32_t b) { return a | b; }>
               : name == "xor" ? logic<[](uint32_t a, uint32_t b) { return a ^ b; }>
                               : nullptr);
}

}  // namespace

bool read_arithmetic(const Reader& r) {
  const std::string &name = r.part(0), &type = r.type();
  const int bytes = width(type);
  if (name == "setp") {
    r.set({0, bytes, bytes});
    return with_type(type, [&]<class T>(Tag<T>) { r.run(comparison<T>(r.part(1))); });
  }
  if (name == "selp") {
    r.set({bytes, bytes, bytes, 0});
    return r.run(bytes == 8 ? select<uint64_t> : select<uint32_t>);
  }
  if (type == "pred") return read_logic(r, name);
  if (read_bits(r, name, bytes)) return true;
  if (name == "mul" && (r.has("wide") || r.has("hi"))) return read_product(r, type, bytes);
  if (name == "fma" && type.ends_with("x2")) {
    r.set({4, 4, 4, 4});
    return r.run(type == "bf16x2" ? ternary<uint32_t, uint32_t, uint32_t, uint32_t, fma2<bf16>>
                                  : ternary<uint32_t, uint32_t, uint32_t, uint32_t, fma2<f16>>);
  }
  if (r.has("approx")) return read_approximation(r, name);
  if (r.has("ftz") || r.has("sat") || r.has("full")) fail("a rounding that is not known");
  Execute f = nullptr;
  with_type(type, [&]<class T>(Tag<T>) { f = arithmetic<T>(name); });
  if (!f) return false;
  switch (r.in.operands.size()) {
    case 2: r.set({name == "popc" ? 4 : bytes, bytes}); break;
    case 3: r.set({bytes, bytes, name == "shl" || name == "shr" ? 4 : bytes}); break;
    default: r.set({bytes, bytes, bytes, bytes}); break;
  }
  return r.run(f);
}

}  // namespace ptx
