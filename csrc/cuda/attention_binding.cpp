// Ops.paged_attention on CUDA, and the work lists that its tensor core kernels read.
#include "attention.h"
#include "cache_view.h"

namespace octavo::binding {
namespace {

using cuda::AttentionArgs;
using cuda::AttentionWork;

bool has_tensor_cores(CacheType cache, DType activations, int64_t head_dim) {
  const bool sizes = head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 112 || head_dim == 128 ||
                     head_dim == 256;
  return sizes && cache != CacheType::kFloat32 && activations != DType::kFloat32;
}

// keys: any tensor of the cache's dtype. -> CTAs of the decode and of the prefill kernel that one SM holds, as
// 256 * decode + prefill; 0 where the simple kernel answers.
int64_t attention_ctas(TensorView qkv, TensorView keys, int64_t head_dim) {
  const CacheType cache = cache_type(keys, "keys");
  if (!has_tensor_cores(cache, float_type(qkv, "qkv"), head_dim)) return 0;
  return 256 * cuda::decode_ctas(cache, int(head_dim)) + cuda::prefill_ctas(cache, int(head_dim));
}

// counts [2], decode [n, 12], prefill [n, 2], arrivals [partial slots]: int32.
AttentionWork read_lists(TensorView counts, TensorView decode, TensorView prefill, TensorView arrivals,
                         int64_t decode_grid) {
  static_assert(sizeof(cuda::DecodeItem) == 12 * 4 && sizeof(cuda::PrefillItem) == 2 * 4);
  const auto read = [](TensorView t, const char* name, std::initializer_list<int64_t> shape) {
    return const_cast<int32_t*>(device_indices(t, name, shape));
  };
  AttentionWork work{};
  work.counts = read(counts, "counts", {2});
  work.decode = reinterpret_cast<cuda::DecodeItem*>(read(decode, "decode", {-1, 12}));
  work.prefill = reinterpret_cast<cuda::PrefillItem*>(read(prefill, "prefill", {-1, 2}));
  work.arrivals = reinterpret_cast<uint32_t*>(read(arrivals, "arrivals", {-1}));
  work.partial_slots = int32_t(arrivals.size(0));
  work.decode_grid = int32_t(decode_grid);
  if (decode_grid < 1) TVM_FFI_THROW(ValueError) << "decode_grid is " << decode_grid << "; expected 1 and up";
  return work;
}

int64_t group_of(int64_t num_heads, int64_t num_kv_heads) {
  if (num_heads < 1 || num_kv_heads < 1 || num_heads % num_kv_heads) {
    TVM_FFI_THROW(ValueError) << num_heads << " query heads can't share " << num_kv_heads << " key-value heads evenly";
  }
  return num_heads / num_kv_heads;
}

// `tokens` are the rows of the step's qkv. decode_only: no paged_attention with these lists will have has_prefill.
void plan_attention(TensorView counts, TensorView decode, TensorView prefill, TensorView arrivals,
                    TensorView query_start, TensorView seq_lens, int64_t tokens, int64_t num_heads,
                    int64_t num_kv_heads, int64_t sliding_window, int64_t decode_grid, bool decode_only) {
  const int64_t group = group_of(num_heads, num_kv_heads), num_seqs = seq_lens.size(0);
  cuda::PlanArgs a{};
  a.work = read_lists(counts, decode, prefill, arrivals, decode_grid);
  const int64_t tiles = cuda::max_decode_tiles(tokens, num_seqs, group);
  const int64_t prefill_items = cuda::max_prefill_items(tokens, num_seqs, group);
  if (decode.size(0) < tiles || prefill.size(0) < prefill_items) {
    TVM_FFI_THROW(ValueError) << "work lists of " << decode.size(0) << " and " << prefill.size(0) << " items; "
                              << tokens << " tokens of " << num_seqs << " sequences may need " << tiles
                              << " and " << prefill_items;
  }
  a.cut_items = int32_t(decode.size(0) - tiles);
  a.decode_only = decode_only;
  a.query_start = device_indices(query_start, "query_start", {num_seqs + 1});
  a.seq_lens = device_indices(seq_lens, "seq_lens", {num_seqs});
  a.num_seqs = int32_t(num_seqs);
  a.num_heads = int32_t(num_heads);
  a.num_kv_heads = int32_t(num_kv_heads);
  a.sliding_window = int32_t(sliding_window);
  cuda::plan_attention(a, current_stream(counts));
}

AttentionArgs read_arguments(TensorView out, TensorView qkv, TensorView keys, TensorView values, TensorView page_table,
                             TensorView query_start, TensorView seq_lens, int64_t num_heads, double scale,
                             int64_t sliding_window, Optional<TensorView> alibi_slopes, double softcap) {
  AttentionArgs a{};
  group_of(num_heads, keys.size(1));
  const bool packed = keys.ndim() == 3;  // which does not tell a page's tokens from its dims: the columns of qkv do
  read_cuda_cache(a, keys, values, packed ? qkv.size(1) / (num_heads + 2 * keys.size(1)) : keys.size(3));
  a.query_type = float_type(qkv, "qkv");
  a.query_stride = row_stride(qkv, "qkv");
  if (qkv.size(1) < num_heads * a.head_dim) {
    TVM_FFI_THROW(ValueError) << "qkv has " << qkv.size(1) << " columns; " << num_heads << " heads of " << a.head_dim
                              << " need " << num_heads * a.head_dim;
  }
  check_same_type(qkv, out, "qkv and out");
  check_shape(out, "out", {qkv.size(0), num_heads * a.head_dim});
  check_contiguous(out, "out");
  if (sliding_window < 0) {
    TVM_FFI_THROW(ValueError) << "sliding_window is " << sliding_window << "; allowed: 0 (off) and up";
  }
  a.num_seqs = int32_t(seq_lens.size(0));
  a.seq_lens = device_indices(seq_lens, "seq_lens", {-1});
  a.query_start = device_indices(query_start, "query_start", {a.num_seqs + 1});
  a.page_table = device_indices(page_table, "page_table", {a.num_seqs, -1});
  a.max_pages = int32_t(page_table.size(1));
  if (page_table.numel() > INT32_MAX) {
    TVM_FFI_THROW(ValueError) << "page_table has shape " << shape_text(page_table) << "; CUDA takes at most " << INT32_MAX
                              << " entries; lower EngineOptions.max_num_seqs or max_model_len, or raise page_size";
  }
  bool rounded = false;
  if (alibi_slopes.has_value()) {
    check_shape(*alibi_slopes, "alibi_slopes", {num_heads});
    check_contiguous(*alibi_slopes, "alibi_slopes");
    rounded = float_type(*alibi_slopes, "alibi_slopes") == DType::kBFloat16;
    if (!rounded) check_float32(*alibi_slopes, "alibi_slopes");
    a.alibi_slopes = device_data<const void>(*alibi_slopes);
  }
  a.out = device_data<void>(out);
  a.queries = device_data<const void>(qkv);
  a.tokens = int32_t(qkv.size(0));
  a.num_heads = int32_t(num_heads);
  a.sliding_window = int32_t(sliding_window);
  a.scoring = cuda::make_scoring(float(scale), float(softcap), a.alibi_slopes != nullptr, rounded);
  return a;
}

void paged_attention_simple(TensorView out, TensorView qkv, TensorView keys, TensorView values, TensorView page_table,
                            TensorView query_start, TensorView seq_lens, int64_t num_heads, double scale,
                            int64_t sliding_window, Optional<TensorView> alibi_slopes, double softcap) {
  cuda::attention_simple(read_arguments(out, qkv, keys, values, page_table, query_start, seq_lens, num_heads, scale,
                                        sliding_window, alibi_slopes, softcap),
                         current_stream(out));
}

// As the CPU's, then plan_attention's lists, partials [partial slots, D + 2] and totals [prefill grid, 128, D] float32,
// and the decode kernel's CTAs.
void paged_attention(TensorView out, TensorView qkv, TensorView keys, TensorView values, TensorView page_table,
                     TensorView query_start, TensorView seq_lens, int64_t num_heads, double scale,
                     int64_t sliding_window, Optional<TensorView> alibi_slopes, double softcap, TensorView counts,
                     TensorView decode, TensorView prefill, TensorView arrivals, TensorView partials, TensorView totals,
                     int64_t decode_grid, bool has_prefill) {
  AttentionArgs a = read_arguments(out, qkv, keys, values, page_table, query_start, seq_lens, num_heads, scale,
                                   sliding_window, alibi_slopes, softcap);
  if (!has_tensor_cores(a.cache_type, a.query_type, a.head_dim)) {
    TVM_FFI_THROW(ValueError) << "head size " << a.head_dim << ", queries of " << dtype_text(qkv.dtype())
                              << " and keys of " << dtype_text(keys.dtype())
                              << " have no tensor core kernel; call paged_attention_simple";
  }
  if (reinterpret_cast<uintptr_t>(a.queries) % 16 || a.query_stride % 8) {
    TVM_FFI_THROW(ValueError) << "the rows of qkv must lie at multiples of 16 bytes; they are " << a.query_stride
                              << " elements apart";
  }
  check_shape(partials, "partials", {arrivals.size(0), a.head_dim + 2});
  check_float32(partials, "partials");
  check_shape(totals, "totals", {-1, cuda::kPrefillRows, a.head_dim});
  check_float32(totals, "totals");
  a.work = read_lists(counts, decode, prefill, arrivals, decode_grid);
  a.work.partials = device_data<float>(partials);
  a.work.totals = device_data<float>(totals);
  a.work.prefill_grid = int32_t(totals.size(0));
  cuda::attention_decode(a, current_stream(out));
  if (has_prefill) cuda::attention_prefill(a, current_stream(out));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(attention_ctas, attention_ctas);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(plan_attention, plan_attention);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(paged_attention, paged_attention);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(paged_attention_simple, paged_attention_simple);

}  // namespace octavo::binding
