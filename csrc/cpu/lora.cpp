// Adapters on rows of a batch: rows are grouped by adapter, up to four at a time pass through `down` and `up`, so that
// those are read once for them. Each row's sums run in the order of k and of the ranks, whoever shares its group
// (law 6).
#include "octavo/kernels_lora.h"

#include "octavo/linear_output.h"
#include "octavo/simd.h"
#include "octavo/thread_pool.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int kRows = 4;
constexpr int64_t kMostRank = 512;
constexpr int64_t kWorthAThread = 64 << 10;  // multiplications

// v[r][j .. j + J] = x[r] . down[j .. j + J]
template <class T, int R, int J>
OCTAVO_INLINE void shrink(const T* const (&x)[kRows], const T* down, int64_t k, int64_t j, float (*v)[kMostRank]) {
  Vec acc[R][J];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < J; ++i) acc[r][i] = zero();
  }
  for (int64_t c = 0; c < k; c += 16) {
    const int n = lanes_left(k, c);
    Vec w[J];
#pragma GCC unroll 4
    for (int i = 0; i < J; ++i) w[i] = load_n(down + (j + i) * k + c, n);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec a = load_n(x[r] + c, n);
#pragma GCC unroll 4
      for (int i = 0; i < J; ++i) acc[r][i] = fma(a, w[i], acc[r][i]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < J; ++i) v[r][j + i] = reduce_add(acc[r][i]);
  }
}

// y[r][0:count] += scale * sum over j of v[r][j] * up[j][0:count], C vectors of columns.
template <class T, int R, int C>
OCTAVO_INLINE void expand(float* const (&y)[kRows], const T* up, int64_t columns, int64_t count, int64_t rank,
                          const float (*v)[kMostRank], float scale) {
  Vec acc[R][C];
  int lanes[C];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    lanes[c] = lanes_left(count, 16 * c);
    for (int r = 0; r < R; ++r) acc[r][c] = zero();
  }
  for (int64_t j = 0; j < rank; ++j) {
    Vec w[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) w[c] = load_n(up + j * columns + 16 * c, lanes[c]);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec a = broadcast(v[r][j]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] = fma(a, w[c], acc[r][c]);
    }
  }
  const Vec s = broadcast(scale);
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      float* to = y[r] + 16 * c;
      store_n(to, fma(s, acc[r][c], load_n(to, lanes[c])), lanes[c]);
    }
  }
}

template <class T, int R>
void run_rows(const LoraArgs& g, const int32_t* rows, int64_t adapter) {
  constexpr int kRanks = R == 1 ? 4 : 2, kColumns = R == 1 ? 4 : 2;
  const T* x[kRows] = {};
  for (int r = 0; r < R; ++r) x[r] = static_cast<const T*>(g.x) + rows[r] * g.x_stride;
  float v[R][kMostRank];
  for (int64_t part = 0; part < g.parts; ++part) {
    const int64_t* entry = g.entries + (adapter * g.parts + part) * 4;
    const T* down = reinterpret_cast<const T*>(entry[0]);
    const T* up = reinterpret_cast<const T*>(entry[1]);
    const int64_t rank = entry[2], columns = entry[3];
    if (!rank) continue;
    int64_t j = 0;
    for (; j + kRanks <= rank; j += kRanks) shrink<T, R, kRanks>(x, down, g.k, j, v);
    for (; j < rank; ++j) shrink<T, R, 1>(x, down, g.k, j, v);
    for (int64_t i = 0; i < g.num_segments; ++i) {
      const int32_t* segment = g.segments + 4 * i;
      if (segment[2] != part) continue;
      const float scale = g.scales[adapter * g.parts + part];
      for (int64_t c = 0; c < segment[1];) {
        float* y[kRows] = {};
        for (int r = 0; r < R; ++r) y[r] = g.y + rows[r] * g.y_stride + segment[0] + c;
        const T* from = up + segment[3] + c;
        if (segment[1] - c > 16) {
          expand<T, R, kColumns>(y, from, columns, segment[1] - c, rank, v, scale);
          c += 16 * kColumns;
        } else {
          expand<T, R, 1>(y, from, columns, segment[1] - c, rank, v, scale);
          c += 16;
        }
      }
    }
  }
}

template <class T>
void run_group(const LoraArgs& g, const int32_t* rows, int64_t count, int64_t adapter) {
  switch (count) {
    case 1: return run_rows<T, 1>(g, rows, adapter);
    case 2: return run_rows<T, 2>(g, rows, adapter);
    case 3: return run_rows<T, 3>(g, rows, adapter);
    default: return run_rows<T, 4>(g, rows, adapter);
  }
}

// The caller's alone: its own part of the work takes no scratch.
struct Groups {
  int32_t* rows;    // by adapter
  int32_t* starts;  // of groups in rows, each of one adapter
  int64_t count;
};

Groups group_rows(const LoraArgs& g) {
  auto* at = static_cast<int32_t*>(thread_scratch(size_t(2 * g.m + g.num_adapters + 2) * sizeof(int32_t)));
  Groups groups{at, at + g.m, 0};
  int32_t* next = groups.starts + g.m + 1;  // of each adapter
  for (int64_t a = 0; a <= g.num_adapters; ++a) next[a] = 0;
  for (int64_t row = 0; row < g.m; ++row) ++next[g.adapters[row] + 1];
  int32_t begin = 0;
  for (int64_t a = 1; a <= g.num_adapters; ++a) {
    const int32_t count = next[a];
    for (int32_t i = 0; i < count; i += kRows) groups.starts[groups.count++] = begin + i;
    next[a] = begin;
    begin += count;
  }
  groups.starts[groups.count] = begin;
  for (int64_t row = 0; row < g.m; ++row) {
    if (g.adapters[row] >= 0) groups.rows[next[g.adapters[row] + 1]++] = int32_t(row);
  }
  return groups;
}

void add(const LoraArgs& g) {
  const Groups groups = group_rows(g);
  if (!groups.count) return;
  int64_t most = 1;
  for (int64_t i = 0; i < g.num_adapters * g.parts; ++i) {
    const int64_t work = g.entries[4 * i + 2] * (g.k + g.entries[4 * i + 3]);
    if (work > most) most = work;
  }
  parallel_for(groups.count, 1 + kWorthAThread / (kRows * most), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t* rows = groups.rows + groups.starts[i];
      const int64_t count = groups.starts[i + 1] - groups.starts[i], adapter = g.adapters[rows[0]];
      if (g.bf16) {
        run_group<bf16>(g, rows, count, adapter);
      } else {
        run_group<float>(g, rows, count, adapter);
      }
    }
  });
}

void finish_rows(const FinishArgs& g) {
  const int64_t outputs = g.out.gated ? g.out.n / 2 : g.out.n, width = g.out.gated ? 16 : kPanel;
  const int64_t panels = (outputs + width - 1) / width;
  parallel_for(g.m, 1 + (16 << 10) / (g.y_stride + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t panel = 0; panel < panels; ++panel) {
        write_tile(g.out, g.y + row * g.y_stride + panel * kPanel, row, 1, panel);
      }
    }
  });
}

}  // namespace

const LoraKernels lora_kernels = {add, finish_rows};

}  // namespace octavo::OCTAVO_ISA
