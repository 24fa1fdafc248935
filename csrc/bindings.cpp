// Registers the private kernel ops through torch's stable ABI and re-checks what memory safety needs. The only file in
// csrc that knows torch. One call runs one direction of one layer; absent tensors are empty.
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
#include <memory>
#include <vector>

#include "cpu/layer.h"

namespace {

using namespace fusedrnn;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t abi_version = 1;
constexpr int64_t pre_bytes = 256 << 10;   // x W_ih of a chunk of steps, per thread: half of a small L2
constexpr int64_t dgates_bytes = 4 << 20;  // dgates of a chunk of steps
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

// Rows [T, B, width] or packed [R, width] whose last stride is 1; tokens have no last dimension.
template <class Element>
Rows<Element> rows_of(const Tensor& t, const char* name, const Shape& s, int64_t R, int64_t width, ScalarType type) {
  if (t.numel() == 0) return {nullptr, 0, 0};
  const bool packed = s.row_offsets != nullptr;
  const int64_t dims = (packed ? 1 : 2) + (width > 0);
  STD_TORCH_CHECK(t.scalar_type() == type, name, ": wrong dtype");
  STD_TORCH_CHECK(t.dim() == dims && (packed ? t.size(0) == R : t.size(0) == s.T && t.size(1) == s.B), name,
                  ": wrong shape");
  STD_TORCH_CHECK(width == 0 || (t.size(dims - 1) == width && (width == 1 || t.stride(dims - 1) == 1)), name,
                  ": wrong width or rows not dense");
  auto* base = static_cast<Element*>(t.data_ptr());
  return packed ? Rows<Element>{base, 0, t.stride(0)} : Rows<Element>{base, t.stride(0), t.stride(1)};
}

Shape shape_of(int64_t cell, bool reverse, const Tensor& x, const Tensor& h0, const Tensor& w_ih,
               const Tensor& row_offsets, const Tensor& lengths) {
  STD_TORCH_CHECK(cell >= 0 && cell < 4, "unknown cell");
  STD_TORCH_CHECK(h0.dim() == 2 && w_ih.dim() == 2, "h0 and w_ih: expected two dimensions");
  Shape s{};
  s.cell = Cell(cell);
  s.reverse = reverse;
  s.B = h0.size(0);
  s.H = h0.size(1);
  s.I = w_ih.size(1);
  s.T = row_offsets.numel() > 0 ? row_offsets.numel() : x.size(0);
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

int64_t gates_of(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }
int64_t blocks_of(Cell cell) { return cell == Cell::lstm || cell == Cell::gru ? 4 : 1; }
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

template <class Real>
struct Buffer {
  explicit Buffer(int64_t count) : memory(new Real[std::max<int64_t>(count, 1)]) {}
  Real* get() const { return memory.get(); }
  std::unique_ptr<Real[]> memory;
};

template <class Real>
void run_forward(const Shape& s, const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih,
                 const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh, const Tensor& y, const Tensor& h_n,
                 const Tensor& c_n, const Tensor& saved, const Tensor& cells, bool concat) {
  const auto& kernels = *kernels_of<Real>(current_isa);
  const ScalarType type = scalar_type<Real>;
  const int64_t G = gates_of(s.cell), H = s.H, I = s.I, B = s.B, R = row_count(s, x);
  const bool tokens = x.scalar_type() == ScalarType::Long;
  check_dense(w_ih, "w_ih", {G * H, I}, type);
  check_dense(w_hh, "w_hh", {G * H, H}, type);
  check_optional(b_ih, "b_ih", {G * H}, type);
  check_optional(b_hh, "b_hh", {G * H}, type);
  STD_TORCH_CHECK((b_ih.numel() > 0) == (b_hh.numel() > 0), "b_ih and b_hh: both or none");
  check_dense(h0, "h0", {B, H}, type);
  check_dense(h_n, "h_n", {B, H}, type);
  if (s.cell == Cell::lstm) {
    check_dense(c0, "c0", {B, H}, type);
    check_dense(c_n, "c_n", {B, H}, type);
  }
  check_optional(saved, "saved", {R, blocks_of(s.cell), H}, type);
  check_optional(cells, "cells", {R, H}, type);

  const int64_t width = kernels.packed_width(s.cell, H), panels = kernels.forward_panels(s.cell, H);
  const int64_t work = R * width * (H + (tokens ? 0 : I));
  Buffer<Real> packed_hh(width * H), packed_ih(tokens ? 0 : width * I), bias(width), bias_hn(width);
  Forward<Real> f{};
  f.shape = s;
  f.concat = concat && !tokens;
  if (tokens) {
    f.tokens = rows_of<const int64_t>(x, "x", s, R, 0, ScalarType::Long);
  } else {
    f.x = rows_of<const Real>(x, "x", s, R, I, type);
  }
  f.w_ih = data<const Real>(w_ih);
  f.packed_ih = packed_ih.get();
  f.packed_hh = packed_hh.get();
  f.bias = bias.get();
  f.bias_hn = bias_hn.get();
  f.h0 = data<const Real>(h0);
  f.c0 = data<const Real>(c0);
  f.y = rows_of<Real>(y, "y", s, R, H, type);
  f.h_n = data<Real>(h_n);
  f.c_n = data<Real>(c_n);
  f.saved = data<Real>(saved);
  f.cells = data<Real>(cells);
  STD_TORCH_CHECK(f.y.base || R == 0, "y: missing");
  if (tokens) {
    for (int64_t t = 0; t < s.T; ++t) {
      for (int64_t b = 0; b < B; ++b) {
        if (s.lengths && t >= s.lengths[b]) continue;
        const int64_t at =
            s.row_offsets ? (s.row_offsets[t] + b) * f.tokens.batch : t * f.tokens.step + b * f.tokens.batch;
        STD_TORCH_CHECK(f.tokens.base[at] >= 0 && f.tokens.base[at] < I, "token ", f.tokens.base[at], " outside 0 to ",
                        I - 1);
      }
    }
  }
  kernels.pack_bias(s.cell, data<const Real>(b_ih), data<const Real>(b_hh), H, bias.get(), bias_hn.get());
  const bool with_table = tokens && I <= R;
  Buffer<Real> table(with_table ? I * width : 0);
  const int64_t packers = threads_for(width * (H + I) * 8, panels);
  in_pieces(panels, packers, [&](int64_t first, int64_t last) {
    kernels.pack_forward(s.cell, data<const Real>(w_hh), H, H, packed_hh.get(), first, last);
    if (!tokens) kernels.pack_forward(s.cell, f.w_ih, H, I, packed_ih.get(), first, last);
  });
  if (with_table) {
    in_pieces(I, threads_for(I * width * 8, I),
              [&](int64_t first, int64_t last) { kernels.token_rows(f, table.get(), first, last); });
    f.table = table.get();
  }
  in_pieces(B, threads_for(work, B), [&](int64_t first, int64_t last) {
    const int64_t per_step = (last - first) * width;
    const bool direct = f.concat || f.table;
    const int64_t steps =
        std::clamp<int64_t>(pre_bytes / std::max<int64_t>(1, per_step * int64_t(sizeof(Real))), 1, s.T);
    Buffer<Real> workspace(direct ? 0 : steps * per_step);
    kernels.forward(f, first, last, direct ? s.T : steps, workspace.get());
  });
}

void forward(const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih, const Tensor& w_hh,
             const Tensor& b_ih, const Tensor& b_hh, const Tensor& row_offsets, const Tensor& lengths, Tensor y,
             Tensor h_n, Tensor c_n, Tensor saved, Tensor cells, int64_t cell, bool reverse, bool concat) {
  const Shape s = shape_of(cell, reverse, x, h0, w_ih, row_offsets, lengths);
  if (w_ih.scalar_type() == ScalarType::Double) {
    return run_forward<double>(s, x, h0, c0, w_ih, w_hh, b_ih, b_hh, y, h_n, c_n, saved, cells, concat);
  }
  run_forward<float>(s, x, h0, c0, w_ih, w_hh, b_ih, b_hh, y, h_n, c_n, saved, cells, concat);
}

#include "gradients.h"

void backward(const Tensor& dy, Tensor dh, Tensor dc, const Tensor& x, const Tensor& h0, const Tensor& c0,
              const Tensor& w_ih, const Tensor& w_hh, const Tensor& row_offsets, const Tensor& lengths, const Tensor& y,
              const Tensor& saved, const Tensor& cells, Tensor dx, Tensor dh0, Tensor dw_ih, Tensor dw_hh, Tensor db_ih,
              Tensor db_hh, int64_t cell, bool reverse, bool add_dx) {
  const Shape s = shape_of(cell, reverse, x, h0, w_ih, row_offsets, lengths);
  const Gradients g{dx, dh0, dw_ih, dw_hh, db_ih, db_hh, add_dx};
  if (w_ih.scalar_type() == ScalarType::Double) {
    return run_backward<double>(s, dy, dh, dc, x, h0, c0, w_ih, w_hh, y, saved, cells, g);
  }
  run_backward<float>(s, dy, dh, dc, x, h0, c0, w_ih, w_hh, y, saved, cells, g);
}

}  // namespace

STABLE_TORCH_LIBRARY(fusedrnn_cpu, m) {
  m.def("version() -> int");
  m.def("isas() -> int");
  m.def("isa() -> int");
  m.def("set_isa(int isa) -> ()");
  m.def(
      "forward(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh, Tensor row_offsets, "
      "Tensor lengths, Tensor(a!) y, Tensor(b!) h_n, Tensor(c!) c_n, Tensor(d!) saved, Tensor(e!) cells, int cell, "
      "bool reverse, bool concat) -> ()");
  m.def(
      "backward(Tensor dy, Tensor(a!) dh, Tensor(b!) dc, Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, "
      "Tensor row_offsets, Tensor lengths, Tensor y, Tensor saved, Tensor cells, Tensor(c!) dx, Tensor(d!) dh0, "
      "Tensor(e!) dw_ih, Tensor(f!) dw_hh, Tensor(g!) db_ih, Tensor(h!) db_hh, int cell, bool reverse, bool add_dx) -> "
      "()");
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
