// Registers the private kernel ops through torch's stable ABI and re-checks what memory safety needs. With the
// headers beside it that are part of it the only file in csrc that knows torch. One call runs one layer.
//
// Work is cut by batch rows: a thread runs every step of its rows, so the recurrence has no barrier. Where that costs
// less (threads.h), threads share rows, each with hidden units of its own, and meet after every step. Either way the bits
// do not depend on the number of threads. Large sums over rows in backward (dW, dX) are torch's GEMMs over chunks of dgates.
#include <dirent.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/layer.h"
#include "scratch.h"

namespace {

using namespace fusedrnn;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

constexpr int64_t abi_version = 10;
constexpr int64_t pre_bytes = 256 << 10;   // x W_ih of a chunk of steps, per thread: half of a small L2 ...
constexpr int64_t pre_rows = 96;           // ... but so many rows at least: every chunk reads W_ih again
constexpr int64_t chunk_bytes = 10 << 20;  // what backward keeps of a chunk of steps
constexpr int64_t few_rows = 3;            // of which gradients are summed without packing or GEMMs

enum class Schedule : int64_t { automatic, concat, hoisted };  // as SCHEDULES there
enum Save : int64_t { save_none, save_full, save_lean };       // as SAVE in fusedrnn/cells.py

enum Isa : int64_t { isa_portable, isa_avx2, isa_avx512, isa_avx512_bf16, isa_amx, isa_count };

#if defined(__x86_64__)
bool has_avx512_bf16() {
  constexpr unsigned avx512_bf16 = 1 << 5;
  static const bool has = [] {  // each call of a layer asks, and a virtual machine's host answers
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & avx512_bf16);
  }();
  return has;
}

// The processor has AMX's tiles of bfloat16, and the system saves them: on Linux a process has to ask.
bool amx_is_permitted() {
  constexpr unsigned amx_bf16 = 1 << 22, amx_tile = 1 << 24;
  constexpr long request_permission = 0x1023, tile_data = 18;
  static const bool permitted = [] {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (amx_bf16 | amx_tile)) != (amx_bf16 | amx_tile)) return false;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return permitted;
}
#endif

