// Shared memory: bounds, what was written, copies in flight, and the order of accesses. Empty in a build without
// checks.
#include "check.h"

#ifdef SIMT_CHECK
namespace simt {
namespace {

// Of one aligned word of shared memory, or where its bytes differ (kSplit) of one byte.
struct Cell {
  uint32_t written, read[2];
  uint32_t write_pc, read_pc[2];  // from the library's begin
  uint16_t writer, reader[2];
  uint8_t flags;
};
enum : uint8_t { kWritten = 1, kInFlight = 2, kByAtomic = 4, kSplit = 8 };

const std::unique_ptr<Cell[]> cells = std::make_unique_for_overwrite<Cell[]>(kArena / 4);
const std::unique_ptr<Cell[]> byte_cells = std::make_unique_for_overwrite<Cell[]>(kArena);  // where a word is split
size_t last_variable = 0;

uint32_t pack_pc(const void* pc) { return uint32_t(static_cast<const char*>(pc) - &__ehdr_start); }
std::string source_of(uint32_t pc) { return source_line(&__ehdr_start + pc); }

// Slow: only for what is wrong, to say how.
void explain(const Cell& c, size_t offset, Access access, const void* pc) {
  const int me = worker->self->index;
  if (c.flags & kInFlight && access != Access::kCopyLanded) {
    fail(Kind::kAsyncPending, pc, "%s of shared offset %zu, to which a cp.async of thread %u%s is in flight",
         verb(access), offset, c.writer, source_of(c.write_pc).c_str());
  }
  if (!(c.flags & kWritten))
    fail(Kind::kUninitialised, pc, "%s of uninitialised shared memory, offset %zu", verb(access), offset);
  if (c.written && !clocks.ordered(me, c.writer, c.written)) {
    fail(Kind::kRace, pc, "no barrier between a write of shared offset %zu by thread %u%s and this %s", offset,
         c.writer, source_of(c.write_pc).c_str(), verb(access));
  }
  const int r = c.read[0] && !clocks.ordered(me, c.reader[0], c.read[0]) ? 0 : 1;
  fail(Kind::kRace, pc, "no barrier between a read of shared offset %zu by thread %u%s and this %s", offset,
       c.reader[r], source_of(c.read_pc[r]).c_str(), verb(access));
}

void touch(Cell& c, int me, uint32_t time, size_t offset, Access access, const void* pc) {
  if (c.flags & kInFlight && access != Access::kCopyLanded) [[unlikely]]
    return explain(c, offset, access, pc);
  if (!(c.flags & kWritten) && (access == Access::kRead || access == Access::kAtomic)) [[unlikely]] {
    return explain(c, offset, access, pc);
  }
  const bool both_atomic = access == Access::kAtomic && c.flags & kByAtomic;
  if (c.written && !both_atomic && !clocks.ordered(me, c.writer, c.written)) [[unlikely]]
    return explain(c, offset, access, pc);
  if (!writes(access)) {
    // Two readers, since the thread that writes later is often itself the last one.
    if (c.read[0] && c.reader[0] != me) {
      c.reader[1] = c.reader[0];
      c.read[1] = c.read[0];
      c.read_pc[1] = c.read_pc[0];
    }
    c.reader[0] = uint16_t(me);
    c.read[0] = time;
    c.read_pc[0] = pack_pc(pc);
    return;
  }
  if ((c.read[0] && !clocks.ordered(me, c.reader[0], c.read[0])) ||
      (c.read[1] && !clocks.ordered(me, c.reader[1], c.read[1]))) [[unlikely]] {
    return explain(c, offset, access, pc);
  }
  c.writer = uint16_t(me);
  c.written = time;
  c.write_pc = pack_pc(pc);
  c.read[0] = c.read[1] = 0;
  c.flags = uint8_t(kWritten | (access == Access::kAtomic ? kByAtomic : access == Access::kCopyIssued ? kInFlight : 0));
}

bool in_shared(size_t offset, size_t bytes) {
  const Worker& w = *worker;
  if (offset + bytes <= w.launch->dynamic_shared) return true;
  const auto holds = [&](const Variable& v) { return offset >= v.offset && offset + bytes <= v.offset + v.size; };
  if (last_variable < w.variables.size() && holds(w.variables[last_variable])) return true;
  for (size_t i = 0; i < w.variables.size(); ++i) {
    if (!holds(w.variables[i])) continue;
    last_variable = i;
    return true;
  }
  return false;
}

}  // namespace

void shared_access(size_t offset, size_t bytes, Access access, const void* pc) {
  Worker& w = *worker;
  if (!in_shared(offset, bytes)) {
    fail(Kind::kOutOfBounds, pc, "%zu-byte %s out of bounds of shared memory, offset %zu (dynamic size %zu)", bytes,
         verb(access), offset, w.launch->dynamic_shared);
  }
  const int me = w.self->index;
  const uint32_t time = clocks.now(me);
  for (size_t end = offset + bytes; offset < end;) {
    Cell& word = cells[offset / 4];
    const size_t stop = std::min(end, (offset | 3) + 1);
    const bool whole = stop - offset == 4;
    if (whole && !(word.flags & kSplit)) {
      touch(word, me, time, offset, access, pc);
      offset = stop;
      continue;
    }
    if (!(word.flags & kSplit)) {
      std::fill_n(&byte_cells[offset & ~size_t(3)], 4, word);
      word.flags |= kSplit;
    }
    for (; offset < stop; ++offset) touch(byte_cells[offset], me, time, offset, access, pc);
    if (whole && writes(access)) word = byte_cells[offset - 1];  // all four are alike again
  }
}

void begin_shared() { std::fill_n(cells.get(), (worker->arena_used + 3) / 4, Cell{}); }

void check_variable(size_t offset, size_t bytes) { std::fill_n(&cells[offset / 4], (bytes + 3) / 4, Cell{}); }

}  // namespace simt
#endif
