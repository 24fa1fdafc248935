// Forward alone, from checks to states in one call: what a module runs where nobody wants a gradient. A step of a decoder
// takes as long as reading the weights once, some 10 us. Part of bindings.cpp.

// Options in one number, for each argument of an op takes as long to pass as a layer's checks: the cell, the schedule,
// and bits, as in fusedrnn/backends/cpu.py.
struct How {
  int64_t cell;
  Schedule schedule;
  bool bias, bidirectional, batch_first, unbatched;

  explicit How(int64_t bits)
      : cell(bits & 3),
        schedule(schedule_of(bits >> 2 & 3)),
        bias(bits & 16),
        bidirectional(bits & 32),
        batch_first(bits & 64),
        unbatched(bits & 128) {
    STD_TORCH_CHECK(bits >= 0 && bits < 256 && !(unbatched && batch_first), "unknown options");
  }
  bool lstm() const { return Cell(cell) == Cell::lstm; }
};

// One direction. weights: w_ih, w_hh and, with a bias, b_ih, b_hh.
void infer_direction(const Direction& at, const Shape& s, const Operand& x, const Operand& h0, const Operand& c0,
                     const Tensor* weights, const How& how, const Operand& y, const Operand& h_n, const Operand& c_n) {
  with_type(weights->scalar_type(), [&](auto real) {
    run_forward<decltype(real)>(at, s, x, h0, c0, weights[0], weights[1], how.bias ? weights[2] : Operand(),
                                how.bias ? weights[3] : Operand(), y, h_n, c_n, Operand(), Operand(), how.schedule);
  });
}

// All layers. x, y: [T, B, ...], or [B, T, ...] with batch_first; states: [layers * D, B, H], zero where absent; unbatched:
// all without B. weights: those of infer_direction, layer by layer, forward before reverse.
std::tuple<Tensor, Tensor, Optional> layers(const Tensor& x, const Optional& h0, const Optional& c0, int64_t options,
                                            std::vector<Tensor> weights) {
  const How how(options);
  const bool lstm = how.lstm();
  const int64_t D = how.bidirectional ? 2 : 1, each = how.bias ? 4 : 2, count = int64_t(weights.size()) / (D * each);
  STD_TORCH_CHECK(count > 0 && int64_t(weights.size()) == count * D * each, "weights: wrong number");
  for (Tensor& w : weights) {
    if (!w.is_contiguous()) w = dense(w);
  }
  const Tensor &like = weights[0], rows = dense_rows(x);
  STD_TORCH_CHECK(rows.dim() >= 1 && weights[1].dim() == 2, "x: expected a sequence, w_hh: two dimensions");
  const int64_t without = how.unbatched ? 1 : -1;
  const auto batch = [&](const Operand& operand) { return how.unbatched ? operand.unsqueezed(1) : operand; };
  Operand in = how.batch_first ? Operand(rows).transposed() : batch(rows);
  const int64_t T = in.size(0), B = in.size(1), H = weights[1].size(1);
  const Optional zero = h0 && (c0 || !lstm) ? Optional() : zero_state(like, {D, B, H});
  const Optional h_first = dense(h0), c_first = lstm ? dense(c0) : Optional();
  const auto of_layer = [&](int64_t layer, const Optional& states) {
    if (!states) return Operand(zero);
    const Operand all = batch(states);
    STD_TORCH_CHECK(all.dim() == 3 && all.size(0) == count * D, "states: wrong shape");
    return all.narrow(layer * D, D);
  };
  const Tensor y = how.batch_first ? new_tensor(like, {B, T, D * H}) : new_tensor(like, {T, B, D * H}, without);
  const Tensor h_n = new_tensor(like, {count * D, B, H}, without);
  const Optional c_n = lstm ? Optional(new_tensor(like, {count * D, B, H}, without)) : Optional();
  const Operand outputs = how.batch_first ? Operand(y).transposed() : batch(y);
  Optional below, between;  // what the layer reads, what it writes
  for (int64_t layer = 0; layer < count; ++layer) {
    const bool last = layer + 1 == count;
    if (!last) between = new_tensor(like, {T, B, D * H});
    const Operand out = last ? outputs : Operand(between), h = of_layer(layer, h_first),
                  c = lstm ? of_layer(layer, c_first) : Operand();
    each_direction(how.bidirectional ? 2 : 0, [&](const Direction& at, bool reverse) {
      const Tensor* own = &weights[(layer * D + at.d) * each];
      const Shape s = shape_of(how.cell, reverse, in, h, own[0], Operand(), Operand());
      infer_direction(at, s, in, h, c, own, how, out, of_layer(layer, h_n), lstm ? of_layer(layer, c_n) : Operand());
    });
    below = between;
    in = out;
  }
  return {y, h_n, c_n};
}

// One layer in one direction: a list of weights takes longer to pass. With x [B, I] or tokens [B] it is a step of a cell,
// whose states are [B, H] and which has no y. Unbatched: all without B.
std::tuple<Optional, Tensor, Optional> layer(const Tensor& x, const Optional& h0, const Optional& c0, int64_t options,
                                             const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                                             const Optional& b_hh) {
  const How how(options);
  const bool lstm = how.lstm();
  STD_TORCH_CHECK(how.bias == b_ih.has_value() && how.bias == b_hh.has_value(), "b_ih and b_hh: both or none");
  const Tensor weights[] = {dense(w_ih), dense(w_hh), how.bias ? dense(*b_ih) : w_ih, how.bias ? dense(*b_hh) : w_hh};
  const Tensor rows = dense_rows(x);
  const int64_t dims = rows.dim() + how.unbatched + (rows.scalar_type() == ScalarType::Long);
  STD_TORCH_CHECK((dims == 2 || dims == 3) && weights[1].dim() == 2, "x: expected a batch, w_hh: two dimensions");
  const bool cell = dims == 2;
  const int64_t without = !how.unbatched ? -1 : cell ? 0 : 1;
  const auto full = [&](const Operand& operand) {
    const Operand batch = how.unbatched ? operand.unsqueezed(without) : operand;
    return cell ? batch.unsqueezed(0) : batch;
  };
  const bool batch_first = how.batch_first && !cell;
  const Operand in = batch_first ? Operand(rows).transposed() : full(rows);
  const int64_t T = in.size(0), B = in.size(1), H = weights[1].size(1);
  const Optional zero = h0 && (c0 || !lstm) ? Optional() : zero_state(w_ih, {1, B, H});
  const Optional h_first = dense(h0), c_first = lstm ? dense(c0) : Optional();
  const Operand h = h0 ? full(h_first) : zero, c = !lstm ? Operand() : c0 ? full(c_first) : zero;
  const auto new_state = [&] {
    return cell ? new_tensor(w_ih, {B, H}, without) : new_tensor(w_ih, {1, B, H}, without);
  };
  const Tensor h_n = new_state();
  const Optional c_n = lstm ? Optional(new_state()) : Optional();
  Optional y;
  if (!cell) y = batch_first ? new_tensor(w_ih, {B, T, H}) : new_tensor(w_ih, {T, B, H}, without);
  const Operand out = cell ? full(h_n) : batch_first ? Operand(y).transposed() : full(y);
  const Shape s = shape_of(how.cell, false, in, h, weights[0], Operand(), Operand());
  infer_direction({0, 1}, s, in, h, c, weights, how, out, full(h_n), lstm ? full(c_n) : Operand());
  return {y, h_n, c_n};
}
