// The reverse time loop. Included inside the namespace of a variant.
//
// For each step, last to first: dh = dgates of the step processed before times W_hh, straight in the accumulators, plus
// dy; the cell's derivative turns it into this step's dgates. Sums over rows (dW, db, dX) come after it, from dgates.

template <class Real>
struct BackwardRow {
  const Real* next;    // dgates of the step processed before this one, or null
  Wide<Real>*dh, *dc;  // [H] each: what reaches h past W_hh; what reaches c
  const Real* dy;      // or null
  const Real *h_prev, *y, *saved;
  const Wide<Real>* c_prev;
  Wide<Real>* c;
  Real* dgates;
};

// Where the operands of one row of a chunk lie. `begins`: it is of the chunk's first step; first_row: the number of the
// chunk's first row in memory.
template <class Real>
FUSEDRNN_INLINE void find_row(const Backward<Real>& f, int64_t t, int64_t b, bool begins, int64_t first_row,
                              BackwardRow<Real>& row) {
  const Shape& s = f.shape;
  const int64_t H = s.H, number = row_number(s, t, b), before = step_before(s, t);
  const bool starts = is_first(s, t, b);
  row.dy = f.dy.base ? row_at(s, f.dy, t, b) : nullptr;
  row.y = row_at(s, f.y, t, b);
  const bool reset = is_reset(s, t, b);
  row.h_prev = reset ? static_cast<const Real*>(f.zeros) : starts ? f.h0 + b * H : row_at(s, f.y, before, b);
  row.dgates = f.dgates + (number - first_row) * f.dgates_stride;
  row.saved = f.lean ? row.dgates : f.saved ? f.saved + number * blocks_of(s.cell) * H : nullptr;
  if (!f.cells) return;
  const int64_t first_cell = f.lean ? first_row : 0;
  row.c = f.cells + (number - first_cell) * H;
  if (reset) {
    row.c_prev = static_cast<const Wide<Real>*>(f.zeros);
  } else if (f.lean && begins) {
    row.c_prev = f.chunk_c + b * H;
  } else {
    row.c_prev = starts ? f.c0 + b * H : f.cells + (row_number(s, before, b) - first_cell) * H;
  }
}

// The number of the first row in memory of steps [begin, end) in order of processing.
FUSEDRNN_INLINE int64_t first_row_of(const Shape& s, int64_t begin, int64_t end) {
  return row_number(s, step_at(s, s.reverse ? end - 1 : begin), 0);
}

template <class Real>
FUSEDRNN_INLINE Vector<Real> with_dy(const BackwardRow<Real>& row, Vector<Real> dh, int64_t unit, int lanes) {
  return row.dy ? dh + load(row.dy + unit, lanes) : dh;
}

// How dh of one vector of a row's units becomes dgates, and what that reads besides dy. dgates that W_hh sees lie in one
// window (RNN, LSTM) or two (GRU: r z, then n r).
template <bool Relu>
struct RnnBackward {
  template <class Real>
  static FUSEDRNN_INLINE void ask(const BackwardRow<Real>& row, int64_t unit, int64_t) {
    ask_for(row.y + unit);
  }
  template <class Real>
  static FUSEDRNN_INLINE void finish(const BackwardRow<Real>& row, Vector<Real> dh, int64_t unit, int lanes, int64_t) {
    store(row.dgates + unit, rnn_backward<Relu>(load(row.y + unit, lanes), with_dy(row, dh, unit, lanes)), lanes);
  }
};

struct GruBackward {
  template <class Real>
  static FUSEDRNN_INLINE void ask(const BackwardRow<Real>& row, int64_t unit, int64_t H) {
    ask_for_blocks(row.saved + unit, H);
    ask_for(row.h_prev + unit, row.dh + unit);
  }
  template <class Real>
  static FUSEDRNN_INLINE void finish(const BackwardRow<Real>& row, Vector<Real> dh, int64_t unit, int lanes,
                                     int64_t H) {
    auto g = load_blocks<GruGates<Vector<Real>>>(row.saved + unit, H, lanes);
    store(row.dh + unit, gru_backward(g, load(row.h_prev + unit, lanes), with_dy(row, dh, unit, lanes)), lanes);
    store_blocks<Real>(row.dgates + unit, H, lanes, {g.r, g.z, g.n, g.hn});
  }
};

