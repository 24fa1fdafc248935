// A layer by the kernels of csrc/cuda, checked against the same formulas in double precision over the same numbers.
#pragma once

#include <cmath>
#include <random>

#include "cases.h"

namespace fusedrnn::cuda {

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double relu(double x) { return x < 0 ? 0 : x; }
inline double positive(double x) { return x > 0; }

}  // namespace fusedrnn::cuda

#include "layer.cuh"

namespace layers {

using namespace fusedrnn;
using namespace fusedrnn::cuda;

// What a problem has beside its sizes.
struct Options {
  int directions = 1;
  bool reverse = false, lengths = false, packed = false, resets = false, tokens = false, saves = true, dy = true;

  constexpr bool is_plain() const { return !lengths && !packed && !resets && !tokens; }
};
// As an argument of functions, of which no kernels are then compiled but those that are run.
template <Options options>
struct With {};
template <Options options>
constexpr With<options> with;
constexpr With<Options{}> plain;

inline std::mt19937_64 random_numbers;

// On the host and on the device.
template <class Element>
struct Array {
  std::vector<Element> host;
  micro::DeviceArray<Element> device;

  explicit Array(std::vector<Element> values) : host(std::move(values)), device(host.size() + 1) { device.write(host); }
  explicit Array(int64_t count) : Array(std::vector<Element>(count)) {}  // zeros
  // Between -scale and scale.
  Array(int64_t count, double scale) : Array(drawn(count, scale)) {}

  void read() {
    const auto all = device.read();
    host.assign(all.begin(), all.end() - 1);
  }
  void poison() { micro::check(cudaMemset(device, fusedrnn::host::kPoison, host.size() * sizeof(Element))); }

 private:
  static Element narrow(float x) {
    if constexpr (std::is_floating_point_v<Element>) {
      return x;
    } else {
      return Operand<Element>::narrow(x);
    }
  }
  static std::vector<Element> drawn(int64_t count, double scale) {
    std::vector<Element> values(count);
    std::uniform_real_distribution<float> between(-scale, scale);
    for (auto& v : values) v = narrow(between(random_numbers));
    return values;
  }
};

// Counts values further from what they should be than `tolerance`, and those that are not numbers.
struct Difference {
  double tolerance;
  unsigned wrong = 0;

  void see(double is, double should) { wrong += !(std::abs(is - should) <= tolerance * (1 + std::abs(should))); }
};

template <class P, class Q, Options options>
class Layer {
  using Element = typename P::Element;
  using Operand = typename P::Operand;
  static constexpr Cell cell = P::cell;
  static constexpr int64_t G = P::Tiles::gates, blocks = Q::blocks, V = 5, I = P::inputs ? P::inputs - 8 : 0;

 public:
  Layer(int64_t T, int64_t B, int64_t H, double tolerance)
      : T(T),
        B(B),
        H(H),
        D(options.directions),
        lengths(lengths_of()),
        offsets(offsets_of()),
        resets(drawn<uint8_t>(T * B, options.resets ? 4 : 0)),
        tokens(drawn<int64_t>(R, V)),
        difference{tolerance} {}

  void forward() {
    Forward<Element> f{};
    f.shape = shape(0, true);
    f.R = R, f.last = T;
    if (P::inputs) {
      f.x = {x.device, B * I, I}, f.w_ih = w_ih.device, f.bias = bias.device;
    } else {
      f.pre = {pre.device, B * D * G * H, D * G * H};
    }
    if (options.tokens) f.tokens = {tokens.device, B, 1};
    f.w_hh = w_hh.device, f.b_hn = b_hn.device, f.h0 = h0.device, f.c0 = c0.device;
    f.y = {y.device, B * D * H, D * H};
    f.h_n = h_n.device, f.c_n = c_n.device;
    if (options.saves) f.saved = saved.device, f.cells = cells.device;
    for (auto* array : {&y, &h_n, &c_n, &saved}) array->poison();
    cells.poison();
    launch<P>(f);
    for (auto* array : {&y, &h_n, &c_n, &saved}) array->read();
    cells.read();
    for (int64_t d = 0; d < D; ++d) {
      for (int64_t b = 0; b < B; ++b) check_forward(d, b);
    }
    finish();
  }

