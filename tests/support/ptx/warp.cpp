// What the lanes of a warp do together: shuffles, votes, ldmatrix, mma; and the block's barriers. Layouts: PTX ISA,
// "Matrix fragments for mma.m16n8k16 / m16n8k32" and "ldmatrix".
#include <type_traits>

#include "../simt/tensor_core.h"
#include "numbers.h"
#include "reading.h"

namespace ptx {
namespace {

void shuffle(Warp& w, const Op& op, uint32_t lanes) {  // o: result, predicate or -1, value, lane, clamp; n: mode
  uint32_t values[kLanes], valid = 0;
  each(lanes, [&](int lane) {
    const uint32_t c = get<uint32_t>(w, op.o[4], lane), segment = c >> 8 & 31, clamp = c & 31;
    const int b = int(get<uint32_t>(w, op.o[3], lane) & 31);
    const int most = int((uint32_t(lane) & segment) | (clamp & ~segment)), least = int(uint32_t(lane) & segment);
    int from = lane;
    bool in = false;
    switch (op.n) {
      case 'u': from = lane - b; in = from >= most; break;
      case 'd': from = lane + b; in = from <= most; break;
      case 'b': from = lane ^ b; in = from <= most; break;
      default: from = least | (b & ~int(segment)); in = from <= most; break;
    }
    if (!in) from = lane;
    values[lane] = lanes >> from & 1 ? get<uint32_t>(w, op.o[2], from) : 0xdeadbeefu;
    valid |= uint32_t(in) << lane;
  });
  each(lanes, [&](int lane) { put<uint32_t>(w, op.o[0], lane, values[lane]); });
  if (op.o[1] >= 0) set_predicate(w, op.o[1], lanes, valid);
}
void vote(Warp& w, const Op& op, uint32_t lanes) {  // n: any, all or ballot; o[3]: negated
  const uint32_t p = (op.o[3] ? ~predicate(w, op.o[1]) : predicate(w, op.o[1])) & lanes;
  if (op.n == 'b') {
    each(lanes, [&](int lane) { put<uint32_t>(w, op.o[0], lane, p); });
    return;
  }
  set_predicate(w, op.o[0], lanes, (op.n == 'y' ? p != 0 : p == lanes) ? lanes : 0);
}
template <class T, auto F>
void reduce(Warp& w, const Op& op, uint32_t lanes) {
  T sum = get<T>(w, op.o[1], __builtin_ctz(lanes));
  each(lanes & (lanes - 1), [&](int lane) { sum = F(sum, get<T>(w, op.o[1], lane)); });
  each(lanes, [&](int lane) { put<T>(w, op.o[0], lane, sum); });
}
void nothing(Warp&, const Op&, uint32_t) {}

template <int Count, bool Transposed>
void ldmatrix(Warp& w, const Op& op, uint32_t) {  // o: address, Count results
  uint16_t rows[Count][8][8];
  for (int lane = 0; lane < 8 * Count; ++lane) {
    const uint32_t address = get<uint32_t>(w, op.o[0], lane) + uint32_t(op.n);
    std::memcpy(rows[lane / 8][lane % 8], shared_at(w, address, 16), 16);
  }
  for (int i = 0; i < Count; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4, column = 2 * (lane % 4);
      const uint32_t low = Transposed ? rows[i][column][row] : rows[i][row][column];
      const uint32_t high = Transposed ? rows[i][column + 1][row] : rows[i][row][column + 1];
      put<uint32_t>(w, op.o[1 + i], lane, high << 16 | low);
    }
  }
}

template <class T>
void mma_k16(Warp& w, const Op& op, uint32_t) {  // o: D (4), A (4), B (2), C (4)
  tensor_core::Tile tile;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const uint32_t word = get<uint32_t>(w, op.o[4 + i / 2], lane);
      tile.a[group + 8 * (i / 2 % 2)][2 * member + i % 2 + 8 * (i / 4)] = uint16_t(word >> (i % 2 * 16));
    }
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = get<uint32_t>(w, op.o[8 + i / 2], lane);
      tile.b[2 * member + i % 2 + 8 * (i / 2)][group] = uint16_t(word >> (i % 2 * 16));
    }
    for (int i = 0; i < 4; ++i) tile.c[group + 8 * (i / 2)][2 * member + i % 2] = get<float>(w, op.o[10 + i], lane);
  }
  tensor_core::multiply<std::is_same_v<T, bf16>>(tile);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) put<float>(w, op.o[i], lane, tile.c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2]);
  }
}
void mma_k32_s8(Warp& w, const Op& op, uint32_t) {
  int32_t a[16][32], b[32][8], d[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < 16; ++i) {
      const uint32_t word = get<uint32_t>(w, op.o[4 + i / 4], lane);
      a[group + 8 * (i / 4 % 2)][4 * member + i % 4 + 16 * (i / 8)] = int8_t(word >> (i % 4 * 8));
    }
    for (int i = 0; i < 8; ++i) {
      const uint32_t word = get<uint32_t>(w, op.o[8 + i / 4], lane);
      b[4 * member + i % 4 + 16 * (i / 4)][group] = int8_t(word >> (i % 4 * 8));
    }
    for (int i = 0; i < 4; ++i) d[group + 8 * (i / 2)][2 * member + i % 2] = get<int32_t>(w, op.o[10 + i], lane);
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 32; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) put<int32_t>(w, op.o[i], lane, d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2]);
  }
}

