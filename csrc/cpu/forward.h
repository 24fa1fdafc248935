// The forward time loop. Included inside the namespace of a variant.
//
// A thread owns batch rows and runs all T steps on them: no other thread reads what it writes, so there is no barrier.
// Only where there are fewer rows than threads do some share rows and meet after each step. Steps outside, panels inside
// them, tiles of rows innermost: a panel's weights are used by every row while they are in cache. `start` is added to the
// products last: a sum of K small products that began at a large value would be rounded K times at that value's size.

template <class Real>
struct ForwardRow {
  const Wide<Real>* start;  // added to the products over h (and x): x W_ih + b, or the bias alone
  const Real* h;            // state before the step
  const Wide<Real>* c_prev;
  Wide<Real>* state;  // GRU of 16 bits: h as it was before it was rounded, here and after the step; else null
  Real* y;            // this step's output
  Wide<Real>* c;      // cell state
  Real* saved;        // kept blocks, or null
};

template <class Real>
FUSEDRNN_INLINE Vector<Real> pre_activation(const Real* sums, const Real* start, int slot) {
  return load(sums + slot * lanes_of<Real>) + load(start + slot * lanes_of<Real>);
}

// How the sums of one row and panel, [vector][lane] as packed, become gates and state.
template <bool Relu>
struct RnnForward {
  template <class Real>
  static FUSEDRNN_INLINE void finish(const Forward<Real>& f, const Wide<Real>* sums, const ForwardRow<Real>& row,
                                     int64_t panel) {
    constexpr int W = lanes_of<Real>;
    const int64_t H = f.shape.H;
    const int vectors = vectors_in<Real>(panel, H);
    const Wide<Real>* start = row.start + panel_offset<Real>(f.shape.cell, panel);
#pragma GCC unroll 1
    for (int j = 0; j < vectors; ++j) {
      const int64_t unit = (panel * vectors_per_panel + j) * W;
      const Vector<Real> h = rnn_forward<Relu>(pre_activation(sums, start, j));
      with_lanes<Real>(H - unit, [&](auto lanes) { store(row.y + unit, h, lanes); });
    }
  }
};

struct GruForward {
  template <class Real>
  static FUSEDRNN_INLINE void finish(const Forward<Real>& f, const Wide<Real>* sums, const ForwardRow<Real>& row,
                                     int64_t panel) {
    constexpr int W = lanes_of<Real>;
    const int64_t H = f.shape.H, unit = panel * W;
    const Wide<Real>* start = row.start + panel_offset<Real>(Cell::gru, panel);
    with_lanes<Real>(H - unit, [&](auto lanes) {
      GruGates<Vector<Real>> g{pre_activation(sums, start, 2), pre_activation(sums, start, 0),
                               pre_activation(sums, start, 1), load(sums + 3 * W) + load(f.bias_hn + unit)};
      Vector<Real> h;
      gru_forward(g, row.state ? load(row.state + unit, lanes) : load(row.h + unit, lanes), h);
      store(row.y + unit, h, lanes);
      if (row.state) store(row.state + unit, h, lanes);
      if (row.saved) store_blocks<Real>(row.saved + unit, H, lanes, {g.n, g.r, g.z, g.hn});
    });
  }
};

struct LstmForward {
  template <class Real>
  static FUSEDRNN_INLINE void finish(const Forward<Real>& f, const Wide<Real>* sums, const ForwardRow<Real>& row,
                                     int64_t panel) {
    constexpr int W = lanes_of<Real>;
    const int64_t H = f.shape.H, unit = panel * W;
    const Wide<Real>* start = row.start + panel_offset<Real>(Cell::lstm, panel);
    with_lanes<Real>(H - unit, [&](auto lanes) {
      LstmGates<Vector<Real>> g{pre_activation(sums, start, 0), pre_activation(sums, start, 1),
                                pre_activation(sums, start, 2), pre_activation(sums, start, 3)};
      Vector<Real> c, h;
      lstm_forward(g, load(row.c_prev + unit, lanes), c, h);
      store(row.c + unit, c, lanes);
      store(row.y + unit, h, lanes);
      if (row.saved) store_blocks<Real>(row.saved + unit, H, lanes, {g.i, g.f, g.g, g.o});
    });
  }
};