struct LstmBackward {
  template <class Real>
  static FUSEDRNN_INLINE void ask(const BackwardRow<Real>& row, int64_t unit, int64_t H) {
    ask_for_blocks(row.saved + unit, H);
    ask_for(row.c_prev + unit, row.c + unit, row.dc + unit);
  }
  template <class Real>
  static FUSEDRNN_INLINE void finish(const BackwardRow<Real>& row, Vector<Real> dh, int64_t unit, int lanes,
                                     int64_t H) {
    auto g = load_blocks<LstmGates<Vector<Real>>>(row.saved + unit, H, lanes);
    Vector<Real> dc = load(row.dc + unit, lanes);
    lstm_backward(g, load(row.c_prev + unit, lanes), load(row.c + unit, lanes), with_dy(row, dh, unit, lanes), dc);
    store(row.dc + unit, dc, lanes);
    store_blocks<Real>(row.dgates + unit, H, lanes, {g.i, g.f, g.g, g.o});
  }
};

// After the first step: dh is dh0, which lies where dgates would.
struct InitialState {
  template <class Real>
  static FUSEDRNN_INLINE void ask(const BackwardRow<Real>&, int64_t, int64_t) {}
  template <class Real>
  static FUSEDRNN_INLINE void finish(const BackwardRow<Real>& row, Vector<Real> dh, int64_t unit, int lanes, int64_t) {
    store(row.dgates + unit, dh, lanes);
  }
};

// The operands of one step's products: one entry an active row.
template <class Real>
struct BackwardStep {
  BackwardStep(const Shape& s, int64_t n)
      : rows(new BackwardRow<Real>*[n]),
        in(new const Real*[2 * n]),
        out(new Wide<Real>*[n]),
        sums(new Wide<Real>[(n + spare_rows) * vectors_per_panel * lanes_of<Real>]),
        factors{{shape, n, (s.cell == Cell::gru ? 2 : gates_of(s.cell)) * s.H},
                {shape, s.cell == Cell::gru ? n : 0, s.H}} {
    for (int64_t k = 0; k < n; ++k) out[k] = sums + k * vectors_per_panel * lanes_of<Real>;
  }
  ~BackwardStep() {
    delete[] rows;
    delete[] in;
    delete[] out;
    delete[] sums;
  }
  BackwardStep(const BackwardStep&) = delete;

  int64_t count = 0;
  BackwardRow<Real>** rows;
  const Real** in;
  Wide<Real>** out;
  Wide<Real>* sums;
  TileShape<Real> shape;
  Factors<Real> factors[2];  // one for each window
};

template <class Gates, class Real>
void backward_step(const Backward<Real>& f, BackwardStep<Real>& step, Panels own) {
  constexpr int W = lanes_of<Real>;
  const int64_t H = f.shape.H, depth = backward_depth<Real>(f.shape.cell, H);
  const bool gru = f.shape.cell == Cell::gru;
  bool any = false;
  for (int64_t k = 0; k < step.count; ++k) any |= step.rows[k]->next != nullptr;
  if (any) {
    const Real** in = step.in;
    Factors<Real>* factors = step.factors;
    for_windows(f.shape.cell, H, [&](int64_t block, int64_t K) {
      for (int64_t k = 0; k < step.count; ++k) {
        const Real* next = step.rows[k]->next;
        in[k] = next ? next + block * H : static_cast<const Real*>(f.zeros);
      }
      factors++->set(step.count, in, K);
      in += step.count;
    });
  }
  for (int64_t panel = own.first; panel < own.last; ++panel) {
    const int vectors = vectors_in<Real>(panel, H);
    const int64_t first = panel * vectors_per_panel * W, stride = f.packed ? vectors * W : H;
    const Real* w = f.w_hh + first * (f.packed ? depth : 1);
    if (any) {
      with_vectors(vectors, [&](auto slots) {
        using S = decltype(slots);
        accumulate<S>(step.factors[0], w, stride, true, step.out);
        if (gru) accumulate<S>(step.factors[1], w + depth_of<Real>(2 * H) * stride, stride, false, step.out);
      });
    } else {
      zero(step.sums, step.count * vectors_per_panel * W);
    }
    for (int64_t k = 0; k < step.count; ++k) {
      const BackwardRow<Real>& row = *step.rows[k];
      if (k + 1 < step.count) {
        const BackwardRow<Real>& after = *step.rows[k + 1];
        for_lines<Real>(first, vectors * W, H, [&](int64_t unit) __attribute__((always_inline)) {
          Gates::ask(after, unit, H);
          if (after.dy) ask_for(after.dy + unit);
        });
      }
#pragma GCC unroll 1
      for (int j = 0; j < vectors; ++j) {
        const int64_t unit = (panel * vectors_per_panel + j) * W;
        with_lanes<Real>(H - unit, [&](auto lanes) {
          Vector<Real> dh = load(step.out[k] + j * W);
          if (gru || !row.next) dh += load(row.dh + unit, lanes);
          Gates::template finish<Real>(row, dh, unit, lanes, H);
        });
      }
    }
  }
}

