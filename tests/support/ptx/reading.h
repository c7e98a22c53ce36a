// An instruction as it is written, on its way to an Op.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "lanes.h"

namespace ptx {

struct Operand {
  std::string text;                // a register, a number or a name; of an address its base
  std::vector<std::string> parts;  // of {a, b}, or of a|b
  int64_t offset = 0;              // of an address
  bool address = false, negated = false;
};
struct Instruction {
  std::vector<std::string> name;  // split at the dots
  std::vector<Operand> operands;
};

class Registers;  // of the kernel being read (parse.cpp)
bool is_wide_register(const Registers&, const std::string& text);         // of 64 bits
int resolve(Registers&, const std::string& text, int bytes);  // bytes: 4 or 8 a lane, 0 for a predicate

template <class T>
struct Tag {
  using type = T;
};
// Calls f(Tag<T>) of the type that a name's part spells; b32 and the like as unsigned.
template <class F>
bool with_type(std::string_view t, F f) {
  if (t == "u8" || t == "b8") return f(Tag<uint8_t>{}), true;
  if (t == "s8") return f(Tag<int8_t>{}), true;
  if (t == "u16" || t == "b16") return f(Tag<uint16_t>{}), true;
  if (t == "s16") return f(Tag<int16_t>{}), true;
  if (t == "u32" || t == "b32") return f(Tag<uint32_t>{}), true;
  if (t == "s32") return f(Tag<int32_t>{}), true;
  if (t == "u64" || t == "b64") return f(Tag<uint64_t>{}), true;
  if (t == "s64") return f(Tag<int64_t>{}), true;
  if (t == "f32") return f(Tag<float>{}), true;
  if (t == "f64") return f(Tag<double>{}), true;
  return false;
}
inline int width(std::string_view type) { return type == "pred" ? 0 : type.ends_with("64") ? 8 : 4; }


struct Reader {
  const Instruction& in;
  Registers& registers;
  Op& op;

  const std::string& part(size_t i) const { return in.name.at(i); }
  const std::string& type() const { return in.name.back(); }
  bool has(std::string_view what) const { return std::find(in.name.begin(), in.name.end(), what) != in.name.end(); }
  int at(size_t i, int bytes) const {
    const Operand& operand = in.operands.at(i);
    if (operand.negated) fail("a negated operand");
    return resolve(registers, operand.text, bytes);
  }
  void set(std::initializer_list<int> widths) const {
    size_t i = 0;
    for (const int bytes : widths) {
      op.o[i] = at(i, bytes);
      ++i;
    }
    if (in.operands.size() != widths.size()) fail("another number of operands");
  }
  bool run(Execute f) const {
    if (!f) fail("an instruction that is not known");
    op.run = f;
    return true;
  }
  // An address: its base to o[0], what is added to n. True: in shared memory.
  bool address(size_t i) const {
    const bool is_shared = has("shared") || (part(0) == "ldmatrix");
    op.o[0] = at(i, is_shared ? 4 : 8);
    op.n = in.operands[i].offset;
    return is_shared;
  }
};

// Each says whether the instruction is one of its own, and fills the Op; fails where it is not known in this form.
bool read_arithmetic(const Reader&);  // arithmetic.cpp: and comparisons, selections, bits
bool read_conversion(const Reader&);  // convert.cpp: mov, cvt, cvta
bool read_memory(const Reader&);      // memory.cpp: ld, st, atom, cp.async
bool read_meeting(const Reader&);     // warp.cpp: what lanes do together, and the block's barriers

}  // namespace ptx