  // From what forward() kept, or else from any numbers.
  void backward() {
    Backward<Element> f{};
    f.shape = shape(0, true);
    f.R = R;
    if (options.dy) f.dy = {dy.device, B * D * H, D * H}, f.dh_n = dh_n.device, f.dc_n = dc_n.device;
    f.w_hh = w_hh.device, f.y = {y.device, B * D * H, D * H}, f.h0 = h0.device;
    for (size_t k = 0; k < c0.host.size(); ++k) wide_c0.host[k] = c0.host[k];
    wide_c0.device.write(wide_c0.host);
    f.c0 = wide_c0.device, f.zeros = zeros.device, f.saved = saved.device, f.cells = cells.device;
    f.dgates = dgates.device, f.before = before.device, f.dh0 = dh0.device, f.dc0 = dc0.device, f.db = db.device;
    for (auto* array : {&dgates, &before, &dh0, &dc0}) array->poison();
    db.poison();
    launch<Q>(f);
    for (auto* array : {&dgates, &before, &dh0, &dc0}) array->read();
    db.read();
    sums.assign(D * tiles() * blocks * H, 0);
    for (int64_t d = 0; d < D; ++d) {
      for (int64_t b = 0; b < B; ++b) check_backward(d, b);
    }
    for (size_t k = 0; k < sums.size(); ++k) difference.see(db.host[k], sums[k]);
    finish();
  }

 private:
  int64_t tiles() const { return (B + P::columns - 1) / P::columns; }

  std::vector<int64_t> lengths_of() const {
    std::vector<int64_t> lengths(B, T);
    for (int64_t b = 0; (options.lengths || options.packed) && b < B; ++b) lengths[b] = std::max<int64_t>(1, T - 2 * b);
    return lengths;
  }
  std::vector<int64_t> offsets_of() {
    std::vector<int64_t> offsets(T);
    for (int64_t t = 0; t < T; ++t) {
      offsets[t] = R;
      for (int64_t b = 0; b < B; ++b) R += !options.packed || t < lengths.host[b];
    }
    return offsets;
  }
  // Below `range`; zeros where it is 0.
  template <class Number>
  static std::vector<Number> drawn(int64_t count, int64_t range) {
    std::vector<Number> numbers(count);
    for (auto& n : numbers) n = range == 0 ? 0 : range == V ? random_numbers() % V : random_numbers() % range == 0;
    return numbers;
  }

  Shape shape(int64_t d, bool on_device) {
    Shape s{cell, T, B, I, H, options.reverse || d > 0, nullptr, nullptr, nullptr};
    const auto at = [&](auto& array) {
      return on_device ? static_cast<decltype(array.host.data())>(array.device) : array.host.data();
    };
    if (options.packed) s.row_offsets = at(offsets);
    if (options.lengths || options.packed) s.lengths = at(lengths);
    if (options.resets) s.resets = at(resets);
    return s;
  }

  template <class Plan>
  void launch(ArgumentsOf<Plan> arguments) {
    const auto kernel = layer_kernel<Plan, options.is_plain()>;
    const int all = static_cast<int>(tiles() * D), together = Plan::of_grid ? 1 : all;
    int64_t of_tile = 0;
    if constexpr (Plan::of_grid) of_tile = 2 * Packets<Plan>::buffer;
    const Array<arch::Packet> packets(all * of_tile);
    arguments.packets = packets.device;
    const micro::Shape grid{.ctas = together * Plan::ctas,
                            .threads = Plan::threads,
                            .cluster = Plan::cluster,
                            .shared = size_t(Plan::shared),
                            .cooperative = Plan::of_grid};
    micro::allow(kernel, grid);
    const micro::Config config(grid);
    for (; arguments.first_tile < all; arguments.first_tile += together) {
      micro::check(cudaLaunchKernelEx(&config, kernel, arguments));
      micro::check(cudaDeviceSynchronize());
    }
  }

  double weight(int64_t d, int64_t gate, int64_t row, int64_t column) const {
    return Operand::for_product(w_hh.host[((d * G + gate) * H + row) * H + column]);
  }

  static double operand(double x) { return Operand::for_product(Operand::narrow(static_cast<float>(x))); }
  static double product(Element a, Element b) { return double(Operand::for_product(a)) * Operand::for_product(b); }

  double input(int64_t d, int64_t gate, int64_t u, int64_t row) const {
    const int64_t of = (d * G + gate) * H + u;
    double sum = bias.host[of];
    for (int64_t k = 0; k < I; ++k) sum += product(w_ih.host[of * I + k], x.host[row * I + k]);
    return sum;
  }

