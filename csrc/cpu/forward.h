// The forward time loop. Included inside the namespace of a variant.
//
// A thread owns batch rows [first, last) and runs all T steps on them: no other thread reads what it writes, so there is
// no barrier. Steps outside, panels inside them, tiles of rows innermost: a panel's weights are used by every row while
// they are in cache.

template <class Real>
struct ForwardRow {
  const Real* start;  // added to the products over h (and x): x W_ih + b, or the bias alone
  const Real* x;      // concat: the row of x
  const Real* h;      // state before the step
  const Real* c_prev;
  Real *y, *c, *saved;  // this step's output, cell state, kept blocks (null: not kept)
};

// The accumulators of one row and panel become gates and state. sums: [vector][lane], as packed.
template <class Real, bool Relu>
void rnn_finish(const Real* sums, const ForwardRow<Real>& row, int64_t panel, int64_t H) {
  constexpr int W = lanes_of<Real>;
  const int vectors = vectors_in<Real>(panel, H);
#pragma GCC unroll 1
  for (int j = 0; j < vectors; ++j) {
    const int64_t unit = (panel * vectors_per_panel + j) * W;
    store(row.y + unit, rnn_forward<Relu>(load(sums + j * W)), int(minimum(W, H - unit)));
  }
}

template <class Real>
void gru_finish(const Real* sums, const ForwardRow<Real>& row, int64_t panel, int64_t H) {
  constexpr int W = lanes_of<Real>;
  const int64_t unit = panel * W;
  const int lanes = int(minimum(W, H - unit));
  GruGates<Vector<Real>> g{load(sums + 2 * W), load(sums), load(sums + W), load(sums + 3 * W)};
  Vector<Real> h;
  gru_forward(g, load(row.h + unit, lanes), h);
  store(row.y + unit, h, lanes);
  if (row.saved) {
    store(row.saved + unit, g.n, lanes);
    store(row.saved + H + unit, g.r, lanes);
    store(row.saved + 2 * H + unit, g.z, lanes);
    store(row.saved + 3 * H + unit, g.hn, lanes);
  }
}

template <class Real>
void lstm_finish(const Real* sums, const ForwardRow<Real>& row, int64_t panel, int64_t H) {
  constexpr int W = lanes_of<Real>;
  const int64_t unit = panel * W;
  const int lanes = int(minimum(W, H - unit));
  LstmGates<Vector<Real>> g{load(sums), load(sums + W), load(sums + 2 * W), load(sums + 3 * W)};
  Vector<Real> c, h;
  lstm_forward(g, load(row.c_prev + unit, lanes), c, h);
  store(row.c + unit, c, lanes);
  store(row.y + unit, h, lanes);
  if (row.saved) {
    store(row.saved + unit, g.i, lanes);
    store(row.saved + H + unit, g.f, lanes);
    store(row.saved + 2 * H + unit, g.g, lanes);
    store(row.saved + 3 * H + unit, g.o, lanes);
  }
}

// One step's sums of `Tile` rows and one panel: sums[r] = start + x W_ih (concat) + h W_hh, [Tile][vector][lane]. `start`
// is added last: a sum of K small products that begins at a large value is rounded K times at that value's size.
template <class Input, class Hidden, int Tile, class Real>
FUSEDRNN_INLINE void forward_tile(const Forward<Real>& f, ForwardRow<Real>* const* rows, int64_t panel, Real* sums) {
  constexpr int W = lanes_of<Real>, accumulators = Hidden::last + 1;
  const int64_t at = panel_offset<Real>(f.shape.cell, panel);
  Vector<Real> acc[Tile][accumulators] = {};
  const Real* in[Tile];
  if (f.concat) {
#pragma GCC unroll 8
    for (int r = 0; r < Tile; ++r) in[r] = rows[r]->x;
    multiply<Input, Real>(acc, in, f.shape.I, f.packed_ih + f.shape.I * at);
  }
#pragma GCC unroll 8
  for (int r = 0; r < Tile; ++r) in[r] = rows[r]->h;
  multiply<Hidden, Real>(acc, in, f.shape.H, f.packed_hh + f.shape.H * at);
#pragma GCC unroll 8
  for (int r = 0; r < Tile; ++r) {
#pragma GCC unroll 4
    for (int a = 0; a < Input::count; ++a) acc[r][a] += load(rows[r]->start + at + a * W);
    if constexpr (accumulators > Input::count) acc[r][Input::count] += load(f.bias_hn + panel * W);
  }
  store_tile<Real>(acc, sums);
}

// x W_ih + b of `count` rows: the same accumulation as in forward_tile, kept in memory instead of registers.
template <class Real>
void input_product(const Forward<Real>& f, const ForwardRow<Real>* rows, int64_t count) {
  constexpr int W = lanes_of<Real>;
  const Cell cell = f.shape.cell;
  const int64_t panels = forward_panels<Real>(cell, f.shape.H);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t at = panel_offset<Real>(cell, panel);
    with_vectors(slots_of<Real>(cell, f.shape.H, panel), [&](auto slots) {
      using S = decltype(slots);
      for_tiles(count, [&](auto tile, int64_t first) {
        constexpr int Tile = decltype(tile)::value;
        Vector<Real> acc[Tile][S::count];
        const Real* in[Tile];
#pragma GCC unroll 8
        for (int r = 0; r < Tile; ++r) {
          in[r] = rows[first + r].x;
#pragma GCC unroll 4
          for (int a = 0; a < S::count; ++a) acc[r][a] = load(f.bias + at + a * W);
        }
        multiply<S, Real>(acc, in, f.shape.I, f.packed_ih + f.shape.I * at);
#pragma GCC unroll 8
        for (int r = 0; r < Tile; ++r) {
#pragma GCC unroll 4
          for (int a = 0; a < S::count; ++a) store(const_cast<Real*>(rows[first + r].start) + at + a * W, acc[r][a]);
        }
      });
    });
  }
}

