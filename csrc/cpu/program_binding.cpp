// A recorded forward as one native call: the packed functions of its ops with their arguments, run in order.
//
// make_program(num_inputs, regions, buffers, calls) -> Function(inputs...)
//   inputs   num_inputs tensors, given at every run; the outputs are among them.
//   regions  [input, bytes a row]: a part of the arena with as many rows as that input has in this run.
//   buffers  [region, byte offset in its rows, DLPack type code, bits, size 1, size 2, ...]: a tensor between two
//            ops, [rows of the region, size 1, size 2, ...]. Its address is base + offset * rows, so that what was
//            packed without overlap for one row has none for any number, and 64-byte alignment is kept.
//   calls    [function, values, arguments]: argument i is tensor values[i], an input or (from num_inputs on) a
//            buffer, or, where values[i] is -1, arguments[i] as it is. Tensors among those are kept alive.
#include <stdlib.h>
#include <sys/mman.h>

#include <memory>
#include <new>
#include <vector>

#include <tvm/ffi/container/array.h>

#include "octavo/binding.h"

namespace octavo::binding {
namespace {

using tvm::ffi::Any;
using tvm::ffi::AnyView;
using tvm::ffi::Array;
using tvm::ffi::Function;
using tvm::ffi::PackedArgs;

constexpr size_t kHugePage = 2 << 20;

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { free(memory_); }

  // At least `bytes`, 2 MiB-aligned; what was there before is lost when it grows.
  char* reserve(size_t bytes) {
    if (bytes > size_ || !memory_) {
      size_t size = (bytes + bytes / 4 + kHugePage) / kHugePage * kHugePage;
      free(memory_);
      size_ = 0;
      memory_ = static_cast<char*>(aligned_alloc(kHugePage, size));
      if (!memory_) throw std::bad_alloc();
      madvise(memory_, size, MADV_HUGEPAGE);
      size_ = size;
    }
    return memory_;
  }

 private:
  char* memory_ = nullptr;
  size_t size_ = 0;
};

struct Region {
  int input;
  int64_t row_bytes;
};

struct Buffer {
  int region;
  int64_t offset;
  std::vector<int64_t> shape, strides;
};

struct Call {
  Function function;
  std::vector<AnyView> arguments;
};

class Program {
 public:
  Program(int64_t num_inputs, const Array<Array<int64_t>>& regions, const Array<Array<int64_t>>& buffers,
          Array<Array<Any>> calls)
      : num_inputs_(int(num_inputs)), tensors_(size_t(num_inputs) + buffers.size()), kept_(calls) {
    for (const Array<int64_t>& r : regions) {
      if (r[0] < 0 || r[0] >= num_inputs) TVM_FFI_THROW(ValueError) << "a region has the rows of input " << r[0];
      regions_.push_back({int(r[0]), r[1]});
    }
    for (const Array<int64_t>& b : buffers) add_buffer(b);
    for (const Array<Any>& call : calls) add_call(call);
  }

  void run(PackedArgs inputs) {
    if (inputs.size() != num_inputs_) {
      TVM_FFI_THROW(TypeError) << "this program takes " << num_inputs_ << " tensors; got " << inputs.size();
    }
    for (int i = 0; i < num_inputs_; ++i) tensors_[i] = *inputs[i].cast<DLTensor*>();
    place_buffers();
    Any nothing;
    for (const Call& call : calls_) {
      call.function.CallPacked(call.arguments.data(), int32_t(call.arguments.size()), &nothing);
    }
  }

 private:
  void add_buffer(const Array<int64_t>& b) {
    if (b[0] < 0 || b[0] >= int64_t(regions_.size())) TVM_FFI_THROW(ValueError) << "a buffer lies in region " << b[0];
    Buffer buffer{int(b[0]), b[1], {0}, {}};
    for (size_t i = 4; i < b.size(); ++i) buffer.shape.push_back(b[int64_t(i)]);
    buffer.strides.assign(buffer.shape.size(), 1);
    for (size_t i = buffer.shape.size() - 1; i > 0; --i) buffer.strides[i - 1] = buffer.strides[i] * buffer.shape[i];
    buffers_.push_back(std::move(buffer));
    Buffer& placed = buffers_.back();  // its vectors' memory stays where it is when buffers_ grows
    DLTensor& tensor = tensors_[size_t(num_inputs_) + buffers_.size() - 1];
    tensor = DLTensor{};
    tensor.device = {kDLCPU, 0};
    tensor.ndim = int32_t(placed.shape.size());
    tensor.dtype = {uint8_t(b[2]), uint8_t(b[3]), 1};
    tensor.shape = placed.shape.data();
    tensor.strides = placed.strides.data();
  }

  void add_call(const Array<Any>& parts) {
    Call call{parts[0].cast<Function>(), {}};
    Array<int64_t> values = parts[1].cast<Array<int64_t>>();
    Array<Any> arguments = parts[2].cast<Array<Any>>();
    for (size_t i = 0; i < values.size(); ++i) {
      const int64_t value = values[int64_t(i)];
      if (value >= int64_t(tensors_.size())) TVM_FFI_THROW(ValueError) << "an argument is tensor " << value;
      call.arguments.push_back(value < 0 ? AnyView(*(arguments.begin() + i)) : AnyView(&tensors_[size_t(value)]));
    }
    kept_arguments_.push_back(std::move(arguments));
    calls_.push_back(std::move(call));
  }

  void place_buffers() {
    size_t bytes = 0;
    for (const Region& region : regions_) bytes += size_t(region.row_bytes * rows(region));
    char* base = arena_.reserve(bytes);
    bases_.clear();
    for (const Region& region : regions_) {
      bases_.push_back(base);
      base += region.row_bytes * rows(region);
    }
    for (size_t i = 0; i < buffers_.size(); ++i) {
      Buffer& buffer = buffers_[i];
      const int64_t count = rows(regions_[size_t(buffer.region)]);
      buffer.shape[0] = count;
      tensors_[size_t(num_inputs_) + i].data = bases_[size_t(buffer.region)] + buffer.offset * count;
    }
  }

  int64_t rows(const Region& region) const {
    const DLTensor& input = tensors_[size_t(region.input)];
    return input.ndim ? input.shape[0] : 0;
  }

  int num_inputs_;
  std::vector<Region> regions_;
  std::vector<Buffer> buffers_;
  std::vector<DLTensor> tensors_;  // the inputs of this run, then the buffers; calls point to them
  std::vector<char*> bases_;
  std::vector<Call> calls_;
  Array<Array<Any>> kept_;
  std::vector<Array<Any>> kept_arguments_;
  Arena arena_;
};

Function make_program(int64_t num_inputs, Array<Array<int64_t>> regions, Array<Array<int64_t>> buffers,
                      Array<Array<Any>> calls) {
  auto program = std::make_shared<Program>(num_inputs, regions, buffers, calls);
  return Function::FromPacked([program](PackedArgs inputs, Any*) { program->run(inputs); });
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(make_program, make_program);

}  // namespace octavo::binding
