// gather_rows: out[i] = x[rows[i]], of any type. A few rows of a step are copied, so the calling thread does it.
#include <string.h>

#include "octavo/binding.h"

namespace octavo::binding {
namespace {

void gather_rows(TensorView out, TensorView x, TensorView rows) {
  check_int32(rows, "rows");
  check_shape(rows, "rows", {-1});
  check_contiguous(rows, "rows");
  check_contiguous(x, "x");
  check_contiguous(out, "out");
  int64_t width = x.dtype().bits / 8;
  bool same = out.ndim() == x.ndim() && is(out, DLDataTypeCode(x.dtype().code), x.dtype().bits);
  for (int i = 1; i < x.ndim(); ++i) {
    width *= x.size(i);
    same = same && out.size(i) == x.size(i);
  }
  if (!same || out.size(0) != rows.size(0)) {
    TVM_FFI_THROW(ValueError) << "out " << shape_text(out) << " can't take " << rows.size(0) << " rows of x " << shape_text(x);
  }
  const int32_t* row = data<const int32_t>(rows);
  for (int64_t i = 0; i < rows.size(0); ++i) {
    if (row[i] < 0 || row[i] >= x.size(0)) {
      TVM_FFI_THROW(ValueError) << "rows[" << i << "] is " << row[i] << "; x has " << x.size(0) << " rows";
    }
    memcpy(data<char>(out) + i * width, data<const char>(x) + row[i] * width, size_t(width));
  }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(gather_rows, gather_rows);

}  // namespace octavo::binding