bool processor_has(int64_t isa) {
#if defined(__x86_64__)
  if (isa == isa_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == isa_avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (isa == isa_avx512_bf16) return processor_has(isa_avx512) && has_avx512_bf16();
  if (isa == isa_amx) return processor_has(isa_avx512_bf16) && amx_is_permitted();
#endif
  return isa == isa_portable;
}

template <class Real>
const Kernels<Real>* kernels_of(int64_t isa) {
  if (!processor_has(isa)) return nullptr;
  const auto* const of_bfloat16 = isa == isa_amx           ? amx_kernels<bfloat16>()
                                  : isa == isa_avx512_bf16 ? avx512_bf16_kernels<bfloat16>()
                                                           : nullptr;
  if constexpr (std::is_same_v<Real, bfloat16>) return of_bfloat16;
  if (isa >= isa_avx512_bf16) return of_bfloat16 ? avx512_kernels<Real>() : nullptr;
  return isa == isa_avx512 ? avx512_kernels<Real>() : isa == isa_avx2 ? avx2_kernels<Real>() : portable_kernels<Real>();
}

int64_t best_isa() {
  int64_t isa = isa_count - 1;
  while (!kernels_of<float>(isa)) --isa;
  return isa;
}

int64_t current_isa = best_isa();

template <class Real>
const Kernels<Real>& needed_kernels() {
  const auto* kernels = kernels_of<Real>(current_isa);
  STD_TORCH_CHECK(kernels, "no kernels of this dtype for this processor");
  return *kernels;
}

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

#include "operands.h"
#include "threads.h"

void share_rows_always(bool always) { sharing.always = always; }
void force_cut(int64_t groups, int64_t pieces) { forced_cut = {groups, pieces}; }

// Direction d of the D of a layer.
struct Direction {
  int64_t d, D;
};

// direction: 0 forward, 1 reverse, 2 both
int64_t count_of(int64_t direction) { return direction == 2 ? 2 : 1; }

template <class F>
void each_direction(int64_t direction, const F& run) {
  STD_TORCH_CHECK(direction >= 0 && direction <= 2, "unknown direction");
  const int64_t D = count_of(direction);
  for (int64_t d = 0; d < D; ++d) run(Direction{d, D}, direction == 1 || d == 1);
}

#include "inputs.h"

template <class Real>
void run_forward(const Direction& at, const Shape& s, const Operand& x, const Operand& h0, const Operand& c0,
                 const Operand& w_ih, const Operand& w_hh, const Operand& b_ih, const Operand& b_hh, const Operand& y,
                 const Operand& h_n, const Operand& c_n, const Operand& saved, const Operand& cells,
                 Schedule schedule) {
  const auto& kernels = needed_kernels<Real>();
  const ScalarType type = scalar_type<Real>;
  constexpr bool wider = sizeof(Wide<Real>) != sizeof(Real);
  const int64_t H = s.H, B = s.B, R = row_count(s, x);
  const bool lstm = s.cell == Cell::lstm, lean = cells.dim() == 4;
  check_weights<Real>(s, w_ih, w_hh, b_ih, b_hh);
  check_dense(h0, "h0", {at.D, B, H}, type);
  check_dense(h_n, "h_n", {at.D, B, H}, type);
  if (lstm) {
    check_dense(c0, "c0", {at.D, B, H}, type);
    check_dense(c_n, "c_n", {at.D, B, H}, type);
  }
  check_optional(saved, "saved", {at.D, R, blocks_of(s.cell), H}, type);
  if (lean) {
    check_optional(cells, "cells", {at.D, lean_chunks(s.T), B, H}, scalar_type<Wide<Real>>);
  } else {
    check_optional(cells, "cells", {at.D, R, H}, scalar_type<Wide<Real>>);
  }

  Inputs<Real> inputs(kernels, s, x, w_ih, w_hh, b_ih, b_hh, schedule);
  Forward<Real>& f = inputs.f;
  f.h0 = part<const Real>(h0, at.d, at.D);
  // In 16 bits c and the GRU's h are widened for the call.
  const bool widened_h = wider && s.cell == Cell::gru;
  Buffer<Wide<Real>> wide(wider && lstm ? 2 * B * H : widened_h ? B * H : 0);
  if constexpr (wider) {
    if (lstm) kernels.widen(part<const Real>(c0, at.d, at.D), B * H, wide.get());
    if (widened_h) kernels.widen(f.h0, B * H, wide.get());
    f.c0 = lstm ? wide.get() : nullptr;
    f.c_n = lstm ? wide.get() + B * H : nullptr;
    f.h = widened_h ? wide.get() : nullptr;
  } else {
    f.c0 = lstm ? part<const Real>(c0, at.d, at.D) : nullptr;
    f.c_n = lstm ? part<Real>(c_n, at.d, at.D) : nullptr;
  }
  f.y = rows_of<Real>(y, "y", s, R, H, type, at.d * H, at.D * H);
  f.h_n = part<Real>(h_n, at.d, at.D);
  f.saved = part<Real>(saved, at.d, at.D);
  (lean && lstm ? f.chunk_cells : f.cells) = part<Wide<Real>>(cells, at.d, at.D);
  if (f.tokens.base) check_tokens(s, f.tokens);
  inputs.in_shares_with_room(
      [&](const Share& share, int64_t steps, Wide<Real>* workspace) { kernels.forward(f, share, steps, workspace); });
  if constexpr (wider) {
    if (lstm) kernels.narrow(f.c_n, B * H, part<Real>(c_n, at.d, at.D));
  }
}

// The weights of one direction, or their gradients.
struct Weights {
  Operand w_ih, w_hh, b_ih, b_hh;
};

void forward_into(const Operand& x, const Operand& h0, const Operand& c0, const Weights (&weights)[2],
                  const Operand& row_offsets, const Operand& lengths, const Operand& resets, int64_t cell,
                  int64_t direction, Schedule schedule, const Operand& y, const Operand& h_n, const Operand& c_n,
                  const Operand& saved, const Operand& cells) {
  each_direction(direction, [&](const Direction& at, bool reverse) {
    const auto& [w, u, b, v] = weights[at.d];
    const Shape s = shape_of(cell, reverse, x, h0, w, row_offsets, lengths, resets);
    with_type(w.scalar_type(), [&](auto real) {
      run_forward<decltype(real)>(at, s, x, h0, c0, w, u, b, v, y, h_n, c_n, saved, cells, schedule);
    });
  });
}

void forward_out(const Tensor& x, const Tensor& h0, const Optional& c0, const Tensor& w_ih, const Tensor& w_hh,
                 const Optional& b_ih, const Optional& b_hh, const Optional& w_ih_reverse, const Optional& w_hh_reverse,
                 const Optional& b_ih_reverse, const Optional& b_hh_reverse, const Optional& row_offsets,
                 const Optional& lengths, const Optional& resets, int64_t cell, int64_t direction, int64_t schedule,
                 Tensor y, Tensor h_n, Tensor c_n, Tensor saved, Tensor cells) {
  forward_into(x, h0, c0, {{w_ih, w_hh, b_ih, b_hh}, {w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse}},
               row_offsets, lengths, resets, cell, direction, schedule_of(schedule), y, h_n, c_n, saved, cells);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& x, const Optional& given_h0, const Optional& given_c0, const Tensor& w_ih, const Tensor& w_hh,
    const Optional& b_ih, const Optional& b_hh, const Optional& w_ih_reverse, const Optional& w_hh_reverse,
    const Optional& b_ih_reverse, const Optional& b_hh_reverse, const Optional& row_offsets, const Optional& lengths,
    const Optional& resets, int64_t cell, int64_t direction, int64_t schedule, bool batch_first, int64_t save) {
  const Optional offsets = dense(row_offsets), active = dense(lengths), starts = dense(resets);
  const int64_t D = count_of(direction);
  const auto [h0, c0] = states_or_zeros(given_h0, given_c0, cell, D, x, w_hh, offsets);
  const Tensor rows = dense_rows(x);
  const bool step = is_step(x, offsets);
  const Shape s = shape_of(cell, false, whole(rows, step), whole(h0, step), w_ih, offsets, active, starts);
  const int64_t R = row_count(s, x), without = step ? 0 : -1;
  STD_TORCH_CHECK(!step || D == 1, "direction: a step has one");
  const bool lstm = s.cell == Cell::lstm, full = save == save_full;
  const auto made = [&](bool present, std::initializer_list<int64_t> sizes) {
    return present ? new_tensor(w_ih, sizes) : new_tensor(w_ih, {0});
  };
  const Tensor h_n = new_tensor(w_ih, {D, s.B, s.H}, without);
  const Tensor c_n = lstm ? new_tensor(w_ih, {D, s.B, s.H}, without) : new_tensor(w_ih, {0});
  const Tensor y = step ? Tensor() : new_rows(w_ih, s, R, D * s.H, batch_first);
  const Tensor saved = made(full && !is_rnn(s.cell), {D, R, blocks_of(s.cell), s.H});
  const Tensor cells = lstm && save == save_lean ? new_cells(w_ih, {D, lean_chunks(s.T), s.B, s.H})
                       : full && lstm            ? new_cells(w_ih, {D, R, s.H})
                                                 : new_cells(w_ih, {0});
  forward_into(whole(rows, step), whole(h0, step), whole(c0, step),
               {{dense(w_ih), dense(w_hh), dense(b_ih), dense(b_hh)},
                {dense(w_ih_reverse), dense(w_hh_reverse), dense(b_ih_reverse), dense(b_hh_reverse)}},
               offsets, active, starts, cell, direction, schedule_of(schedule), step ? whole(h_n, step) : Operand(y),
               whole(h_n, step), whole(c_n, step), saved, cells);
  return {y, h_n, c_n, saved, cells};
}

#include "inference.h"

#include "gradients.h"

void backward_into(const Operand& dy, const Operand& dh_n, const Operand& dc_n, const Operand& x, const Operand& h0,
                   const Operand& c0, const Weights (&weights)[2], const Operand& row_offsets, const Operand& lengths,
                   const Operand& resets, const Operand& y, const Operand& saved, const Operand& cells, int64_t cell,
                   int64_t direction, bool lean, const Operand& dx, const Operand& dh0, const Operand& dc0,
                   const Weights (&gradients)[2]) {
  each_direction(direction, [&](const Direction& at, bool reverse) {
    const auto& [w, u, b, v] = weights[at.d];
    const auto& [dw, du, db, dv] = gradients[at.d];
    const Shape s = shape_of(cell, reverse, x, h0, w, row_offsets, lengths, resets);
    with_type(w.scalar_type(), [&](auto real) {
      run_backward<decltype(real)>(at, s, dy, dh_n, dc_n, x, h0, c0, w, u, b, v, y, saved, cells, lean,
                                   Gradients{dx, dh0, dc0, dw, du, db, dv});
    });
  });
}

void backward_out(const Optional& dy, const Optional& dh_n, const Optional& dc_n, const Tensor& x, const Tensor& h0,
                  const Optional& c0, const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                  const Optional& b_hh, const Optional& w_ih_reverse, const Optional& w_hh_reverse,
                  const Optional& b_ih_reverse, const Optional& b_hh_reverse, const Optional& row_offsets,
                  const Optional& lengths, const Optional& resets, const Tensor& y, const Tensor& saved,
                  const Tensor& cells, int64_t cell, int64_t direction, bool lean, const Optional& dx,
                  const Optional& dh0, const Optional& dc0, const Optional& dw_ih, const Optional& dw_hh,
                  const Optional& db_ih, const Optional& db_hh, const Optional& dw_ih_reverse,
                  const Optional& dw_hh_reverse, const Optional& db_ih_reverse, const Optional& db_hh_reverse) {
  backward_into(dy, dh_n, dc_n, x, h0, c0,
                {{w_ih, w_hh, b_ih, b_hh}, {w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse}}, row_offsets,
                lengths, resets, y, saved, cells, cell, direction, lean, dx, dh0, dc0,
                {{dw_ih, dw_hh, db_ih, db_hh}, {dw_ih_reverse, dw_hh_reverse, db_ih_reverse, db_hh_reverse}});
}

// Bit k of wanted: gradient k, as in fusedrnn/ops.py; what is not wanted is an undefined tensor, in Python None.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Optional& dy, const Optional& dh_n, const Optional& dc_n, const Tensor& x, const Optional& given_h0,
    const Optional& given_c0, const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih, const Optional& b_hh,
    const Optional& w_ih_reverse, const Optional& w_hh_reverse, const Optional& b_ih_reverse,
    const Optional& b_hh_reverse, const Optional& row_offsets, const Optional& lengths, const Optional& resets,
    const Tensor& y, const Tensor& saved, const Tensor& cells, int64_t cell, int64_t direction, bool lean,
    bool batch_first, int64_t wanted) {
  const Optional offsets = dense(row_offsets), active = dense(lengths), starts = dense(resets);
  const int64_t D = count_of(direction);
  const auto [h0, c0] = states_or_zeros(given_h0, given_c0, cell, D, x, w_hh, offsets);
  const Tensor rows = dense_rows(x), outputs = dense_rows(y);
  const Optional dy_rows = dense_rows(dy), dh_last = dense(dh_n), dc_last = dense(dc_n);
  const bool step = is_step(x, offsets);
  const Shape s = shape_of(cell, false, whole(rows, step), whole(h0, step), w_ih, offsets, active, starts);
  const int64_t G = gates_of(s.cell), without = step ? 0 : -1;
  STD_TORCH_CHECK(!step || D == 1, "direction: a step has one");
  const auto made = [&](int bit, std::initializer_list<int64_t> sizes) {
    return wanted >> bit & 1 ? Optional(new_tensor(w_ih, sizes)) : Optional();
  };
  const auto bias = [&](int bit, const Optional& b) { return b ? made(bit, {G * s.H}) : Optional(); };
  const auto of_state = [&](int bit) {
    return wanted >> bit & 1 ? Optional(new_tensor(w_ih, {D, s.B, s.H}, without)) : Optional();
  };
  Optional dx;
  if (wanted & 1) dx = step ? new_tensor(w_ih, {s.B, s.I}) : new_rows(w_ih, s, row_count(s, x), s.I, batch_first);
  const Optional dh0 = of_state(1), dc0 = s.cell == Cell::lstm ? of_state(2) : Optional();
  Optional dw_ih[2], dw_hh[2], db_ih[2], db_hh[2];
  const Optional *biases_ih[] = {&b_ih, &b_ih_reverse}, *biases_hh[] = {&b_hh, &b_hh_reverse};
  for (int d = 0; d < D; ++d) {
    dw_ih[d] = made(5 * d + 3, {G * s.H, s.I});
    dw_hh[d] = made(5 * d + 4, {G * s.H, s.H});
    db_ih[d] = bias(5 * d + 5, *biases_ih[d]);
    db_hh[d] = bias(5 * d + 6, *biases_hh[d]);
  }
  backward_into(whole(dy_rows, step), whole(dh_last, step), whole(dc_last, step), whole(rows, step), whole(h0, step),
                whole(c0, step),
                {{dense(w_ih), dense(w_hh), dense(b_ih), dense(b_hh)},
                 {dense(w_ih_reverse), dense(w_hh_reverse), dense(b_ih_reverse), dense(b_hh_reverse)}},
                offsets, active, starts, whole(outputs, step), saved, cells, cell, direction, lean, whole(dx, step),
                whole(dh0, step), whole(dc0, step),
                {{dw_ih[0], dw_hh[0], db_ih[0], db_hh[0]}, {dw_ih[1], dw_hh[1], db_ih[1], db_hh[1]}});
  const auto result = [](const Optional& t) { return t ? *t : Tensor(); };
  return {result(dx),       result(dh0),      result(dc0),      result(dw_ih[0]), result(dw_hh[0]), result(db_ih[0]),
          result(db_hh[0]), result(dw_ih[1]), result(dw_hh[1]), result(db_ih[1]), result(db_hh[1])};
}

}  // namespace

