// Backward of one direction: the reverse loop chunk by chunk, and after each chunk the sums over its rows, in a fixed order
// of chunks. Part of bindings.cpp.

struct Gradients {
  Operand dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh;  // empty where not wanted
};

template <class Real>
void start_from(const Kernels<Real>& kernels, const Real* from, int64_t count, Wide<Real>* to) {
  if (from) {
    kernels.widen(from, count, to);
  } else if (count > 0) {
    std::memset(to, 0, count * sizeof *to);
  }
}

// The active rows of a chunk: dgates, and what they are multiplied with.
template <class Real>
struct ActiveRows {
  explicit ActiveRows(int64_t most) : dgates(most), x(most), h_prev(most), dx(most), tokens(most) {}

  int64_t count = 0;
  Buffer<const Real*> dgates, x, h_prev;
  Buffer<Real*> dx;
  Buffer<int64_t> tokens;
};

// Whether a sum over R rows of products of M and N columns is large enough for a GEMM to gain more by its packing than it
// loses by its launch: benchmarks/NOTES.md. On an AMD MKL's are of 256 bits: kernels of 512 are faster at any size.
bool gemm_is_faster(int64_t R, int64_t M, int64_t N) {
#if defined(__x86_64__)
  if (current_isa >= isa_avx512 && __builtin_cpu_is("amd")) return false;
#endif
  return !works_alone && R >= 64 && M * N > 1 << 18;
}

template <class Real>
Tensor matrix(Real* at, int64_t rows, int64_t columns, int64_t stride, bool transposed = false) {
  const int64_t sizes[] = {transposed ? columns : rows, transposed ? rows : columns};
  const int64_t strides[] = {transposed ? 1 : stride, transposed ? stride : 1};
  return torch::stable::from_blob(at, {sizes, 2}, {strides, 2},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), scalar_type<Real>);
}

// out (+)= a b
void gemm(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  if (add) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  }
}

// Copied together, as GEMMs want them, and times one, which leaves no denormal: the GEMMs' threads have a mode of their own.
template <class Real>
void gather(const Real* const* rows, int64_t count, int64_t columns, Real* to) {
  const int64_t stride = padded_row<Real>(columns);
  Real one = 1;
  asm("" : "+m"(one));
  in_pieces(count, threads_for(count * columns, count), [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const Real* __restrict from = rows[k];
      Real* __restrict row = to + k * stride;
      for (int64_t column = 0; column < columns; ++column) row[column] = from[column] * one;
    }
  });
}

// A gradient of a weight as it is summed: in place; in 16 bits apart; where GEMMs sum it, in rows as they write them
// fastest: MKL takes up to a third longer for wide rows that are not whole cache lines.
template <class Real>
class Summed {
 public:
  Summed(const Kernels<Real>& kernels, const Operand& gradient, int64_t columns, bool by_gemm)
      : kernels(kernels),
        to(data<Real>(gradient)),
        rows(gradient.numel() / columns),
        columns(columns),
        stride(by_gemm && columns % line_of<Real> != 0 ? padded_row<Real>(columns) : columns),
        apart(wider || stride != columns ? rows * stride : 0) {}

  Wide<Real>* at(int64_t row) const {
    if constexpr (!wider) {
      if (!apart.get()) return to + row * columns;
    }
    return apart.get() + row * stride;
  }
  // Rows [row, row + count) (+)= left^T right.
  void add_product(int64_t row, int64_t count, Real* left, int64_t left_stride, int64_t depth, Real* right,
                   bool add) const {
    gemm(matrix(at(row), count, columns, stride), matrix(left, depth, count, left_stride, true),
         matrix(right, depth, columns, padded_row<Real>(columns)), add);
  }
  void finish() const {
    if (!apart.get()) return;
    in_pieces(rows, threads_for(rows * columns, rows), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) kernels.narrow(at(r), columns, to + r * columns);
    });
  }

 private:
  static constexpr bool wider = sizeof(Wide<Real>) != sizeof(Real);
  const Kernels<Real>& kernels;
  Real* to;
  int64_t rows, columns, stride;
  Buffer<Wide<Real>> apart;
};

