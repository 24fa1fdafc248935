// What save="lean" did not keep. Included inside the namespace of a variant.
//
// The kernels of the forward step, with all rows of many steps as the rows of one: every h before a step is known, and a
// panel's rows are finished in order of processing, so that c is there when the next step wants it. The sums are those of
// the hoisted forward, bit for bit.

template <class Gates, class Real>
void rebuild_loop(const Forward<Real>& f, const Backward<Real>& to, const Share& share, int64_t begin, int64_t end,
                  int64_t steps_at_once, Wide<Real>* workspace) {
  const Shape& s = f.shape;
  const int64_t first = share.first, n = share.last - first, most = n * minimum(steps_at_once, end - begin);
  const int64_t width = packed_width<Real>(s.cell, s.H), room = vectors_per_panel * lanes_of<Real>;
  const int64_t first_row = first_row_of(s, begin, end);
  const Panels own = panels_of(share, forward_panels<Real>(s.cell, s.H));
  TileShape<Real> shape;
  StepRows<Real> step(shape, most, 0, s.H), chunk(shape, f.table ? 0 : most, f.table ? 0 : s.I, 0);
  auto* rows = new ForwardRow<Real>[most];
  auto* sums = zeros_for_sums<Real>(most);
  auto* known_h = new Real[s.H];  // y has it already
  for (int64_t k = 0; k < most; ++k) {
    step.sums[k] = sums + k * room;
    step.rows[k] = rows + k;
  }
  for (int64_t now = begin; now < end; now += steps_at_once) {
    const int64_t then = minimum(end, now + steps_at_once);
    if (!f.table) input_product(f, share, own, now, then, workspace, chunk);
    step.count = 0;
    for (int64_t position = now; position < then; ++position) {
      const int64_t t = step_at(s, position);
      for (int64_t b = first; b < share.last; ++b) {
        if (t >= length_of(s, b)) continue;
        BackwardRow<Real> at{};
        find_row(to, t, b, position == begin, first_row, at);
        const Wide<Real>* start = f.table ? f.table + *row_at(s, f.tokens, t, b) * width
                                          : workspace + ((position - now) * n + b - first) * width;
        step.h[step.count] = at.h_prev;
        rows[step.count++] = {start, at.h_prev, at.c_prev, nullptr, known_h, at.c, at.dgates};
      }
    }
    forward_step<Gates>(f, step, own);
  }
  delete[] rows;
  delete[] sums;
  delete[] known_h;
}

template <class Real>
void rebuild(const Forward<Real>& f, const Backward<Real>& to, const Share& share, int64_t begin, int64_t end,
             int64_t steps_at_once, Wide<Real>* workspace) {
  const auto loop = f.shape.cell == Cell::gru ? rebuild_loop<GruForward, Real> : rebuild_loop<LstmForward, Real>;
  loop(f, to, share, begin, end, steps_at_once, workspace);
}