// Nothing reaches the states before the resets of step t. A thread zeroes the units it owns: those of others may be at the
// step before already.
template <class Real>
void end_at_resets(const Shape& s, const Share& share, Panels own, int64_t t, BackwardRow<Real>* rows) {
  constexpr int64_t width = vectors_per_panel * lanes_of<Real>;
  const int64_t first = own.first * width, count = minimum(s.H, own.last * width) - first;
  for (int64_t b = share.first; b < share.last; ++b) {
    if (t >= length_of(s, b) || !is_reset(s, t, b)) continue;
    BackwardRow<Real>& row = rows[b - share.first];
    row.next = nullptr;
    zero(row.dh + first, count);
    if (row.dc) zero(row.dc + first, count);
  }
}

template <class Gates, class Real>
void backward_loop(const Backward<Real>& f, const Share& share, int64_t begin, int64_t end) {
  const Shape& s = f.shape;
  const int64_t first = share.first, last = share.last, n = last - first;
  const int64_t H = s.H, blocks = blocks_of(s.cell), first_row = first_row_of(s, begin, end);
  const Panels own = panels_of(share, backward_panels<Real>(H));
  auto* rows = new BackwardRow<Real>[n];
  BackwardStep<Real> step(f.shape, n);
  for (int64_t b = first; b < last; ++b) {
    BackwardRow<Real>& row = rows[b - first];
    row = {};
    row.next = f.next[b];
    row.dh = f.dh + b * H;
    row.dc = f.dc ? f.dc + b * H : nullptr;
  }
  for (int64_t position = end - 1; position >= begin; --position) {
    const int64_t t = step_at(s, position);
    step.count = 0;
    for (int64_t b = first; b < last; ++b) {
      BackwardRow<Real>& row = rows[b - first];
      if (t >= length_of(s, b)) {
        continue;
      }
      find_row(f, t, b, position == begin, first_row, row);
      if (share.leads() && f.h_prev) f.h_prev[row_number(s, t, b) - first_row] = row.h_prev;
      step.rows[step.count++] = &row;
    }
    backward_step<Gates>(f, step, own);
    meet(share, end - position);
    for (int64_t k = 0; k < step.count; ++k) step.rows[k]->next = step.rows[k]->dgates;
    if (s.resets) end_at_resets(s, share, own, t, rows);
  }
  for (int64_t b = first; share.leads() && b < last; ++b) {
    const Real* next = rows[b - first].next;
    Real* carried = f.carried + b * blocks * H;
    if (next && next != carried) copy(carried, next, blocks * H);
    f.next[b] = next ? carried : nullptr;
  }
  delete[] rows;
}

template <class Real>
void backward(const Backward<Real>& f, const Share& share, int64_t begin, int64_t end) {
  constexpr decltype(&backward<Real>) loops[] = {backward_loop<RnnBackward<false>, Real>,
                                                 backward_loop<RnnBackward<true>, Real>,
                                                 backward_loop<GruBackward, Real>, backward_loop<LstmBackward, Real>};
  loops[int(f.shape.cell)](f, share, begin, end);
}

template <class Real>
void backward_finish(const Backward<Real>& f, const Share& share, Real* dh0) {
  const int64_t first = share.first, last = share.last, n = last - first, H = f.shape.H;
  auto* rows = new BackwardRow<Real>[n];
  BackwardStep<Real> step(f.shape, n);
  step.count = n;
  for (int64_t b = first; b < last; ++b) {
    BackwardRow<Real>& row = rows[b - first];
    row = {};
    row.next = f.next[b];
    row.dh = f.dh + b * H;
    row.dgates = dh0 + b * H;
    step.rows[b - first] = &row;
  }
  backward_step<InitialState>(f, step, panels_of(share, backward_panels<Real>(H)));
  delete[] rows;
}
