// Registers the private kernel ops through torch's stable ABI and re-checks what memory safety needs. With gradients.h
// the only file in csrc that knows torch. One call runs one layer; absent tensors are empty.
//
// Work is cut by batch rows: a thread runs every step of its rows, so the recurrence has no barrier and its bits do not
// depend on the number of threads. The sums over rows in backward (dW, dX) are torch's GEMMs over chunks of dgates.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/layer.h"
#include "scratch.h"

namespace {

using namespace fusedrnn;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t abi_version = 2;
constexpr int64_t pre_bytes = 256 << 10;   // x W_ih of a chunk of steps, per thread: half of a small L2 ...
constexpr int64_t pre_rows = 96;           // ... but so many rows at least: every chunk reads W_ih again
constexpr int64_t dgates_bytes = 8 << 20;  // dgates of a chunk of steps
constexpr int64_t unpacked_rows = 3;       // fewer uses of the weights than this do not pay for packing them
constexpr int64_t least_work = 1 << 16;    // multiply-adds worth a second thread

enum Isa : int64_t { isa_portable, isa_avx2, isa_avx512, isa_count };

bool processor_has(int64_t isa) {
#if defined(__x86_64__)
  if (isa == isa_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == isa_avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#endif
  return isa == isa_portable;
}

template <class Real>
const Kernels<Real>* kernels_of(int64_t isa) {
  if (!processor_has(isa)) return nullptr;
  return isa == isa_avx512 ? avx512_kernels<Real>() : isa == isa_avx2 ? avx2_kernels<Real>() : portable_kernels<Real>();
}

int64_t best_isa() {
  int64_t isa = isa_count - 1;
  while (!kernels_of<float>(isa)) --isa;
  return isa;
}

int64_t current_isa = best_isa();

int64_t version() { return abi_version; }
int64_t isa() { return current_isa; }

// Bit k: instruction set k is compiled and this processor has it.
int64_t isas() {
  int64_t bits = 0;
  for (int64_t k = 0; k < isa_count; ++k) bits |= int64_t(kernels_of<float>(k) != nullptr) << k;
  return bits;
}

void set_isa(int64_t isa) {
  STD_TORCH_CHECK(isa >= 0 && isa < isa_count && kernels_of<float>(isa), "instruction set ", isa, " is not available");
  current_isa = isa;
}

template <class Real>
constexpr ScalarType scalar_type = sizeof(Real) == 4 ? ScalarType::Float : ScalarType::Double;

template <class Real>
Real* data(const Tensor& t) {
  return t.numel() == 0 ? nullptr : static_cast<Real*>(t.data_ptr());
}

void check_dense(const Tensor& t, const char* name, std::initializer_list<int64_t> shape, ScalarType type) {
  STD_TORCH_CHECK(t.scalar_type() == type, name, ": wrong dtype");
  STD_TORCH_CHECK(t.is_contiguous(), name, ": not contiguous");
  STD_TORCH_CHECK(t.dim() == int64_t(shape.size()) && std::equal(shape.begin(), shape.end(), t.sizes().begin()), name,
                  ": wrong shape");
}

void check_optional(const Tensor& t, const char* name, std::initializer_list<int64_t> shape, ScalarType type) {
  if (t.numel() > 0) check_dense(t, name, shape, type);
}

// Columns [column, column + width) of rows [T, B, columns] or packed [R, columns] whose last stride is 1; tokens have no
// last dimension and width 0. Without elements the base is null, which fits only where the shape says so.
template <class Element>
Rows<Element> rows_of(const Tensor& t, const char* name, const Shape& s, int64_t R, int64_t width, ScalarType type,
                      int64_t column = 0, int64_t columns = 0) {
  const bool packed = s.row_offsets != nullptr;
  const int64_t dims = (packed ? 1 : 2) + (width > 0);
  if (columns == 0) columns = width;
  STD_TORCH_CHECK(t.scalar_type() == type, name, ": wrong dtype");
  STD_TORCH_CHECK(t.dim() == dims && (packed ? t.size(0) == R : t.size(0) == s.T && t.size(1) == s.B), name,
                  ": wrong shape");
  STD_TORCH_CHECK(width == 0 || (t.size(dims - 1) == columns && (columns == 1 || t.stride(dims - 1) == 1)), name,
                  ": wrong width or rows not dense");
  if (t.numel() == 0) return {nullptr, 0, 0};
  auto* base = static_cast<Element*>(t.data_ptr()) + column;
  return packed ? Rows<Element>{base, 0, t.stride(0)} : Rows<Element>{base, t.stride(0), t.stride(1)};
}

// The same, or absent.
template <class Element>
Rows<Element> optional_rows(const Tensor& t, const char* name, const Shape& s, int64_t R, int64_t width,
                            ScalarType type, int64_t column = 0, int64_t columns = 0) {
  return t.numel() == 0 ? Rows<Element>{} : rows_of<Element>(t, name, s, R, width, type, column, columns);
}

// Part d of D equal parts of a dense tensor, null where it is absent.
template <class Real>
Real* part(const Tensor& t, int64_t d, int64_t D) {
  const int64_t count = t.numel();
  return count == 0 ? nullptr : static_cast<Real*>(t.data_ptr()) + count / D * d;
}

Shape shape_of(int64_t cell, bool reverse, const Tensor& x, const Tensor& h0, const Tensor& w_ih,
               const Tensor& row_offsets, const Tensor& lengths) {
  STD_TORCH_CHECK(cell >= 0 && cell < 4, "unknown cell");
  STD_TORCH_CHECK(h0.dim() == 3 && w_ih.dim() == 2, "h0: expected three dimensions, w_ih: two");
  Shape s{};
  s.cell = Cell(cell);
  s.reverse = reverse;
  s.B = h0.size(1);
  s.H = h0.size(2);
  s.I = w_ih.size(1);
  s.T = row_offsets.numel() > 0 ? row_offsets.numel() : x.size(0);
  STD_TORCH_CHECK(s.T > 0 && s.I > 0 && s.H > 0, "no steps, no inputs or no hidden units");
  check_optional(row_offsets, "row_offsets", {s.T}, ScalarType::Long);
  check_optional(lengths, "lengths", {s.B}, ScalarType::Long);
  s.row_offsets = data<const int64_t>(row_offsets);
  s.lengths = data<const int64_t>(lengths);
  for (int64_t b = 0; s.lengths && b < s.B; ++b) {
    STD_TORCH_CHECK(s.lengths[b] >= 0 && s.lengths[b] <= s.T, "lengths: outside 0 to T");
  }
  if (s.row_offsets) {
    STD_TORCH_CHECK(s.lengths, "packed input needs lengths");
    int64_t active = s.B, at = 0;
    for (int64_t t = 0; t < s.T; ++t) {
      while (active > 0 && s.lengths[active - 1] <= t) --active;
      STD_TORCH_CHECK(s.row_offsets[t] == at, "row_offsets: do not match lengths");
      at += active;
    }
    for (int64_t b = 1; b < s.B; ++b) STD_TORCH_CHECK(s.lengths[b] <= s.lengths[b - 1], "packed lengths: not sorted");
    STD_TORCH_CHECK(at == x.size(0), "row_offsets: do not cover x");
  }
  return s;
}

int64_t row_count(const Shape& s, const Tensor& x) { return s.row_offsets ? x.size(0) : s.T * s.B; }

int64_t threads_for(int64_t work, int64_t pieces) {
  const int64_t wanted = std::max<int64_t>(1, work / least_work);
  return std::min({int64_t(torch::stable::get_num_threads()), wanted, std::max<int64_t>(1, pieces)});
}

// f(first, last) over [0, n) in `threads` pieces.
template <class F>
void in_pieces(int64_t n, int64_t threads, const F& f) {
  if (threads <= 1) return f(0, n);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) f(n * k / threads, n * (k + 1) / threads);
  });
}