// The operands of one step's products: one entry an active row.
template <class Real>
struct StepRows {
  StepRows(TileShape<Real>& shape, int64_t n, int64_t most_I, int64_t most_H)
      : x(n ? new const Real*[2 * n] : nullptr),
        h(x + n),
        sums(n ? new Wide<Real>*[n] : nullptr),
        rows(n ? new ForwardRow<Real>*[n] : nullptr),
        of_x(shape, n, most_I),
        of_h(shape, n, most_H) {}
  ~StepRows() {
    delete[] x;
    delete[] sums;
    delete[] rows;
  }
  StepRows(const StepRows&) = delete;

  int64_t count = 0;
  const Real** x;  // concat
  const Real** h;
  Wide<Real>** sums;
  ForwardRow<Real>** rows;
  Factors<Real> of_x, of_h;
};

// As accumulate() with a panel of w [G*H, K] as it lies: some units with all their gates at once, each gate a stream that
// the processor reads ahead. GRU: the products of h and W_hn have a slot of their own.
template <class Real>
void accumulate_unpacked(const Shape& s, int64_t panel, bool hidden, int64_t count, const Real* const* in, int64_t K,
                         const Real* w, Wide<Real>* const* out) {
  constexpr int W = lanes_of<Real>, most = W / vectors_per_panel > 1 ? W / vectors_per_panel : 1;
  const auto add = [&](int u, auto units) {
    constexpr int Units = decltype(units)::value;
    const Real* rows[vectors_per_panel];
    int to[vectors_per_panel], some = 0;
    for_slots<Real>(s.cell, s.H, panel, [&](int slot, int64_t row, int lanes) {
      if (u >= lanes) return;
      rows[some] = w + (row + u) * K;
      to[some++] = (hidden && s.cell == Cell::gru && slot == 2 ? 3 : slot) * W + u;
    });
    if (some == 0) return;
    with_vectors(some, [&](auto slots) {
      constexpr int N = decltype(slots)::count;
      for (int64_t r = 0; r < count; ++r) {
        Wide<Real> sums[vectors_per_panel * W];
        dots<N, Units>(in[r], rows, K, sums);
        for (int a = 0; a < N * Units; ++a) out[r][to[a / Units] + a % Units] += sums[a];
      }
    });
  };
  for (int u = 0; u < W; u += most) {
    bool whole = true;  // every slot has all of these units, or none
    for_slots<Real>(s.cell, s.H, panel, [&](int, int64_t, int lanes) { whole &= lanes <= u || lanes >= u + most; });
    if (whole) {
      add(u, Constant<most>{});
    } else {
      for (int unit = u; unit < u + most; ++unit) add(unit, Constant<1>{});
    }
  }
}

// Of a hoisted GRU the slot of n's product with x stays zero.
template <class Real>
Wide<Real>* zeros_for_sums(int64_t rows) {
  return new Wide<Real>[(rows + spare_rows) * vectors_per_panel * lanes_of<Real>]();
}

