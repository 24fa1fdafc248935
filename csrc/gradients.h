// Backward of one direction: the reverse loop chunk by chunk, and after each chunk the sums over its rows as GEMMs, in a
// fixed order of chunks. Part of bindings.cpp.

struct Gradients {
  Operand dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh;  // empty where not wanted
};

// A row-major matrix in raw memory.
template <class Real>
struct Matrix {
  Real* at;
  int64_t rows, columns, stride;

  Tensor view(bool transposed) const {
    const int64_t sizes[] = {transposed ? columns : rows, transposed ? rows : columns};
    const int64_t strides[] = {transposed ? 1 : stride, transposed ? stride : 1};
    return torch::stable::from_blob(at, {sizes, 2}, {strides, 2},
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU), scalar_type<Real>);
  }
};

// out (+)= op(a) b. A GEMM over a few rows costs more to launch than to do.
template <class Real>
void product(const Kernels<Real>& kernels, const Matrix<Real>& out, const Matrix<Real>& a, bool transpose_a,
             const Matrix<Real>& b, bool add) {
  if (a.rows <= unpacked_rows) {
    for (int64_t m = 0; m < out.rows; ++m) {
      const Real* scale = a.at + m * (transpose_a ? 1 : a.stride);
      kernels.add_scaled_rows(scale, transpose_a ? a.stride : 1, b.at, b.rows, b.stride, b.columns,
                              out.at + m * out.stride, add);
    }
    return;
  }
  const Tensor to = out.view(false), left = a.view(transpose_a), right = b.view(false);
  if (add) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(to.get(), to.get(), left.get(), right.get(), 1.0, 1.0));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(to.get(), left.get(), right.get()));
  }
}

// out[column] += sum over rows
template <class Real>
void add_columns(const Kernels<Real>& kernels, const Matrix<Real>& a, Real* out) {
  constexpr int64_t strip = 64;
  const int64_t strips = (a.columns + strip - 1) / strip;
  in_pieces(strips, threads_for(a.rows * a.columns, strips), [&](int64_t first, int64_t last) {
    const int64_t k0 = first * strip, k1 = std::min(a.columns, last * strip);
    kernels.add_columns(a.at + k0, a.rows, a.stride, k1 - k0, out + k0);
  });
}

template <class Real>
void start_from(const Real* from, int64_t count, Real* to) {
  if (count == 0) return;
  if (from) {
    std::memcpy(to, from, count * sizeof(Real));
  } else {
    std::memset(to, 0, count * sizeof(Real));
  }
}

// Whether a GEMM should write rows of this width into padded ones: MKL takes up to a third longer for rows that are not
// whole cache lines. Narrow rows cost no more.
template <class Real>
constexpr bool wants_padding(int64_t width) {
  return width >= 256 && width % line_of<Real> != 0;
}

// Where a GEMM adds up a dense gradient: in place, or in padded rows until it is finished.
template <class Real>
class Sums {
 public:
  Sums(const Operand& gradient, int64_t rows, int64_t columns, bool wanted)
      : to(wanted ? data<Real>(gradient) : nullptr),
        rows(rows),
        columns(columns),
        apart(wanted && wants_padding<Real>(columns)),
        stride(apart ? padded_row<Real>(columns) : columns),
        scratch(apart ? rows * stride : 0) {}

  Matrix<Real> part(int64_t first, int64_t count) const {
    return {(apart ? scratch.get() : to) + first * stride, count, columns, stride};
  }
  void finish() const {
    if (!apart) return;
    in_pieces(rows, threads_for(rows * columns, rows), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        std::memcpy(to + r * columns, scratch.get() + r * stride, columns * sizeof(Real));
      }
    });
  }

 private:
  Real* to;
  int64_t rows, columns;
  bool apart;
  int64_t stride;
  Buffer<Real> scratch;
};

// Rows of a chunk as one matrix: a view where they lie evenly spaced in memory, and want no padding where a GEMM writes
// them (`written`), else a copy with inactive rows zeroed.
template <class Real>
class ChunkRows {
 public:
  ChunkRows(const Shape& s, const Rows<Real>& rows, int64_t width, int64_t most_rows, bool written)
      : shape(s),
        rows(rows),
        width(width),
        stride(padded_row<Real>(width)),
        apart(!(s.row_offsets || (!s.lengths && rows.step == s.B * rows.batch)) ||
              (written && wants_padding<Real>(width))),
        scratch(apart ? most_rows * stride : 0) {}

