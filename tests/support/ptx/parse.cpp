// PTX text to kernels. What nvcc writes for kernels without calls, local memory or module variables; all else is refused.
#include <algorithm>
#include <map>
#include <unordered_map>

#include "reading.h"

namespace ptx {

class Registers {
 public:
  explicit Registers(Kernel& kernel) : kernel_(kernel) {}

  void declare(const std::string& type, const std::string& names) {
    const int bytes = type == ".pred" ? 0 : (type.size() == 4 && type.substr(2) == "64") ? 8 : 4;
    for (size_t from = 0; from < names.size();) {
      size_t to = std::min(names.find(',', from), names.size());
      std::string name = names.substr(from, to - from);
      from = to + 1;
      name.erase(std::remove_if(name.begin(), name.end(), [](char c) { return c == ' ' || c == '\t'; }), name.end());
      const size_t range = name.find('<');
      if (range != std::string::npos) {
        const std::string stem = name.substr(0, range);
        const int count = std::stoi(name.substr(range + 1));
        for (int i = 0; i < count; ++i) add(stem + std::to_string(i), bytes);
      } else {
        add(name, bytes);
      }
    }
  }

  void parameter(const std::string& name, int offset) { parameters_[name] = offset; }
  void shared(const std::string& name, int64_t offset) { shared_[name] = offset; }

  bool is_wide(const std::string& text) const {
    const auto found = names_.find(text);
    return found != names_.end() && found->second.second == 8;
  }

  int resolve(const std::string& text, int bytes) {
    if (const auto found = names_.find(text); found != names_.end()) {
      if (found->second.second != bytes) fail("register " + text + " has another width than the instruction");
      return found->second.first;
    }
    if (text[0] == '%') return special(text);
    if (const auto found = parameters_.find(text); found != parameters_.end()) {
      const int o = constant(text, 8, 0);
      kernel_.parameter_addresses.emplace_back(o, found->second);
      return o;
    }
    if (const auto found = shared_.find(text); found != shared_.end()) return constant(text, bytes, uint64_t(found->second));
    uint64_t value = 0;
    if (text.size() > 2 && text[0] == '0' && (text[1] == 'f' || text[1] == 'd')) {
      value = std::stoull(text.substr(2), nullptr, 16);
    } else if (std::isdigit(text[0]) || text[0] == '-') {
      value = text[0] == '-' ? uint64_t(std::stoll(text, nullptr, 0)) : std::stoull(text, nullptr, 0);
    } else {
      fail("unknown name " + text);
    }
    if (bytes == 0) value = value ? ~0u : 0u;
    return constant(text, bytes, value);
  }

 private:
  int add(const std::string& name, int bytes) {
    const auto [at, made] = names_.try_emplace(name, int(kernel_.registers.size()), bytes);
    if (!made && at->second.second != bytes) fail("register " + name + " is declared twice, of two widths");
    if (made) kernel_.registers.resize(kernel_.registers.size() + size_t(bytes ? bytes * kLanes : 64), 0xFF);
    return at->second.first;
  }

  int constant(const std::string& text, int bytes, uint64_t value) {
    const int o = add("=" + text + "/" + std::to_string(bytes), bytes);
    uint8_t* p = kernel_.registers.data() + o;
    if (bytes == 0) {
      const uint32_t bits = uint32_t(value);
      std::memcpy(p, &bits, 4);
    }
    for (int lane = 0; lane < kLanes && bytes; ++lane) std::memcpy(p + lane * bytes, &value, size_t(bytes));
    return o;
  }

  int special(const std::string& text) {
    const size_t dot = text.find('.');
    const std::string name = text.substr(0, dot);
    int* o = nullptr;
    if (dot != std::string::npos) {
      const int axis = text[dot + 1] - 'x';
      o = name == "%tid"      ? &kernel_.tid[axis]
          : name == "%ctaid"  ? &kernel_.ctaid[axis]
          : name == "%ntid"   ? &kernel_.ntid[axis]
          : name == "%nctaid" ? &kernel_.nctaid[axis]
                              : nullptr;
    } else if (name == "%laneid") {
      o = &kernel_.laneid;
    }
    if (!o) fail("unknown special register " + text);
    return *o = add(text, 4);
  }