template <class Gates, class Real>
void forward_step(const Forward<Real>& f, StepRows<Real>& step, Panels own) {
  constexpr int W = lanes_of<Real>;
  const Shape& s = f.shape;
  const int64_t H = s.H, I = s.I;
  if (step.count == 0) return;
  if (f.packed_hh) {
    if (f.concat) step.of_x.set(step.count, step.x, I);
    step.of_h.set(step.count, step.h, H);
  }
  for (int64_t panel = own.first; panel < own.last; ++panel) {
    const int64_t at = panel_offset<Real>(s.cell, panel);
    const auto products = [&](auto input, auto hidden, bool fresh) {
      using Input = decltype(input);
      using Hidden = decltype(hidden);
      if (f.concat) {
        accumulate<Input>(step.of_x, f.packed_ih + depth_of<Real>(I) * at, Input::count * W, fresh, step.sums);
      }
      fresh = fresh && !f.concat;
      accumulate<Hidden>(step.of_h, f.packed_hh + depth_of<Real>(H) * at, Hidden::count * W, fresh, step.sums);
    };
    const bool gru = s.cell == Cell::gru;
    if ((gru && f.concat) || !f.packed_hh) zero(step.sums[0], step.count * vectors_per_panel * W);
    if (!f.packed_hh) {
      if (f.concat) accumulate_unpacked(s, panel, false, step.count, step.x, I, f.w_ih, step.sums);
      accumulate_unpacked(s, panel, true, step.count, step.h, H, f.w_hh, step.sums);
    } else if (gru) {
      products(Slots<0, 1, 2>{}, Slots<0, 1, 3>{}, !f.concat);  // r z n from x; r z hn from h
    } else {
      with_vectors(slots_of<Real>(s.cell, H, panel), [&](auto slots) { products(slots, slots, true); });
    }
    for (int64_t k = 0; k < step.count; ++k) Gates::finish(f, step.sums[k], *step.rows[k], panel);
  }
}

// x W_ih + b of the rows of steps [begin, end), into `pre`; inactive rows are left out, or, where all of a product's rows
// have to be evenly spaced, receive some numbers.
template <class Real>
void input_product(const Forward<Real>& f, const Share& share, Panels own, int64_t begin, int64_t end, Wide<Real>* pre,
                   StepRows<Real>& chunk) {
  const bool evenly = sizeof(Real) == 2 && f.packed_ih;
  const Real** x = chunk.x;
  Wide<Real>** out = chunk.sums;
  const Shape& s = f.shape;
  const int64_t first = share.first, last = share.last, width = packed_width<Real>(s.cell, s.H);
  const int64_t start_of_own = panel_offset<Real>(s.cell, own.first);
  int64_t count = 0;
  for (int64_t position = begin; position < end; ++position) {
    const int64_t t = step_at(s, position);
    for (int64_t b = first; b < last; ++b) {
      Wide<Real>* start = pre + ((position - begin) * (last - first) + b - first) * width;
      const bool active = t < length_of(s, b);
      if (f.tokens.base) {
        if (active) token_row(f, *row_at(s, f.tokens, t, b), start);
      } else if (active || evenly) {
        copy(start, f.bias, width);
        out[count] = start + start_of_own;
        x[count++] = active ? row_at(s, f.x, t, b) : nullptr;
      }
    }
  }
  if (count == 0) return;
  if (f.packed_ih) chunk.of_x.set(count, x, s.I);
  for (int64_t panel = own.first; panel < own.last; ++panel) {
    const int slots = slots_of<Real>(s.cell, s.H, panel);
    if (f.packed_ih) {
      const Real* w = f.packed_ih + depth_of<Real>(s.I) * panel_offset<Real>(s.cell, panel);
      with_vectors(slots, [&](auto vectors) {
        using S = decltype(vectors);
        accumulate<S>(chunk.of_x, w, S::count * lanes_of<Real>, false, out);
      });
    } else {
      accumulate_unpacked(s, panel, false, count, x, s.I, f.w_ih, out);
    }
    for (int64_t k = 0; k < count; ++k) out[k] += slots * lanes_of<Real>;
  }
}

// c before a chunk. A thread copies the units it owns: those of others may be at the next step already.
template <class Real>
void keep_cells(const Forward<Real>& f, const Share& share, Panels own, int64_t chunk, const ForwardRow<Real>* rows) {
  const int64_t H = f.shape.H, first = own.first * lanes_of<Real>, last = minimum(H, own.last * lanes_of<Real>);
  for (int64_t b = share.first; b < share.last; ++b) {
    copy(f.chunk_cells + (chunk * f.shape.B + b) * H + first, rows[b - share.first].c_prev + first, last - first);
  }
}

// Of a row's units those that are the thread's own: others may be used by threads that are not as far.
template <class Real>
void zero_own(const Shape& s, Panels own, Real* row) {
  const int64_t first = own.first * lanes_of<Real>;
  zero(row + first, minimum(s.H, own.last * lanes_of<Real>) - first);
}