template <class Real>
void run_backward(const Direction& at, const Shape& s, const Operand& dy, const Operand& dh_n, const Operand& dc_n,
                  const Operand& x, const Operand& h0, const Operand& c0, const Operand& w_ih, const Operand& w_hh,
                  const Operand& b_ih, const Operand& b_hh, const Operand& y, const Operand& saved,
                  const Operand& cells, bool lean, const Gradients& g) {
  const auto& kernels = needed_kernels<Real>();
  const ScalarType type = scalar_type<Real>, wide_type = scalar_type<Wide<Real>>;
  const int64_t G = gates_of(s.cell), H = s.H, I = s.I, B = s.B, T = s.T, R = row_count(s, x);
  const int64_t blocks = blocks_of(s.cell), gate_width = blocks * H;
  const int64_t dgates_stride = padded_row<Real>(gate_width);
  const bool tokens = x.scalar_type() == ScalarType::Long, gru = s.cell == Cell::gru, lstm = s.cell == Cell::lstm;
  check_weights<Real>(s, w_ih, w_hh, b_ih, b_hh);
  check_dense(h0, "h0", {at.D, B, H}, type);
  check_optional(dh_n, "dh_n", {at.D, B, H}, type);
  if (lstm) {
    check_dense(c0, "c0", {at.D, B, H}, type);
    check_optional(dc_n, "dc_n", {at.D, B, H}, type);
    if (R > 0 && lean) check_dense(cells, "cells", {at.D, lean_chunks(T), B, H}, wide_type);
    if (R > 0 && !lean) check_dense(cells, "cells", {at.D, R, H}, wide_type);
  }
  lean = lean && (lstm || gru);  // an RNN keeps nothing but y either way
  if ((lstm || gru) && R > 0 && !lean) check_dense(saved, "saved", {at.D, R, blocks, H}, type);
  check_optional(g.dh0, "dh0", {at.D, B, H}, type);
  check_optional(g.dc0, "dc0", {at.D, B, H}, type);
  check_optional(g.dw_ih, "dw_ih", {G * H, I}, type);
  check_optional(g.dw_hh, "dw_hh", {G * H, H}, type);
  check_optional(g.db_ih, "db_ih", {G * H}, type);
  check_optional(g.db_hh, "db_hh", {G * H}, type);

  // dgates, what they are multiplied with, c
  const int64_t kept_bytes = (gate_width + H) * sizeof(Real) + (lean && lstm ? H : 0) * sizeof(Wide<Real>);
  const int64_t step_bytes = B * kept_bytes;
  int64_t steps_per_chunk = std::max<int64_t>(1, chunk_bytes / std::max<int64_t>(1, step_bytes));
  steps_per_chunk = std::min(steps_per_chunk, T);
  if (lean && lstm && steps_per_chunk < T) {  // from one kept c to another
    steps_per_chunk = std::max<int64_t>(1, steps_per_chunk / lean_chunk) * lean_chunk;
  }
  const int64_t most_rows = std::min(steps_per_chunk, T) * B;
  const bool want_w_hh = g.dw_hh.numel() > 0, want_w_ih = g.dw_ih.numel() > 0, want_dx = g.dx.numel() > 0;
  const bool add_dx = at.d > 0;  // dx holds the forward direction's part
  const bool want_bias = g.db_ih.numel() > 0 || g.db_hh.numel() > 0;
  Buffer<Real> dgates(most_rows * dgates_stride), carried(B * gate_width);
  Buffer<const Real*> h_prev(most_rows);
  // Where a row of w_hh is whole vectors, it can be read as it lies, but in 16 bits.
  const bool few = R <= few_rows && kernels.add_scaled_rows;
  const bool pack = !few || kernels.padded_units(H) != H;
  const int64_t all_gates[] = {G * H, 0}, windows[] = {gru ? 2 * H : G * H, gru ? H : 0};
  Buffer<Real> packed(pack ? kernels.padded_units(H) * kernels.backward_depth(s.cell, H) : 0);
  Buffer<Wide<Real>> column_sums(gate_width), zeros(gate_width);
  std::vector<const Real*> next(B, nullptr);
  std::memset(column_sums.get(), 0, gate_width * sizeof(Wide<Real>));
  std::memset(zeros.get(), 0, gate_width * sizeof(Wide<Real>));

  Buffer<Wide<Real>> dh(B * H), dc(lstm ? B * H : 0), chunk_cells(lean && lstm ? most_rows * H : 0);
  Buffer<Wide<Real>> first_c(lstm ? B * H : 0);
  std::optional<Inputs<Real>> inputs;
  if (lean) inputs.emplace(kernels, s, x, w_ih, w_hh, b_ih, b_hh, Schedule::hoisted);
  start_from(kernels, part<const Real>(dh_n, at.d, at.D), B * H, dh.get());
  if (lstm) start_from(kernels, part<const Real>(dc_n, at.d, at.D), B * H, dc.get());
  if (lstm) start_from(kernels, part<const Real>(c0, at.d, at.D), B * H, first_c.get());

  Backward<Real> f{};
  f.shape = s;
  f.h0 = part<const Real>(h0, at.d, at.D);
  f.c0 = first_c.get();
  f.zeros = zeros.get();
  f.y = rows_of<const Real>(y, "y", s, R, H, type, at.d * H, at.D * H);
  f.dy = optional_rows<const Real>(dy, "dy", s, R, H, type, at.d * H, at.D * H);
  f.lean = lean;
  f.saved = part<const Real>(saved, at.d, at.D);
  f.cells = !lean ? part<Wide<Real>>(cells, at.d, at.D) : lstm ? chunk_cells.get() : nullptr;
  f.dh = dh.get();
  f.dc = lstm ? dc.get() : nullptr;
  f.dgates = dgates.get();
  f.h_prev = h_prev.get();
  f.dgates_stride = dgates_stride;
  f.carried = carried.get();
  f.next = next.data();
  f.packed = pack;
  f.w_hh = pack ? packed.get() : data<const Real>(w_hh);
  const auto pack_columns = [&](const Operand& w, const int64_t (&parts)[2], int64_t columns, Real* to) {
    const int64_t panels = kernels.backward_panels(columns);
    in_pieces(panels, threads_for(G * H * columns * 8, panels), [&](int64_t first, int64_t last) {
      kernels.pack_backward(data<const Real>(w), parts, columns, to, first, last);
    });
  };
  if (pack && (T > 1 || g.dh0.numel() > 0)) pack_columns(w_hh, windows, H, packed.get());
  const Rows<Real> x_rows = tokens ? Rows<Real>{} : rows_of<Real>(x, "x", s, R, I, type);
  const Rows<const int64_t> token_rows =
      tokens ? rows_of<const int64_t>(x, "x", s, R, 0, ScalarType::Long) : Rows<const int64_t>{};
  const Rows<Real> dx_rows = optional_rows<Real>(g.dx, "dx", s, R, I, type);
  Buffer<Wide<Real>> token_sums(tokens && want_w_ih ? I * G * H : 0);
  if (tokens && want_w_ih) std::memset(token_sums.get(), 0, I * G * H * sizeof(Wide<Real>));

  if (tokens) check_tokens(s, token_rows);
  ActiveRows<Real> rows(most_rows);
  constexpr bool may_gemm = sizeof(Wide<Real>) == sizeof(Real);
  const bool gemm_ih = may_gemm && want_w_ih && !tokens && gemm_is_faster(R, G * H, I);
  const bool gemm_hh = may_gemm && want_w_hh && gemm_is_faster(R, G * H, H);
  const bool gemm_dx = may_gemm && want_dx && gemm_is_faster(R, G * H, I), gemms = gemm_ih || gemm_hh || gemm_dx;
  Buffer<Real> packed_ih(want_dx && !few && !gemm_dx ? kernels.padded_units(I) * kernels.depth(G * H) : 0);
  if (packed_ih.get()) pack_columns(w_ih, all_gates, I, packed_ih.get());
  const Summed<Real> sums_ih(kernels, tokens ? Operand() : g.dw_ih, I, gemm_ih), sums_hh(kernels, g.dw_hh, H, gemm_hh);
  Buffer<Real> dgates_together(gemms && s.lengths && !s.row_offsets ? most_rows * dgates_stride : 0),
      x_together(gemm_ih || gemm_dx ? most_rows * padded_row<Real>(I) : 0),
      h_together(gemm_hh ? most_rows * padded_row<Real>(H) : 0);

  const StepCost cost{G * H * H, G * H * H * int64_t(sizeof(Real)), kernels.rate};
  const auto in_loop = [&](const Shape& shape, const auto& run) {
    in_shares(shape, cost.row_work, kernels.backward_panels(H), cost, run);
  };
  for (int64_t end = T, begin; end > 0; end = begin) {
    begin = (end - 1) / steps_per_chunk * steps_per_chunk;
    if (lean) {
      f.chunk_c = lstm ? part<const Wide<Real>>(cells, at.d, at.D) + begin / lean_chunk * B * H : nullptr;
      inputs->in_shares_with_room([&](const Share& share, int64_t steps, Wide<Real>* workspace) {
        kernels.rebuild(inputs->f, f, share, begin, end, steps, workspace);
      });
    }
    in_loop(s, [&](const Share& share) { kernels.backward(f, share, begin, end); });

    const int64_t t0 = s.reverse ? T - end : begin, t1 = s.reverse ? T - begin : end, row0 = row_number(s, t0, 0);
    rows.count = 0;
    for (int64_t t = t0; t < t1; ++t) {
      for (int64_t b = 0; b < B; ++b) {
        if (t >= length_of(s, b)) {
          if (s.row_offsets) break;
          if (want_dx && !add_dx) std::memset(row_at(s, dx_rows, t, b), 0, I * sizeof(Real));
          continue;
        }
        const int64_t number = row_number(s, t, b) - row0, k = rows.count++;
        rows.dgates.get()[k] = dgates.get() + number * dgates_stride;
        rows.h_prev.get()[k] = h_prev.get()[number];
        if (tokens) rows.tokens.get()[k] = *row_at(s, token_rows, t, b);
        if (!tokens) rows.x.get()[k] = row_at(s, x_rows, t, b);
        if (want_dx) rows.dx.get()[k] = row_at(s, dx_rows, t, b);
      }
    }
    if constexpr (may_gemm) {
      Real* together = dgates.get();
      const bool scattered = !s.row_offsets && rows.count < (t1 - t0) * B;
      if (scattered && gemms) {
        gather(rows.dgates.get(), rows.count, dgates_stride, together = dgates_together.get());
      }
      const auto add_product = [&](const Summed<Real>& sums, int64_t row, int64_t gates, int64_t block, Real* right) {
        sums.add_product(row * H, gates * H, together + block * H, dgates_stride, rows.count, right, end < T);
      };
      if (gemm_ih) {
        gather(rows.x.get(), rows.count, I, x_together.get());
        add_product(sums_ih, 0, G, 0, x_together.get());
      }
      if (gemm_hh) {
        gather(rows.h_prev.get(), rows.count, H, h_together.get());
        add_product(sums_hh, 0, gru ? 2 : G, 0, h_together.get());
        if (gru) add_product(sums_hh, 2, 1, 3, h_together.get());
      }
      if (gemm_dx) {
        const int64_t n = rows.count, stride = padded_row<Real>(I);
        gemm(matrix(x_together.get(), n, I, stride), matrix(together, n, G * H, dgates_stride),
             matrix(const_cast<Real*>(data<const Real>(w_ih)), G * H, I, I), false);
        in_pieces(n, threads_for(n * I, n), [&](int64_t first, int64_t last) {
          for (int64_t k = first; k < last; ++k) {
            const Real* from = x_together.get() + k * stride;
            if (add_dx) kernels.add_row(from, I, rows.dx.get()[k]);
            if (!add_dx) std::memcpy(rows.dx.get()[k], from, I * sizeof(Real));
          }
        });
      }
    }
    const int64_t count = rows.count, work = count * G * H * (want_w_hh * H + (want_w_ih + want_dx) * I);
    const bool add = end < T;
    const int64_t pieces = threads_for(work, G * H);
    in_pieces(pieces, pieces, [&](int64_t piece, int64_t last_piece) {
      const auto mine = [&](int64_t n) { return std::pair(n * piece / pieces, n * last_piece / pieces); };
      const auto add_outer = [&](int64_t block, int64_t gates, const Real* const* right, int64_t N, Wide<Real>* out) {
        const auto [m0, m1] = mine(gates * H);
        kernels.add_outer(rows.dgates.get(), block * H, right, count, m0, m1, N, out, add);
      };
      if (want_w_hh && !gemm_hh) add_outer(0, gru ? 2 : G, rows.h_prev.get(), H, sums_hh.at(0));
      if (want_w_hh && !gemm_hh && gru) add_outer(3, 1, rows.h_prev.get(), H, sums_hh.at(2 * H));
      if (want_w_ih && !gemm_ih && !tokens) add_outer(0, G, rows.x.get(), I, sums_ih.at(0));
      if (want_w_ih && tokens) {
        const auto [first, last] = mine(G * H);
        for (int64_t k = 0; k < count; ++k) {
          kernels.add_row(rows.dgates.get()[k] + first, last - first,
                          token_sums.get() + rows.tokens.get()[k] * G * H + first);
        }
      }
      if (want_bias) {
        const auto [first, last] = mine(gate_width);
        kernels.add_columns(rows.dgates.get(), count, first, last, column_sums.get());
      }
      if (want_dx && few) {
        const auto [first, last] = mine(I);
        for (int64_t k = 0; k < count; ++k) {
          kernels.add_scaled_rows(rows.dgates.get()[k], data<const Real>(w_ih), G * H, I, first, last, rows.dx.get()[k],
                                  add_dx);
        }
      } else if (want_dx && !gemm_dx) {
        const auto [first, last] = mine(count);
        kernels.multiply_rows(rows.dgates.get() + first, last - first, G * H, packed_ih.get(), I, rows.dx.get() + first,
                              add_dx);
      }
    });
  }
  if (g.dh0.numel() > 0) {
    Shape once = s;
    once.T = 1;
    in_loop(once, [&](const Share& share) { kernels.backward_finish(f, share, part<Real>(g.dh0, at.d, at.D)); });
  }
  if (lstm && g.dc0.numel() > 0) kernels.narrow(dc.get(), B * H, part<Real>(g.dc0, at.d, at.D));
  sums_ih.finish();
  sums_hh.finish();
  if (tokens && want_w_ih) {
    Buffer<Wide<Real>> row(I);
    for (int64_t r = 0; r < G * H; ++r) {
      for (int64_t token = 0; token < I; ++token) row.get()[token] = token_sums.get()[token * G * H + r];
      kernels.narrow(row.get(), I, data<Real>(g.dw_ih) + r * I);
    }
  }
  if (g.db_ih.numel() > 0) kernels.narrow(column_sums.get(), G * H, data<Real>(g.db_ih));
  if (g.db_hh.numel() > 0) {
    kernels.narrow(column_sums.get(), (gru ? 2 : G) * H, data<Real>(g.db_hh));
    if (gru) kernels.narrow(column_sums.get() + 3 * H, H, data<Real>(g.db_hh) + 2 * H);
  }
}