  Kernel& kernel_;
  std::unordered_map<std::string, std::pair<int, int>> names_;  // offset, bytes a lane
  std::map<std::string, int> parameters_;
  std::map<std::string, int64_t> shared_;
};

bool is_wide_register(const Registers& registers, const std::string& text) { return registers.is_wide(text); }
int resolve(Registers& registers, const std::string& text, int bytes) { return registers.resolve(text, bytes); }

namespace {

std::string trimmed(std::string_view s) {
  const size_t from = s.find_first_not_of(" \t\r\n"), to = s.find_last_not_of(" \t\r\n");
  return from == std::string_view::npos ? "" : std::string(s.substr(from, to - from + 1));
}

std::vector<std::string> split(std::string_view s, char separator) {  // not within brackets
  std::vector<std::string> parts;
  int depth = 0;
  size_t from = 0;
  for (size_t i = 0; i <= s.size(); ++i) {
    if (i < s.size() && (s[i] == '{' || s[i] == '[')) ++depth;
    if (i < s.size() && (s[i] == '}' || s[i] == ']')) --depth;
    if (i == s.size() || (s[i] == separator && depth == 0)) {
      parts.push_back(trimmed(s.substr(from, i - from)));
      from = i + 1;
    }
  }
  return parts;
}

Operand read_operand(const std::string& text) {
  Operand operand;
  std::string s = text;
  if (s[0] == '!') {
    operand.negated = true;
    s = trimmed(s.substr(1));
  }
  if (s[0] == '[') {
    operand.address = true;
    s = trimmed(std::string_view(s).substr(1, s.size() - 2));
    if (const size_t plus = s.find('+'); plus != std::string::npos) {
      operand.offset = std::stoll(s.substr(plus + 1));
      s = trimmed(s.substr(0, plus));
    }
    operand.text = s;
  } else if (s[0] == '{') {
    operand.parts = split(std::string_view(s).substr(1, s.size() - 2), ',');
  } else if (s.find('|') != std::string::npos) {
    operand.parts = split(s, '|');
    operand.text = operand.parts[0];
  } else {
    operand.text = s;
  }
  return operand;
}

int number_after(std::string_view text, std::string_view what) {
  const size_t at = text.find(what);
  return at == std::string_view::npos ? 0 : std::stoi(std::string(text.substr(at + what.size())));
}

// ".shared .align 16 .b8 name[64]", ".param .u32 name": its name, size and alignment.
struct Variable {
  std::string name;
  int bytes, align;
};
Variable read_variable(const std::string& text) {
  const auto words = split(text, ' ');
  Variable v{words.back(), 0, 0};
  for (const auto& word : words) {
    if (word.size() >= 3 && word[0] == '.' && (word[1] == 'b' || word[1] == 'u' || word[1] == 's' || word[1] == 'f') &&
        std::isdigit(word[2])) {
      v.bytes = std::stoi(word.substr(2)) / 8;
    }
  }
  if (!v.bytes) fail("a variable without a type: " + text);
  v.align = std::max(number_after(text, ".align "), v.bytes);
  if (const size_t bracket = v.name.find('['); bracket != std::string::npos) {
    const std::string count = v.name.substr(bracket + 1);
    v.bytes *= count == "]" ? 0 : std::stoi(count);
    v.name = v.name.substr(0, bracket);
  }
  return v;
}

int align_up(int64_t x, int align) { return int((x + align - 1) / align * align); }

struct Statement {
  std::string text;
  int line;
};

// The body's statements and labels ("name:"), comments and scopes' braces gone.
std::vector<Statement> statements(std::string_view body, int line) {
  std::vector<Statement> all;
  std::string now;
  int began = line;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (c == '\n') ++line;
    if (c == '/' && i + 1 < body.size() && body[i + 1] == '/') {
      while (i + 1 < body.size() && body[i + 1] != '\n') ++i;
      continue;
    }
    if (now.empty()) {
      if (std::isspace(c) || c == '{' || c == '}' || c == ';') continue;
      began = line;
    }
    if (c == ';') {
      all.push_back({trimmed(now), began});
      now.clear();
    } else if (c == ':' && now.find_first_of(" \t") == std::string::npos) {
      all.push_back({now + ":", began});
      now.clear();
    } else {
      now += c == '\t' || c == '\n' || c == '\r' ? ' ' : c;
    }
  }
  return all;
}

Kernel read_kernel(std::string_view name, std::string_view parameters, std::string_view body, int line,
                   const std::vector<Variable>& dynamic) {
  Kernel kernel;
  kernel.name = name;
  Registers registers(kernel);
  for (const auto& text : split(parameters, ',')) {
    if (text.empty()) continue;
    const Variable v = read_variable(text);
    const int offset = align_up(kernel.parameter_bytes, v.align);
    registers.parameter(v.name, offset);
    kernel.parameters.emplace_back(offset, v.bytes);
    kernel.parameter_bytes = offset + v.bytes;
  }
  const auto lines = statements(body, line);
  std::map<std::string, int> labels;
  int instructions = 0;
  for (const auto& s : lines) {
    if (s.text.back() == ':') labels[s.text.substr(0, s.text.size() - 1)] = instructions;
    if (s.text[0] != '.' && s.text.back() != ':') ++instructions;
    if (s.text.starts_with(".shared")) {
      const Variable v = read_variable(s.text);
      const int offset = align_up(int64_t(kernel.static_shared), v.align);
      registers.shared(v.name, offset);
      kernel.static_shared = size_t(offset + v.bytes);
    }
  }
  kernel.static_shared = size_t(align_up(int64_t(kernel.static_shared), 128));
  for (const Variable& v : dynamic) registers.shared(v.name, int64_t(kernel.static_shared));
  kernel.code.reserve(size_t(instructions));
  for (const auto& s : lines) {
    if (s.text.back() == ':' || s.text.starts_with(".shared") || s.text.starts_with(".pragma")) continue;
    if (s.text.starts_with(".reg")) {
      const std::string rest = trimmed(std::string_view(s.text).substr(4));
      const size_t space = rest.find(' ');
      registers.declare(rest.substr(0, space), rest.substr(space + 1));
      continue;
    }
    if (s.text[0] == '.') fail("a directive that is not known: " + s.text);
    Op op;
    op.line = s.line;
    std::string text = s.text;
    if (text[0] == '@') {
      const size_t space = text.find(' ');
      op.guard_negated = text[1] == '!';
      op.guard = registers.resolve(text.substr(op.guard_negated ? 2 : 1, space - (op.guard_negated ? 2 : 1)), 0);
      text = trimmed(std::string_view(text).substr(space));
    }
    const size_t space = std::min(text.find(' '), text.size());
    Instruction instruction{split(text.substr(0, space), '.'), {}};
    for (const auto& operand : split(std::string_view(text).substr(space), ',')) {
      if (!operand.empty()) instruction.operands.push_back(read_operand(operand));
    }
    try {
      if (instruction.name[0] == "ret" || instruction.name[0] == "exit") {
        op.kind = Kind::kExit;
      } else if (instruction.name[0] == "bra") {
        const auto target = labels.find(instruction.operands.at(0).text);
        if (target == labels.end()) fail("no such label");
        op.kind = Kind::kBranch;
        op.n = target->second;
      } else if (const Reader r{instruction, registers, op};
                 !read_meeting(r) && !read_memory(r) && !read_conversion(r) && !read_arithmetic(r)) {
        fail("an instruction that is not known");
      }
    } catch (const std::exception& error) {
      fail(std::string(error.what()) + " in line " + std::to_string(s.line) + ": " + s.text);
    }
    kernel.code.push_back(op);
  }
  Op end;
  end.kind = Kind::kExit;
  kernel.code.push_back(end);
  return kernel;
}

}  // namespace