  Matrix<Real> matrix(int64_t first_step, int64_t count) const {
    if (apart) return {scratch.get(), count, width, stride};
    return {rows.base + row_number(shape, first_step, 0) * rows.batch, count, width, rows.batch};
  }
  void gather(int64_t first_step, int64_t last_step) const { each(first_step, last_step, true); }
  void scatter(int64_t first_step, int64_t last_step) const { each(first_step, last_step, false); }

 private:
  void each(int64_t first_step, int64_t last_step, bool in) const {
    if (!apart) return;
    const int64_t first_row = row_number(shape, first_step, 0);
    for (int64_t t = first_step; t < last_step; ++t) {
      for (int64_t b = 0; b < shape.B; ++b) {
        const bool active = t < length_of(shape, b);
        if (!active && shape.row_offsets) break;
        Real* here = scratch.get() + (row_number(shape, t, b) - first_row) * stride;
        Real* there = row_at(shape, rows, t, b);
        if (!in) {
          std::memcpy(there, here, width * sizeof(Real));
        } else if (!active) {
          std::memset(here, 0, width * sizeof(Real));
        } else {
          std::memcpy(here, there, width * sizeof(Real));
        }
      }
    }
  }

  const Shape& shape;
  Rows<Real> rows;
  int64_t width, stride;
  bool apart;
  Buffer<Real> scratch;
};

