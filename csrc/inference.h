// Forward alone, from checks to states in one call: what a module runs where nobody wants a gradient. A step of a decoder
// takes as long as reading the weights once, some 10 us. Part of bindings.cpp.

// Options in one number, for each argument of an op takes as long to pass as a layer's checks: the cell, and bits, as
// in fusedrnn/backends/cpu.py.
struct How {
  int64_t cell;
  bool concat, bias, bidirectional, batch_first;

  explicit How(int64_t bits)
      : cell(bits & 3), concat(bits & 4), bias(bits & 8), bidirectional(bits & 16), batch_first(bits & 32) {
    STD_TORCH_CHECK(bits >= 0 && bits < 64, "unknown options");
  }
  bool lstm() const { return Cell(cell) == Cell::lstm; }
};

// A state [D, B, H] of zeros where none was given.
Tensor zero_state(const Tensor& like, std::initializer_list<int64_t> sizes) {
  const ScalarType type = like.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "w_ih: wrong dtype");
  const Tensor made = new_tensor(like, sizes);
  std::memset(made.data_ptr(), 0, made.numel() * bytes_of(type));
  return made;
}

// One direction. weights: w_ih, w_hh and, with a bias, b_ih, b_hh.
void infer_direction(const Direction& at, const Shape& s, const Operand& x, const Operand& h0, const Operand& c0,
                     const Tensor* weights, const How& how, const Operand& y, const Operand& h_n, const Operand& c_n) {
  const auto run = weights->scalar_type() == ScalarType::Double ? run_forward<double> : run_forward<float>;
  run(at, s, x, h0, c0, weights[0], weights[1], how.bias ? weights[2] : Operand(), how.bias ? weights[3] : Operand(), y,
      h_n, c_n, Operand(), Operand(), how.concat);
}

// All layers. x, y: [T, B, ...], or [B, T, ...] with batch_first; states: [layers * D, B, H], zero where absent; weights:
// those of infer_direction, layer by layer, forward before reverse.
std::tuple<Tensor, Tensor, Optional> layers(const Tensor& x, const Optional& h0, const Optional& c0, int64_t options,
                                            std::vector<Tensor> weights) {
  const How how(options);
  const bool lstm = how.lstm(), batch_first = how.batch_first;
  const int64_t D = how.bidirectional ? 2 : 1, each = how.bias ? 4 : 2, count = int64_t(weights.size()) / (D * each);
  STD_TORCH_CHECK(count > 0 && int64_t(weights.size()) == count * D * each, "weights: wrong number");
  for (Tensor& w : weights) {
    if (!w.is_contiguous()) w = dense(w);
  }
  const Tensor &like = weights[0], rows = dense_rows(x);
  STD_TORCH_CHECK(rows.dim() >= 2 && weights[1].dim() == 2, "x: expected two or three dimensions, w_hh: two");
  Operand in = batch_first ? Operand(rows).transposed() : Operand(rows);
  const int64_t T = in.size(0), B = in.size(1), H = weights[1].size(1);
  const Optional zero = h0 && (c0 || !lstm) ? Optional() : zero_state(like, {D, B, H});
  const Optional h_first = dense(h0), c_first = lstm ? dense(c0) : Optional();
  const auto state_of = [&](int64_t layer, const Optional& states) {
    if (!states) return Operand(zero);
    STD_TORCH_CHECK(states->dim() == 3 && states->size(0) == count * D, "states: wrong shape");
    return Operand(*states).narrow(layer * D, D);
  };
  const Tensor y = batch_first ? new_tensor(like, {B, T, D * H}) : new_tensor(like, {T, B, D * H});
  const Tensor h_n = new_tensor(like, {count * D, B, H});
  const Optional c_n = lstm ? Optional(new_tensor(like, {count * D, B, H})) : Optional();
  const auto outputs = batch_first ? Operand(y).transposed() : Operand(y);
  Optional below, between;  // what the layer reads, what it writes
  for (int64_t layer = 0; layer < count; ++layer) {
    const bool last = layer + 1 == count;
    if (!last) between = new_tensor(like, {T, B, D * H});
    const Operand out = last ? outputs : Operand(between), h = state_of(layer, h_first),
                  c = lstm ? state_of(layer, c_first) : Operand();
    each_direction(how.bidirectional ? 2 : 0, [&](const Direction& at, bool reverse) {
      const Tensor* own = &weights[(layer * D + at.d) * each];
      const Shape s = shape_of(how.cell, reverse, in, h, own[0], Operand(), Operand());
      infer_direction(at, s, in, h, c, own, how, out, Operand(h_n).narrow(layer * D, D),
                      lstm ? Operand(*c_n).narrow(layer * D, D) : Operand());
    });
    below = between;
    in = out;
  }
  return {y, h_n, c_n};
}

// One layer in one direction: a list of weights takes longer to pass. With x [B, I] or tokens [B] it is a step of a cell,
// whose states are [B, H] and which has no y.
std::tuple<Optional, Tensor, Optional> layer(const Tensor& x, const Optional& h0, const Optional& c0, int64_t options,
                                             const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                                             const Optional& b_hh) {
  const How how(options);
  const bool lstm = how.lstm();
  STD_TORCH_CHECK(how.bias == b_ih.has_value() && how.bias == b_hh.has_value(), "b_ih and b_hh: both or none");
  const Tensor weights[] = {dense(w_ih), dense(w_hh), how.bias ? dense(*b_ih) : w_ih, how.bias ? dense(*b_hh) : w_hh};
  const Tensor rows = dense_rows(x);
  const bool cell = rows.dim() == (rows.scalar_type() == ScalarType::Long ? 1 : 2);
  STD_TORCH_CHECK(rows.dim() > 0 && weights[1].dim() == 2, "x: expected a batch, w_hh: two dimensions");
  const auto in_time = [&](const Operand& operand) { return cell ? operand.as_step() : operand; };
  const Operand in = how.batch_first && !cell ? Operand(rows).transposed() : in_time(rows);
  const int64_t T = in.size(0), B = in.size(1), H = weights[1].size(1);
  const Optional zero = h0 && (c0 || !lstm) ? Optional() : zero_state(w_ih, {1, B, H});
  const Optional h_first = dense(h0), c_first = lstm ? dense(c0) : Optional();
  const Operand h = h0 ? in_time(h_first) : zero, c = !lstm ? Operand() : c0 ? in_time(c_first) : zero;
  const auto new_state = [&] { return cell ? new_tensor(w_ih, {B, H}) : new_tensor(w_ih, {1, B, H}); };
  const Tensor h_n = new_state();
  const Optional c_n = lstm ? Optional(new_state()) : Optional();
  Optional y;
  if (!cell) y = how.batch_first ? new_tensor(w_ih, {B, T, H}) : new_tensor(w_ih, {T, B, H});
  const Operand out = cell ? in_time(h_n) : how.batch_first ? Operand(y).transposed() : y;
  const Shape s = shape_of(how.cell, false, in, h, weights[0], Operand(), Operand());
  infer_direction({0, 1}, s, in, h, c, weights, how, out, in_time(h_n), lstm ? in_time(c_n) : Operand());
  return {y, h_n, c_n};
}