template <class Gates, class Real>
void forward_loop(const Forward<Real>& f, const Share& share, int64_t steps_per_chunk, Wide<Real>* workspace) {
  const Shape& s = f.shape;
  const int64_t first = share.first, last = share.last, n = last - first, H = s.H;
  const int64_t width = packed_width<Real>(s.cell, H);
  const Panels own = panels_of(share, forward_panels<Real>(s.cell, H));
  const int64_t blocks = blocks_of(s.cell);
  const bool direct = f.concat || f.table;  // nothing to prepare per chunk
  auto* rows = new ForwardRow<Real>[n];
  auto* sums = zeros_for_sums<Real>(n);
  TileShape<Real> shape;
  StepRows<Real> step(shape, n, f.concat ? s.I : 0, H);
  StepRows<Real> chunk(shape, direct ? 0 : n * steps_per_chunk, direct ? 0 : s.I, 0);
  for (int64_t b = first; b < last; ++b) {
    const int64_t k = b - first;
    rows[k] = {};
    rows[k].h = f.h0 + b * H;
    rows[k].c_prev = f.c0 ? f.c0 + b * H : nullptr;
    rows[k].state = f.h ? f.h + b * H : nullptr;
    step.sums[k] = sums + k * vectors_per_panel * lanes_of<Real>;
  }
  for (int64_t begin = 0; begin < s.T; begin += steps_per_chunk) {
    const int64_t end = minimum(s.T, begin + steps_per_chunk);
    if (!direct) input_product(f, share, own, begin, end, workspace, chunk);
    for (int64_t position = begin; position < end; ++position) {
      const int64_t t = step_at(s, position);
      if (f.chunk_cells && position % lean_chunk == 0) keep_cells(f, share, own, position / lean_chunk, rows);
      step.count = 0;
      for (int64_t b = first; b < last; ++b) {
        ForwardRow<Real>& row = rows[b - first];
        if (t >= length_of(s, b)) {
          if (share.leads() && !s.row_offsets) zero(row_at(s, f.y, t, b), H);
          continue;
        }
        const int64_t number = row_number(s, t, b);
        row.y = row_at(s, f.y, t, b);
        if (f.c_n) row.c = f.cells ? f.cells + number * H : f.c_n + b * H;
        row.saved = f.saved ? f.saved + number * blocks * H : nullptr;
        if (f.concat) {
          step.x[step.count] = row_at(s, f.x, t, b);
          row.start = f.bias;
        } else if (f.table) {
          row.start = f.table + *row_at(s, f.tokens, t, b) * width;
        } else {
          row.start = workspace + ((position - begin) * n + b - first) * width;
        }
        if (is_reset(s, t, b)) {
          row.h = static_cast<const Real*>(f.zeros);
          row.c_prev = static_cast<const Wide<Real>*>(f.zeros);
          if (row.state) zero_own(s, own, row.state);
        }
        step.h[step.count] = row.h;
        step.rows[step.count++] = &row;
      }
      forward_step<Gates>(f, step, own);
      meet(share, position + 1);
      for (int64_t k = 0; k < step.count; ++k) {
        step.rows[k]->h = step.rows[k]->y;
        step.rows[k]->c_prev = step.rows[k]->c;
      }
    }
  }
  for (int64_t b = first; share.leads() && b < last; ++b) {
    if (rows[b - first].h != f.h_n + b * H) copy(f.h_n + b * H, rows[b - first].h, H);
    if (f.c_n && rows[b - first].c_prev != f.c_n + b * H) copy(f.c_n + b * H, rows[b - first].c_prev, H);
  }
  delete[] sums;
  delete[] rows;
}

template <class Real>
void forward(const Forward<Real>& f, const Share& share, int64_t steps_per_chunk, Wide<Real>* workspace) {
  constexpr decltype(&forward<Real>) loops[] = {forward_loop<RnnForward<false>, Real>,
                                                forward_loop<RnnForward<true>, Real>, forward_loop<GruForward, Real>,
                                                forward_loop<LstmForward, Real>};
  loops[int(f.shape.cell)](f, share, steps_per_chunk, workspace);
}