  void check_forward(int64_t d, int64_t b) {
    const Shape s = shape(d, false);
    std::vector<double> h(H), c(H), now(H);
    for (int64_t u = 0; u < H; ++u) h[u] = h0.host[(d * B + b) * H + u], c[u] = c0.host[(d * B + b) * H + u];
    for (int64_t position = 0; position < T; ++position) {
      const int64_t t = step_at(s, position), row = row_number(s, t, b);
      const bool active = t < length_of(s, b);
      if (!active && options.packed) continue;
      if (active && is_reset(s, t, b)) h.assign(H, 0), c.assign(H, 0);
      for (int64_t u = 0; u < H; ++u) {
        if (!active) {
          difference.see(y.host[(row * D + d) * H + u], 0);
          continue;
        }
        double product[4] = {}, in[4] = {}, kept[4] = {}, new_c = 0;
        for (int64_t g = 0; g < G; ++g) {
          in[g] = P::inputs ? input(d, g, u, row)
                            : double(pre.host[(((options.tokens ? tokens.host[row] : row) * D + d) * G + g) * H + u]);
          for (int64_t k = 0; k < H; ++k) product[g] += operand(h[k]) * weight(d, g, u, k);
        }
        if constexpr (cell == Cell::lstm) {
          LstmGates<double> a{product[0] + in[0], product[1] + in[1], product[2] + in[2], product[3] + in[3]};
          lstm_forward<double>(a, c[u], new_c, now[u]);
          kept[0] = a.i, kept[1] = a.f, kept[2] = a.g, kept[3] = a.o;
        } else if constexpr (cell == Cell::gru) {
          GruGates<double> a{in[2], product[0] + in[0], product[1] + in[1], product[2] + b_hn.host[d * H + u]};
          gru_forward<double>(a, h[u], now[u]);
          kept[0] = a.n, kept[1] = a.r, kept[2] = a.z, kept[3] = a.hn;
        } else {
          now[u] = rnn_forward<cell == Cell::rnn_relu, double>(product[0] + in[0]);
        }
        c[u] = new_c;
        difference.see(y.host[(row * D + d) * H + u], now[u]);
        for (int64_t k = 0; options.saves && !is_rnn(cell) && k < 4; ++k)
          difference.see(saved.host[((d * R + row) * 4 + k) * H + u], kept[k]);
        if (options.saves && cell == Cell::lstm) difference.see(cells.host[(d * R + row) * H + u], new_c);
      }
      if (active) h = now;
    }
    for (int64_t u = 0; u < H; ++u) {
      difference.see(h_n.host[(d * B + b) * H + u], h[u]);
      if (cell == Cell::lstm) difference.see(c_n.host[(d * B + b) * H + u], c[u]);
    }
  }