template <class Real>
void run_backward(const Direction& at, const Shape& s, const Operand& dy, const Operand& dh_n, const Operand& dc_n,
                  const Operand& x, const Operand& h0, const Operand& c0, const Operand& w_ih, const Operand& w_hh,
                  const Operand& b_ih, const Operand& b_hh, const Operand& y, const Operand& saved,
                  const Operand& cells, bool lean, const Gradients& g) {
  const auto& kernels = *kernels_of<Real>(current_isa);
  const ScalarType type = scalar_type<Real>;
  const int64_t G = gates_of(s.cell), H = s.H, I = s.I, B = s.B, T = s.T, R = row_count(s, x);
  const int64_t blocks = blocks_of(s.cell), gate_width = blocks * H;
  const int64_t dgates_stride = padded_row<Real>(gate_width), h_prev_stride = padded_row<Real>(H);
  const bool tokens = x.scalar_type() == ScalarType::Long, gru = s.cell == Cell::gru, lstm = s.cell == Cell::lstm;
  check_weights<Real>(s, w_ih, w_hh, b_ih, b_hh);
  check_dense(h0, "h0", {at.D, B, H}, type);
  check_optional(dh_n, "dh_n", {at.D, B, H}, type);
  if (lstm) {
    check_dense(c0, "c0", {at.D, B, H}, type);
    check_optional(dc_n, "dc_n", {at.D, B, H}, type);
    if (R > 0 && lean) check_dense(cells, "cells", {at.D, lean_chunks(T), B, H}, type);
    if (R > 0 && !lean) check_dense(cells, "cells", {at.D, R, H}, type);
  }
  lean = lean && (lstm || gru);  // an RNN keeps nothing but y either way
  if ((lstm || gru) && R > 0 && !lean) check_dense(saved, "saved", {at.D, R, blocks, H}, type);
  check_optional(g.dh0, "dh0", {at.D, B, H}, type);
  check_optional(g.dc0, "dc0", {at.D, B, H}, type);
  check_optional(g.dw_ih, "dw_ih", {G * H, I}, type);
  check_optional(g.dw_hh, "dw_hh", {G * H, H}, type);
  check_optional(g.db_ih, "db_ih", {G * H}, type);
  check_optional(g.db_hh, "db_hh", {G * H}, type);

  const int64_t kept_width = gate_width + H + (lean && lstm ? H : 0);  // dgates, the state before, c
  const int64_t step_bytes = B * kept_width * int64_t(sizeof(Real));
  int64_t steps_per_chunk = std::max<int64_t>(1, chunk_bytes / std::max<int64_t>(1, step_bytes));
  steps_per_chunk = std::min(steps_per_chunk, T);
  if (lean && lstm && steps_per_chunk < T) {  // from one kept c to another
    steps_per_chunk = std::max<int64_t>(1, steps_per_chunk / lean_chunk) * lean_chunk;
  }
  const int64_t most_rows = std::min(steps_per_chunk, T) * B;
  const bool want_w_hh = g.dw_hh.numel() > 0, want_w_ih = g.dw_ih.numel() > 0, want_dx = g.dx.numel() > 0;
  const bool add_dx = at.d > 0;  // dx holds the forward direction's part
  const bool want_bias = g.db_ih.numel() > 0 || g.db_hh.numel() > 0;
  Buffer<Real> dgates(most_rows * dgates_stride), h_prev(want_w_hh ? most_rows * h_prev_stride : 0),
      carried(B * gate_width);
  // Where a row of w_hh is whole vectors, it can be read as it lies.
  const bool pack = R > unpacked_rows || kernels.padded_units(H) != H;
  Buffer<Real> packed(pack ? kernels.padded_units(H) * G * H : 0), column_sums(gate_width), zeros(gate_width);
  std::vector<const Real*> next(B, nullptr);
  std::memset(column_sums.get(), 0, gate_width * sizeof(Real));
  std::memset(zeros.get(), 0, gate_width * sizeof(Real));

  Buffer<Real> dh(B * H), dc(lstm ? B * H : 0), chunk_cells(lean && lstm ? most_rows * H : 0);
  std::optional<Inputs<Real>> inputs;
  if (lean) inputs.emplace(kernels, s, x, w_ih, w_hh, b_ih, b_hh, false);
  start_from(part<const Real>(dh_n, at.d, at.D), B * H, dh.get());
  if (lstm) start_from(part<const Real>(dc_n, at.d, at.D), B * H, dc.get());

  Backward<Real> f{};
  f.shape = s;
  f.h0 = part<const Real>(h0, at.d, at.D);
  f.c0 = part<const Real>(c0, at.d, at.D);
  f.zeros = zeros.get();
  f.y = rows_of<const Real>(y, "y", s, R, H, type, at.d * H, at.D * H);
  f.dy = optional_rows<const Real>(dy, "dy", s, R, H, type, at.d * H, at.D * H);
  f.lean = lean;
  f.saved = part<const Real>(saved, at.d, at.D);
  f.cells = !lean ? part<Real>(cells, at.d, at.D) : lstm ? chunk_cells.get() : nullptr;
  f.dh = dh.get();
  f.dc = lstm ? dc.get() : nullptr;
  f.dgates = dgates.get();
  f.h_prev = want_w_hh ? h_prev.get() : nullptr;
  f.dgates_stride = dgates_stride;
  f.h_prev_stride = h_prev_stride;
  f.carried = carried.get();
  f.next = next.data();
  f.packed = pack;
  f.w_hh = pack ? packed.get() : data<const Real>(w_hh);
  if (pack && (T > 1 || g.dh0.numel() > 0)) {
    in_pieces(kernels.backward_panels(H), threads_for(G * H * H * 8, kernels.backward_panels(H)),
              [&](int64_t first, int64_t last) {
                kernels.pack_backward(data<const Real>(w_hh), G * H, H, packed.get(), first, last);
              });
  }
  const Rows<Real> x_rows = tokens ? Rows<Real>{} : rows_of<Real>(x, "x", s, R, I, type);
  const Rows<const int64_t> token_rows =
      tokens ? rows_of<const int64_t>(x, "x", s, R, 0, ScalarType::Long) : Rows<const int64_t>{};
  const ChunkRows<Real> xs(s, x_rows, I, tokens || !want_w_ih ? 0 : most_rows, false);
  const Rows<Real> dx_rows = optional_rows<Real>(g.dx, "dx", s, R, I, type);
  const ChunkRows<Real> dxs(s, dx_rows, I, want_dx ? most_rows : 0, true);
  Buffer<Real> token_sums(tokens && want_w_ih ? I * G * H : 0);
  if (tokens && want_w_ih) std::memset(token_sums.get(), 0, I * G * H * sizeof(Real));

  if (tokens) check_tokens(s, token_rows);
  const Sums<Real> sums_ih(g.dw_ih, G * H, I, want_w_ih && !tokens), sums_hh(g.dw_hh, G * H, H, want_w_hh);

  const int64_t threads = threads_for(R * G * H * H, B);
  for (int64_t end = T, begin; end > 0; end = begin) {
    begin = (end - 1) / steps_per_chunk * steps_per_chunk;
    if (lean) {
      f.chunk_c = lstm ? part<const Real>(cells, at.d, at.D) + begin / lean_chunk * B * H : nullptr;
      inputs->in_shares_with_room([&](const Share& share, int64_t steps, Real* workspace) {
        kernels.rebuild(inputs->f, f, share, begin, end, steps, workspace);
      });
    }
    in_shares(s, G * H * H, kernels.backward_panels(H),
              [&](const Share& share) { kernels.backward(f, share, begin, end); });

    const int64_t t0 = s.reverse ? T - end : begin, t1 = s.reverse ? T - begin : end;
    const int64_t row0 = row_number(s, t0, 0), count = (t1 < T ? row_number(s, t1, 0) : R) - row0;
    const bool add = end < T;
    const auto window = [&](int64_t block, int64_t width) {
      return Matrix<Real>{dgates.get() + block * H, count, width * H, dgates_stride};
    };
    if (want_w_hh) {
      const Matrix<Real> states{h_prev.get(), count, H, h_prev_stride};
      product(kernels, sums_hh.part(0, (gru ? 2 : G) * H), window(0, gru ? 2 : G), true, states, add);
      if (gru) product(kernels, sums_hh.part(2 * H, H), window(3, 1), true, states, add);
    }
    if (want_w_ih && tokens) {
      const int64_t strips = G * H / 16 + 1;
      in_pieces(strips, threads_for(count * G * H, strips), [&](int64_t first, int64_t last) {
        const int64_t k0 = first * 16, k1 = std::min(G * H, last * 16);
        for (int64_t t = t0; t < t1; ++t) {
          for (int64_t b = 0; b < B; ++b) {
            if (t >= length_of(s, b)) continue;
            const Real* from = dgates.get() + (row_number(s, t, b) - row0) * dgates_stride;
            Real* to = token_sums.get() + *row_at(s, token_rows, t, b) * G * H;
            kernels.add_row(from + k0, k1 - k0, to + k0);
          }
        }
      });
    } else if (want_w_ih) {
      xs.gather(t0, t1);
      product(kernels, sums_ih.part(0, G * H), window(0, G), true, xs.matrix(t0, count), add);
    }
    if (want_dx) {
      if (add_dx) dxs.gather(t0, t1);
      const Matrix<Real> weights{data<Real>(w_ih), G * H, I, I};
      product(kernels, dxs.matrix(t0, count), window(0, G), false, weights, add_dx);
      dxs.scatter(t0, t1);
    }
    if (want_bias) add_columns(kernels, window(0, blocks), column_sums.get());
  }
  if (g.dh0.numel() > 0) {
    in_pieces(B, threads, [&](int64_t first, int64_t last) {
      kernels.backward_finish(f, first, last, part<Real>(g.dh0, at.d, at.D));
    });
  }
  if (lstm && g.dc0.numel() > 0) std::memcpy(part<Real>(g.dc0, at.d, at.D), dc.get(), B * H * sizeof(Real));
  sums_ih.finish();
  sums_hh.finish();
  if (tokens && want_w_ih) {
    Real* to = data<Real>(g.dw_ih);
    for (int64_t row = 0; row < G * H; ++row) {
      for (int64_t token = 0; token < I; ++token) to[row * I + token] = token_sums.get()[token * G * H + row];
    }
  }
  if (g.db_ih.numel() > 0) std::memcpy(data<Real>(g.db_ih), column_sums.get(), G * H * sizeof(Real));
  if (g.db_hh.numel() > 0) {
    std::memcpy(data<Real>(g.db_hh), column_sums.get(), G * H * sizeof(Real));
    if (gru) std::memcpy(data<Real>(g.db_hh) + 2 * H, column_sums.get() + 3 * H, H * sizeof(Real));
  }
}