// Every token that takes part is a row of the vocabulary.
void check_tokens(const Shape& s, const Rows<const int64_t>& tokens) {
  for (int64_t t = 0; t < s.T; ++t) {
    for (int64_t b = 0; b < s.B; ++b) {
      if (t >= length_of(s, b)) continue;
      const int64_t token = *row_at(s, tokens, t, b);
      STD_TORCH_CHECK(token >= 0 && token < s.I, "token ", token, " outside 0 to ", s.I - 1);
    }
  }
}

// Direction d of the D of a layer.
struct Direction {
  int64_t d, D;
};

// direction: 0 forward, 1 reverse, 2 both
template <class F>
void each_direction(int64_t direction, const F& run) {
  STD_TORCH_CHECK(direction >= 0 && direction <= 2, "unknown direction");
  const int64_t D = direction == 2 ? 2 : 1;
  for (int64_t d = 0; d < D; ++d) run(Direction{d, D}, direction == 1 || d == 1);
}

template <class Real>
void run_forward(const Direction& at, const Shape& s, const Tensor& x, const Tensor& h0, const Tensor& c0,
                 const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh, const Tensor& y,
                 const Tensor& h_n, const Tensor& c_n, const Tensor& saved, const Tensor& cells, bool concat) {
  const auto& kernels = *kernels_of<Real>(current_isa);
  const ScalarType type = scalar_type<Real>;
  const int64_t G = gates_of(s.cell), H = s.H, I = s.I, B = s.B, R = row_count(s, x);
  const bool tokens = x.scalar_type() == ScalarType::Long;
  check_dense(w_ih, "w_ih", {G * H, I}, type);
  check_dense(w_hh, "w_hh", {G * H, H}, type);
  check_optional(b_ih, "b_ih", {G * H}, type);
  check_optional(b_hh, "b_hh", {G * H}, type);
  STD_TORCH_CHECK((b_ih.numel() > 0) == (b_hh.numel() > 0), "b_ih and b_hh: both or none");
  check_dense(h0, "h0", {at.D, B, H}, type);
  check_dense(h_n, "h_n", {at.D, B, H}, type);
  if (s.cell == Cell::lstm) {
    check_dense(c0, "c0", {at.D, B, H}, type);
    check_dense(c_n, "c_n", {at.D, B, H}, type);
  }
  check_optional(saved, "saved", {at.D, R, blocks_of(s.cell), H}, type);
  check_optional(cells, "cells", {at.D, R, H}, type);

  const int64_t width = kernels.packed_width(s.cell, H), panels = kernels.forward_panels(s.cell, H);
  const int64_t work = R * width * (H + (tokens ? 0 : I));
  const bool pack = R > unpacked_rows;
  Buffer<Real> packed_hh(pack ? width * H : 0), packed_ih(pack && !tokens ? width * I : 0), bias(width), bias_hn(width);
  Forward<Real> f{};
  f.shape = s;
  f.concat = concat && !tokens;
  if (tokens) {
    f.tokens = rows_of<const int64_t>(x, "x", s, R, 0, ScalarType::Long);
  } else {
    f.x = rows_of<const Real>(x, "x", s, R, I, type);
  }
  f.w_ih = data<const Real>(w_ih);
  f.w_hh = data<const Real>(w_hh);
  f.packed_ih = pack ? packed_ih.get() : nullptr;
  f.packed_hh = pack ? packed_hh.get() : nullptr;
  f.bias = bias.get();
  f.bias_hn = bias_hn.get();
  f.h0 = part<const Real>(h0, at.d, at.D);
  f.c0 = s.cell == Cell::lstm ? part<const Real>(c0, at.d, at.D) : nullptr;
  f.y = rows_of<Real>(y, "y", s, R, H, type, at.d * H, at.D * H);
  f.h_n = part<Real>(h_n, at.d, at.D);
  f.c_n = s.cell == Cell::lstm ? part<Real>(c_n, at.d, at.D) : nullptr;
  f.saved = part<Real>(saved, at.d, at.D);
  f.cells = part<Real>(cells, at.d, at.D);
  if (tokens) check_tokens(s, f.tokens);
  kernels.pack_bias(s.cell, data<const Real>(b_ih), data<const Real>(b_hh), H, bias.get(), bias_hn.get());
  const bool with_table = tokens && I <= R;
  Buffer<Real> table(with_table ? I * width : 0);
  if (pack) {
    in_pieces(panels, threads_for(width * (H + I) * 8, panels), [&](int64_t first, int64_t last) {
      kernels.pack_forward(s.cell, f.w_hh, H, H, packed_hh.get(), first, last);
      if (!tokens) kernels.pack_forward(s.cell, f.w_ih, H, I, packed_ih.get(), first, last);
    });
  }
  if (with_table) {
    in_pieces(I, threads_for(I * width * 8, I),
              [&](int64_t first, int64_t last) { kernels.token_rows(f, table.get(), first, last); });
    f.table = table.get();
  }
  in_pieces(B, threads_for(work, B), [&](int64_t first, int64_t last) {
    const int64_t per_step = (last - first) * width;
    const bool direct = f.concat || f.table;
    const int64_t fit = pre_bytes / std::max<int64_t>(1, per_step * int64_t(sizeof(Real)));
    const int64_t fill = pre_rows / std::max<int64_t>(1, last - first);
    const int64_t steps = std::clamp<int64_t>(std::max(fit, fill), 1, std::max<int64_t>(1, s.T));
    Buffer<Real> workspace(direct ? 0 : steps * per_step);
    kernels.forward(f, first, last, direct ? s.T : steps, workspace.get());
  });
}