std::vector<Kernel> parse(std::string_view text) {
  std::vector<Kernel> kernels;
  std::vector<Variable> dynamic;
  int line = 1;
  size_t at = 0;
  const auto advance = [&](size_t to) {
    line += int(std::count(text.begin() + long(at), text.begin() + long(to), '\n'));
    at = to;
  };
  while (at < text.size()) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view row = text.substr(at, end - at);
    if (row.starts_with(".extern .shared")) {
      dynamic.push_back(read_variable(trimmed(row.substr(0, row.find(';')))));
    } else if (row.starts_with(".global") || row.starts_with(".const") || row.starts_with(".func")) {
      fail("module variables and functions are not known: " + std::string(row));
    } else if (const size_t entry = row.find(".entry "); entry != std::string_view::npos) {
      const size_t open = text.find('(', at), close = text.find(')', open), body = text.find('{', close) + 1;
      size_t stop = body;
      for (int depth = 1; stop < text.size(); ++stop) {
        depth += text[stop] == '{' ? 1 : text[stop] == '}' ? -1 : 0;
        if (depth == 0) break;
      }
      if (stop == text.size()) fail("an entry without an end");
      const std::string name = trimmed(text.substr(at + entry + 7, open - at - entry - 7));
      const std::string_view parameters = text.substr(open + 1, close - open - 1);
      advance(body);
      std::string flat(parameters);
      std::replace_if(flat.begin(), flat.end(), [](char c) { return c == '\n' || c == '\t'; }, ' ');
      kernels.push_back(read_kernel(name, flat, text.substr(body, stop - body), line, dynamic));
      advance(stop + 1);
      continue;
    }
    advance(std::min(end + 1, text.size()));
  }
  return kernels;
}

}  // namespace ptx