bool read_lanes(const Reader& r) {
  const std::string& name = r.part(0);
  r.op.kind = Kind::kMeet;
  if (name == "shfl") {  // shfl.sync.mode.b32 d|p, a, b, c, mask
    const Operand& to = r.in.operands.at(0);
    r.op.o[0] = resolve(r.registers, to.text, 4);
    r.op.o[1] = to.parts.empty() ? -1 : resolve(r.registers, to.parts[1], 0);
    for (size_t i = 1; i < 4; ++i) r.op.o[1 + i] = r.at(i, 4);
    r.op.members = r.at(4, 4);
    r.op.n = r.part(2)[0];
    return r.run(shuffle);
  }
  if (name == "vote") {  // vote.sync.any.pred p, q, mask
    const Operand& from = r.in.operands.at(1);
    r.op.o[0] = resolve(r.registers, r.in.operands[0].text, r.type() == "pred" ? 0 : 4);
    r.op.o[1] = resolve(r.registers, from.text, 0);
    r.op.o[3] = from.negated;
    r.op.members = r.at(2, 4);
    r.op.n = r.part(2) == "ballot" ? 'b' : r.part(2) == "any" ? 'y' : r.part(2) == "all" ? 'l' : 0;
    if (!r.op.n) fail("a vote that is not known");
    return r.run(vote);
  }
  if (name == "redux") {  // redux.sync.add.u32 d, a, mask
    r.op.o[0] = r.at(0, 4);
    r.op.o[1] = r.at(1, 4);
    r.op.members = r.at(2, 4);
    const auto& what = r.part(2);
    const bool is_signed = r.type() == "s32";
    return r.run(what == "add"   ? reduce<uint32_t, [](uint32_t a, uint32_t b) { return a + b; }>
                 : what == "min" ? (is_signed ? Execute(reduce<int32_t, [](int32_t a, int32_t b) { return std::min(a, b); }>)
                                              : Execute(reduce<uint32_t, [](uint32_t a, uint32_t b) { return std::min(a, b); }>))
                 : what == "max" ? (is_signed ? Execute(reduce<int32_t, [](int32_t a, int32_t b) { return std::max(a, b); }>)
                                              : Execute(reduce<uint32_t, [](uint32_t a, uint32_t b) { return std::max(a, b); }>))
                 : what == "and" ? reduce<uint32_t, [](uint32_t a, uint32_t b) { return a & b; }>
                 : what == "or"  ? reduce<uint32_t, [](uint32_t a, uint32_t b) { return a | b; }>
                 : what == "xor" ? reduce<uint32_t, [](uint32_t a, uint32_t b) { return a ^ b; }>
                                 : nullptr);
  }
  if (name == "bar") {  // bar.warp.sync mask
    if (r.part(1) != "warp") fail("a barrier that is not known");
    r.op.members = r.at(0, 4);
    return r.run(nothing);
  }
  
  if (name == "ldmatrix") {
    r.address(1);
    const auto& to = r.in.operands.at(0).parts;
    for (size_t i = 0; i < to.size(); ++i) r.op.o[1 + i] = resolve(r.registers, to[i], 4);
    const bool transposed = r.has("trans");
    if (r.has("x1")) return r.run(transposed ? ldmatrix<1, true> : ldmatrix<1, false>);
    if (r.has("x2")) return r.run(transposed ? ldmatrix<2, true> : ldmatrix<2, false>);
    return r.run(transposed ? ldmatrix<4, true> : ldmatrix<4, false>);
  }
  size_t o = 0;  // mma
  for (const auto& operand : r.in.operands) {
    for (const auto& part : operand.parts) r.op.o[o++] = resolve(r.registers, part, 4);
  }
  if (o != 14 || !r.has("row") || !r.has("col")) fail("an mma that is not known");
  const bool k16 = r.has("m16n8k16"), floats = r.part(r.in.name.size() - 4) == "f32" && r.type() == "f32";
  if (k16 && floats && r.has("bf16")) return r.run(mma_k16<bf16>);
  if (k16 && floats && r.has("f16")) return r.run(mma_k16<f16>);
  if (r.has("m16n8k32") && r.part(r.in.name.size() - 3) == "s8" && !r.has("satfinite")) return r.run(mma_k32_s8);
  fail("an mma that is not known");
}

// bar.sync id [, threads]; bar.red.popc.u32 d, id, p and .and.pred, .or.pred
bool read_barrier(const Reader& r) {
  r.op.kind = Kind::kBarrier;
  if (r.part(1) == "red") {
    if (r.in.operands.size() != 3) fail("a reducing barrier that is not known");
    r.op.o[0] = r.at(1, 4);
    r.op.o[1] = -1;
    r.op.o[2] = r.at(0, width(r.type()));
    r.op.o[3] = r.at(2, 0);
    r.op.n = r.part(2)[0];
    return r.run(nothing);
  }
  if (r.part(1) != "sync") fail("a barrier that is not known");
  r.op.o[0] = r.at(0, 4);
  r.op.o[1] = r.in.operands.size() > 1 ? r.at(1, 4) : -1;
  return true;
}

}  // namespace

bool read_meeting(const Reader& r) {
  const std::string& name = r.part(0);
  if (name == "bar" && r.part(1) != "warp") return read_barrier(r);
  // Of one warp after the other, in order: nothing has to be waited for.
  if (name == "membar" || name == "fence" || name == "griddepcontrol") return r.run(nothing);
  if (name != "shfl" && name != "vote" && name != "redux" && name != "bar" && name != "ldmatrix" && name != "mma") return false;
  return read_lanes(r);
}

}  // namespace ptx