void forward(const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih, const Tensor& w_hh,
             const Tensor& b_ih, const Tensor& b_hh, const Tensor& w_ih_reverse, const Tensor& w_hh_reverse,
             const Tensor& b_ih_reverse, const Tensor& b_hh_reverse, const Tensor& row_offsets, const Tensor& lengths,
             Tensor y, Tensor h_n, Tensor c_n, Tensor saved, Tensor cells, int64_t cell, int64_t direction,
             bool concat) {
  each_direction(direction, [&](const Direction& at, bool reverse) {
    const Tensor &w = at.d ? w_ih_reverse : w_ih, &u = at.d ? w_hh_reverse : w_hh;
    const Tensor &b = at.d ? b_ih_reverse : b_ih, &v = at.d ? b_hh_reverse : b_hh;
    const Shape s = shape_of(cell, reverse, x, h0, w, row_offsets, lengths);
    if (w.scalar_type() == ScalarType::Double) {
      run_forward<double>(at, s, x, h0, c0, w, u, b, v, y, h_n, c_n, saved, cells, concat);
    } else {
      run_forward<float>(at, s, x, h0, c0, w, u, b, v, y, h_n, c_n, saved, cells, concat);
    }
  });
}

#include "gradients.h"

void backward(const Tensor& dy, const Tensor& dh_n, const Tensor& dc_n, const Tensor& x, const Tensor& h0,
              const Tensor& c0, const Tensor& w_ih, const Tensor& w_hh, const Tensor& w_ih_reverse,
              const Tensor& w_hh_reverse, const Tensor& row_offsets, const Tensor& lengths, const Tensor& y,
              const Tensor& saved, const Tensor& cells, Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, Tensor dw_hh,
              Tensor db_ih, Tensor db_hh, Tensor dw_ih_reverse, Tensor dw_hh_reverse, Tensor db_ih_reverse,
              Tensor db_hh_reverse, int64_t cell, int64_t direction) {
  each_direction(direction, [&](const Direction& at, bool reverse) {
    const Tensor &w = at.d ? w_ih_reverse : w_ih, &u = at.d ? w_hh_reverse : w_hh;
    const Gradients g = at.d ? Gradients{dx, dh0, dc0, dw_ih_reverse, dw_hh_reverse, db_ih_reverse, db_hh_reverse}
                             : Gradients{dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh};
    const Shape s = shape_of(cell, reverse, x, h0, w, row_offsets, lengths);
    if (w.scalar_type() == ScalarType::Double) {
      run_backward<double>(at, s, dy, dh_n, dc_n, x, h0, c0, w, u, y, saved, cells, g);
    } else {
      run_backward<float>(at, s, dy, dh_n, dc_n, x, h0, c0, w, u, y, saved, cells, g);
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY(fusedrnn_cpu, m) {
  m.def("version() -> int");
  m.def("isas() -> int");
  m.def("isa() -> int");
  m.def("set_isa(int isa) -> ()");
  m.def(
      "forward(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh, Tensor "
      "w_ih_reverse, "
      "Tensor w_hh_reverse, Tensor b_ih_reverse, Tensor b_hh_reverse, Tensor row_offsets, Tensor lengths, Tensor(a!) "
      "y, "
      "Tensor(b!) h_n, Tensor(c!) c_n, Tensor(d!) saved, Tensor(e!) cells, int cell, int direction, bool concat) -> "
      "()");
  m.def(
      "backward(Tensor dy, Tensor dh_n, Tensor dc_n, Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, "
      "Tensor w_ih_reverse, Tensor w_hh_reverse, Tensor row_offsets, Tensor lengths, Tensor y, Tensor saved, "
      "Tensor cells, Tensor(a!) dx, Tensor(b!) dh0, Tensor(c!) dc0, Tensor(d!) dw_ih, Tensor(e!) dw_hh, "
      "Tensor(f!) db_ih, Tensor(g!) db_hh, Tensor(h!) dw_ih_reverse, Tensor(i!) dw_hh_reverse, "
      "Tensor(j!) db_ih_reverse, Tensor(k!) db_hh_reverse, int cell, int direction) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn_cpu, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&version));
  m.impl("isas", TORCH_BOX(&isas));
  m.impl("isa", TORCH_BOX(&isa));
  m.impl("set_isa", TORCH_BOX(&set_isa));
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn_cpu, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}