  void check_backward(int64_t d, int64_t b) {
    const Shape s = shape(d, false);
    const int64_t state = (d * B + b) * H;
    std::vector<double> dh(H), dc(H), seen(G * H);
    for (int64_t u = 0; options.dy && u < H; ++u) {
      dh[u] = dh_n.host[state + u];
      if (cell == Cell::lstm) dc[u] = dc_n.host[state + u];
    }
    const auto add_product = [&] {
      for (int64_t u = 0; u < H; ++u) {
        for (int64_t g = 0; g < G; ++g) {
          for (int64_t k = 0; k < H; ++k) dh[u] += operand(seen[g * H + k]) * weight(d, g, k, u);
        }
      }
      seen.assign(G * H, 0);
    };
    for (int64_t position = T - 1; position >= 0; --position) {
      const int64_t t = step_at(s, position), row = row_number(s, t, b), earlier = step_before(s, t);
      const bool active = t < length_of(s, b), reset = is_reset(s, t, b), first = is_first(s, t, b);
      add_product();
      if (!active && options.packed) continue;
      for (int64_t u = 0; u < H; ++u) {
        const auto kept = [&](int64_t k) { return double(saved.host[((d * R + row) * 4 + k) * H + u]); };
        const double h_before = !active || reset ? 0
                                : first          ? double(h0.host[state + u])
                                                 : double(y.host[(row_number(s, earlier, b) * D + d) * H + u]);
        double values[4] = {};
        if (active) {
          const double all = dh[u] + (options.dy ? double(dy.host[(row * D + d) * H + u]) : 0);
          dh[u] = 0;
          if constexpr (cell == Cell::lstm) {
            LstmGates<double> a{kept(0), kept(1), kept(2), kept(3)};
            const double c_before = reset   ? 0
                                    : first ? double(c0.host[state + u])
                                            : double(cells.host[(d * R + row_number(s, earlier, b)) * H + u]);
            lstm_backward<double>(a, c_before, cells.host[(d * R + row) * H + u], all, dc[u]);
            values[0] = a.i, values[1] = a.f, values[2] = a.g, values[3] = a.o;
          } else if constexpr (cell == Cell::gru) {
            GruGates<double> a{kept(0), kept(1), kept(2), kept(3)};
            dh[u] = gru_backward<double>(a, h_before, all);
            values[0] = a.r, values[1] = a.z, values[2] = a.n, values[3] = a.hn;
          } else {
            values[0] = rnn_backward<cell == Cell::rnn_relu, double>(y.host[(row * D + d) * H + u], all);
          }
          if (reset) dh[u] = dc[u] = 0;
        }
        difference.see(before.host[(d * R + row) * H + u], h_before);
        for (int64_t k = 0; k < blocks; ++k) {
          difference.see(dgates.host[((d * R + row) * blocks + k) * H + u], values[k]);
          sums[((d * tiles() + b / P::columns) * blocks + k) * H + u] += values[k];
        }
        for (int64_t g = 0; !reset && g < G; ++g) seen[g * H + u] = values[cell == Cell::gru && g == 2 ? 3 : g];
      }
    }
    add_product();
    for (int64_t u = 0; u < H; ++u) {
      difference.see(dh0.host[state + u], dh[u]);
      if (cell == Cell::lstm) difference.see(dc0.host[state + u], dc[u]);
    }
  }

  void finish() const {
    if (difference.wrong) throw std::runtime_error(std::to_string(difference.wrong) + " wrong values");
  }

  int64_t T, B, H, D, R = 0;
  Array<int64_t> lengths, offsets;
  Array<uint8_t> resets;
  Array<int64_t> tokens;
  Difference difference;
  std::vector<double> sums;
  Array<Element> pre{(options.tokens ? V : R) * D * G * H, 2}, w_hh{D * G * H * H, 2 / std::sqrt(double(H))};
  Array<Element> x{R * I, 1}, w_ih{D * G * H * I, 0.5}, bias{D * G * H, 1};
  Array<Element> b_hn{D * H, 1}, h0{D * B * H, 1}, c0{D * B * H, 1};
  Array<Element> y{R * D * H, 1}, h_n{D * B * H}, c_n{D * B * H}, saved{D * R * 4 * H, 1};
  Array<float> cells{D * R * H, 1}, wide_c0{D * B * H}, zeros{std::vector<float>(H)}, db{D * tiles() * blocks * H};
  Array<Element> dy{R * D * H, 1}, dh_n{D * B * H, 1}, dc_n{D * B * H, 1};
  Array<Element> dgates{D * R * blocks * H}, before{D * R * H}, dh0{D * B * H}, dc0{D * B * H};
};

template <class P, class Q, Options options>
void layer(const char* name, int64_t T, int64_t B, int64_t H, double tolerance, With<options>) {
  random_numbers.seed(T * 1000 + B * 100 + H);
  Layer<P, Q, options> layer(T, B, H, tolerance);
  const std::string sizes = ", T " + std::to_string(T) + " B " + std::to_string(B) + " H " + std::to_string(H);
  const auto check = [&](const char* way, auto run) {
    cases::check(std::string(name) + way + sizes, [&] {
      run();
      return micro::Report{};
    });
  };
  check(" forward", [&] { layer.forward(); });
  if constexpr (options.saves) check(" backward", [&] { layer.backward(); });
}

constexpr double kBf16 = 0.02, kF16 = 3e-3, kTf32 = 1e-3, kIeee = 2e-5;

using Lstm = ForwardPlan<Cell::lstm, __nv_bfloat16, 32, 2>;
using LstmBack = BackwardPlan<Cell::lstm, __nv_bfloat16, 32, 2>;
using LstmInBoth = ForwardPlan<Cell::lstm, __nv_bfloat16, 32, 2, 20>;  // weights in both memories
using LstmInBothBack = BackwardPlan<Cell::lstm, __nv_bfloat16, 32, 2, 20>;
using LstmWithX = ForwardPlan<Cell::lstm, __nv_bfloat16, 32, 2, 255, 32>;

}  // namespace layers
