// What the forward kernels read, packed: for forward, and for what backward rebuilds. Part of bindings.cpp.

template <class Real>
void check_weights(const Shape& s, const Operand& w_ih, const Operand& w_hh, const Operand& b_ih, const Operand& b_hh) {
  const ScalarType type = scalar_type<Real>;
  const int64_t rows = gates_of(s.cell) * s.H;
  check_dense(w_ih, "w_ih", {rows, s.I}, type);
  check_dense(w_hh, "w_hh", {rows, s.H}, type);
  check_optional(b_ih, "b_ih", {rows}, type);
  check_optional(b_hh, "b_hh", {rows}, type);
  STD_TORCH_CHECK((b_ih.numel() > 0) == (b_hh.numel() > 0), "b_ih and b_hh: both or none");
}

// Whether weights have so few rows to multiply that reading them as they lie takes less time than packing them:
// benchmarks/NOTES.md.
template <class Real>
bool reads_unpacked(const Shape& s, int64_t R) {
  return R <= (sizeof(Real) == 2 ? 8 : s.T == 1 ? 32 : 16);
}

Schedule schedule_of(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number <= int64_t(Schedule::hoisted), "unknown schedule");
  return Schedule(number);
}

// Whether [x, h] are multiplied together in each step, or x of many steps before them. A step of many rows takes a short
// x along at hardly a price, and an LSTM's in float32 a long one, while sums that wait for their step have to be written
// and read (benchmarks/NOTES.md). Not by the number of threads: results would depend on it.
bool multiplies_together(Schedule schedule, Cell cell, bool in_float32, int64_t T, int64_t B, int64_t I, int64_t H) {
  constexpr int64_t many_rows = 16;
  if (schedule != Schedule::automatic) return schedule == Schedule::concat;
  return T == 1 || (B >= many_rows && (2 * I <= H || (cell == Cell::lstm && in_float32)));
}

bool is_concat(int64_t schedule, int64_t cell, bool in_float32, int64_t T, int64_t B, int64_t I, int64_t H) {
  return multiplies_together(schedule_of(schedule), Cell(cell), in_float32, T, B, I, H);
}

// x and the weights, which fit.
template <class Real>
class Inputs {
 public:
  Inputs(const Kernels<Real>& kernels, const Shape& s, const Operand& x, const Operand& w_ih, const Operand& w_hh,
         const Operand& b_ih, const Operand& b_hh, Schedule schedule)
      : width(kernels.packed_width(s.cell, s.H)),
        panels(kernels.forward_panels(s.cell, s.H)),
        rate(kernels.rate),
        tokens(x.scalar_type() == ScalarType::Long),
        pack(!reads_unpacked<Real>(s, row_count(s, x))),
        with_table(tokens && s.I <= row_count(s, x)),
        packed_hh(pack ? width * kernels.depth(s.H) : 0),
        packed_ih(pack && !tokens ? width * kernels.depth(s.I) : 0),
        bias(width),
        bias_hn(width),
        zeros(s.resets ? s.H : 0),
        table(with_table ? s.I * width : 0) {
    const int64_t H = s.H, I = s.I, R = row_count(s, x);
    f.shape = s;
    constexpr bool in_float32 = std::is_same_v<Real, float>;
    f.concat = !tokens && multiplies_together(schedule, s.cell, in_float32, s.T, s.B, I, H);
    if (tokens) {
      f.tokens = rows_of<const int64_t>(x, "x", s, R, 0, ScalarType::Long);
    } else {
      f.x = rows_of<const Real>(x, "x", s, R, I, scalar_type<Real>);
    }
    f.w_ih = data<const Real>(w_ih);
    f.w_hh = data<const Real>(w_hh);
    f.packed_ih = pack ? packed_ih.get() : nullptr;
    f.packed_hh = pack ? packed_hh.get() : nullptr;
    f.bias = bias.get();
    f.bias_hn = bias_hn.get();
    f.zeros = zeros.get();
    if (s.resets) std::memset(zeros.get(), 0, H * sizeof(Wide<Real>));
    kernels.pack_bias(s.cell, data<const Real>(b_ih), data<const Real>(b_hh), H, bias.get(), bias_hn.get());
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
  }

  // run(share, steps, workspace) for all rows and units, with room for x W_ih + b of so many steps.
  template <class F>
  void in_shares_with_room(const F& run) const {
    const Shape& s = f.shape;
    const StepCost cost{width * s.H, width * s.H * int64_t(sizeof(Real)), rate};
    in_shares(s, width * (s.H + (tokens ? 0 : s.I)), panels, cost, [&](const Share& share) {
      const int64_t rows = share.last - share.first, per_step = rows * width;
      const int64_t fit = pre_bytes / std::max<int64_t>(1, per_step * int64_t(sizeof(Wide<Real>)));
      const int64_t fill = (pre_rows + rows - 1) / std::max<int64_t>(1, rows);
      const int64_t steps = std::clamp<int64_t>(std::max(fit, fill), 1, std::max<int64_t>(1, s.T));
      Buffer<Wide<Real>> workspace(f.concat || f.table ? 0 : steps * per_step + spare_rows * width);
      run(share, steps, workspace.get());
    });
  }

  Forward<Real> f{};

 private:
  int64_t width, panels, rate;
  bool tokens, pack, with_table;
  Buffer<Real> packed_hh, packed_ih;
  Buffer<Wide<Real>> bias, bias_hn, zeros, table;
};