template <class Real>
using ForwardFinish = void (*)(const Real* sums, const ForwardRow<Real>&, int64_t panel, int64_t H);

template <class Real>
void forward_step(const Forward<Real>& f, ForwardRow<Real>* const* rows, int64_t count, ForwardFinish<Real> finish) {
  constexpr int W = lanes_of<Real>;
  const Cell cell = f.shape.cell;
  const int64_t panels = forward_panels<Real>(cell, f.shape.H);
  Real sums[FUSEDRNN_TILE_ROWS * vectors_per_panel * W];
  for (int64_t panel = 0; panel < panels; ++panel) {
    const auto run = [&](auto input, auto hidden) {
      using Hidden = decltype(hidden);
      for_tiles(count, [&](auto tile, int64_t first) {
        constexpr int Tile = decltype(tile)::value;
        forward_tile<decltype(input), Hidden, Tile>(f, rows + first, panel, sums);
#pragma GCC unroll 1
        for (int r = 0; r < Tile; ++r) {
          finish(sums + r * (Hidden::last + 1) * W, *rows[first + r], panel, f.shape.H);
        }
      });
    };
    if (cell == Cell::gru) {
      run(Slots<0, 1, 2>{}, Slots<0, 1, 3>{});  // r z n from x; r z hn from h
    } else {
      with_vectors(slots_of<Real>(cell, f.shape.H, panel), [&](auto slots) { run(slots, slots); });
    }
  }
}

// Fills `start` (and `x`) of the rows of steps [begin, end); inactive rows are left out of the product.
template <class Real>
void prepare_inputs(const Forward<Real>& f, int64_t first, int64_t last, int64_t begin, int64_t end, Real* pre,
                    ForwardRow<Real>* inputs) {
  const Shape& s = f.shape;
  const int64_t width = packed_width<Real>(s.cell, s.H);
  int64_t count = 0;
  for (int64_t position = begin; position < end; ++position) {
    const int64_t t = step_at(s, position);
    for (int64_t b = first; b < last; ++b) {
      Real* start = pre + ((position - begin) * (last - first) + b - first) * width;
      if (t >= length_of(s, b)) continue;
      if (f.tokens.base) {
        token_row(f, *row_at(s, f.tokens, t, b), start);
      } else {
        inputs[count].start = start;
        inputs[count++].x = row_at(s, f.x, t, b);
      }
    }
  }
  input_product(f, inputs, count);
}

template <class Real>
void forward_loop(const Forward<Real>& f, int64_t first, int64_t last, int64_t steps_per_chunk, Real* workspace,
                  ForwardFinish<Real> finish) {
  const Shape& s = f.shape;
  const int64_t n = last - first, H = s.H, width = packed_width<Real>(s.cell, H);
  const int64_t blocks = s.cell == Cell::lstm || s.cell == Cell::gru ? 4 : 0;
  const bool direct = f.concat || f.table;  // nothing to prepare per chunk
  auto* rows = new ForwardRow<Real>[n];
  auto** active = new ForwardRow<Real>*[n];
  auto* inputs = direct ? nullptr : new ForwardRow<Real>[n * steps_per_chunk];
  for (int64_t b = first; b < last; ++b) {
    rows[b - first] = {};
    rows[b - first].h = f.h0 + b * H;
    rows[b - first].c_prev = f.c0 ? f.c0 + b * H : nullptr;
  }
  for (int64_t begin = 0; begin < s.T; begin += steps_per_chunk) {
    const int64_t end = minimum(s.T, begin + steps_per_chunk);
    if (!direct) prepare_inputs(f, first, last, begin, end, workspace, inputs);
    for (int64_t position = begin; position < end; ++position) {
      const int64_t t = step_at(s, position);
      int64_t count = 0;
      for (int64_t b = first; b < last; ++b) {
        ForwardRow<Real>& row = rows[b - first];
        if (t >= length_of(s, b)) {
          if (!s.row_offsets) zero(row_at(s, f.y, t, b), H);
          continue;
        }
        const int64_t number = row_number(s, t, b);
        row.y = row_at(s, f.y, t, b);
        if (f.c_n) row.c = f.cells ? f.cells + number * H : f.c_n + b * H;
        row.saved = f.saved ? f.saved + number * blocks * H : nullptr;
        if (f.concat) {
          row.x = row_at(s, f.x, t, b);
          row.start = f.bias;
        } else if (f.table) {
          row.start = f.table + *row_at(s, f.tokens, t, b) * width;
        } else {
          row.start = workspace + ((position - begin) * n + b - first) * width;
        }
        active[count++] = &row;
      }
      forward_step(f, active, count, finish);
      for (int64_t k = 0; k < count; ++k) {
        active[k]->h = active[k]->y;
        active[k]->c_prev = active[k]->c;
      }
    }
  }
  for (int64_t b = first; b < last; ++b) {
    copy(f.h_n + b * H, rows[b - first].h, H);
    if (f.c_n && rows[b - first].c_prev != f.c_n + b * H) copy(f.c_n + b * H, rows[b - first].c_prev, H);
  }
  delete[] inputs;
  delete[] active;
  delete[] rows;
}

template <class Real>
void forward(const Forward<Real>& f, int64_t first, int64_t last, int64_t steps_per_chunk, Real* workspace) {
  const ForwardFinish<Real> finish[] = {rnn_finish<Real, false>, rnn_finish<Real, true>, gru_finish<Real>,
                                        lstm_finish<Real>};
  forward_loop(f, first, last, steps_per_chunk, workspace, finish[int(f.shape.cell)]);
}