// An op of torch's makes its outputs, and zeros of states that are absent; its `out` overload is given all of them.
#define OPERANDS                                                                             \
  "Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "                       \
  "Tensor? w_ih_reverse, Tensor? w_hh_reverse, Tensor? b_ih_reverse, Tensor? b_hh_reverse, " \
  "Tensor? row_offsets, Tensor? lengths, Tensor? resets, "
#define COTANGENTS "Tensor? dy, Tensor? dh_n, Tensor? dc_n, "
#define FORWARD_OPTIONS "int cell, int direction, int schedule"
#define BACKWARD_OPTIONS "Tensor y, Tensor saved, Tensor cells, int cell, int direction, bool lean"

STABLE_TORCH_LIBRARY(fusedrnn_cpu, m) {
  m.def("version() -> int");
  m.def("isas() -> int");
  m.def("isa() -> int");
  m.def("set_isa(int isa) -> ()");
  m.def("share_rows_always(bool always) -> ()");
  m.def("force_cut(int groups, int pieces) -> ()");
  m.def("is_concat(int schedule, int cell, bool in_float32, int T, int B, int I, int H) -> bool");
  m.def("forward(Tensor x, Tensor? h0, " OPERANDS FORWARD_OPTIONS
        ", bool batch_first, int save) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor saved, "
        "Tensor cells)");
  m.def("forward.out(Tensor x, Tensor h0, " OPERANDS FORWARD_OPTIONS
        ", Tensor(a!) y, Tensor(b!) h_n, Tensor(c!) c_n, Tensor(d!) saved, "
        "Tensor(e!) cells) -> ()");
  m.def("layers(Tensor x, Tensor? h0, Tensor? c0, int how, Tensor[] weights) -> (Tensor y, Tensor h_n, Tensor? c_n)");
  m.def(
      "layer(Tensor x, Tensor? h0, Tensor? c0, int how, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh) "
      "-> (Tensor? y, Tensor h_n, Tensor? c_n)");
  m.def("backward(" COTANGENTS "Tensor x, Tensor? h0, " OPERANDS BACKWARD_OPTIONS
        ", bool batch_first, int wanted) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
        "Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("backward.out(" COTANGENTS "Tensor x, Tensor h0, " OPERANDS BACKWARD_OPTIONS
        ", Tensor(a!)? dx, Tensor(b!)? dh0, Tensor(c!)? dc0, Tensor(d!)? dw_ih, "
        "Tensor(e!)? dw_hh, Tensor(f!)? db_ih, Tensor(g!)? db_hh, Tensor(h!)? dw_ih_reverse, "
        "Tensor(i!)? dw_hh_reverse, Tensor(j!)? db_ih_reverse, Tensor(k!)? db_hh_reverse) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn_cpu, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&version));
  m.impl("isas", TORCH_BOX(&isas));
  m.impl("isa", TORCH_BOX(&isa));
  m.impl("set_isa", TORCH_BOX(&set_isa));
  m.impl("share_rows_always", TORCH_BOX(&share_rows_always));
  m.impl("force_cut", TORCH_BOX(&force_cut));
  m.impl("is_concat", TORCH_BOX(&is_concat));
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn_cpu, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("forward.out", TORCH_BOX(&forward_out));
  m.impl("layers", TORCH_BOX(&layers));
  m.impl("layer", TORCH_BOX(&layer));
  m.impl("backward", TORCH_BOX(&backward));
  m.impl("backward.out", TORCH_BOX(&backward_out));
}
