// The reverse time loop of a layer whose recurrent weights one CTA holds, as forward.cuh has the forward one.
//
//   step:  sums = W_hh^T dgates   of the step processed before, which is what reaches h through the products
//          meanwhile              copies of what forward kept begin for a later step, results of the last step go to memory
//          dgates                 of a thread's own units, to memory and for the next step; one barrier
//
// What reaches h past the products (of the GRU, and dh_n), dc, and the sums of the biases' gradients stay in registers. The
// gradients of the weights and of x are products of dgates over all rows, afterwards.
#pragma once

#include "loop.cuh"

namespace fusedrnn::cuda {

// Rows of dy and y, and H of them, are whole 16 bytes.
template <class Element>
struct Backward {
  Shape shape;  // of the first direction; a second one is the reverse
  int64_t R;
  Rows<const Element> dy;      // [row][D*H], or null
  const Element *dh_n, *dc_n;  // [D, B, H], or null
  const Element* w_hh;         // [D, G*H, H]
  Rows<const Element> y;       // [row][D*H]
  const Element* h0;           // [D, B, H]
  const float* c0;             // LSTM: [D, B, H]
  const float* zeros;          // [H]: the state after a reset
  const Element* saved;        // [D, R, 4, H]
  const float* cells;          // LSTM: [D, R, H]
  Element* dgates;             // [D, R, blocks*H]: of the GRU r z n and n r, which W_hn sees
  Element* before;             // [D, R, H]: the state each row started from
  Element *dh0, *dc0;          // [D, B, H]
  float* db;                   // [D, tiles, blocks*H]: sums of dgates over a tile's rows
  // As those of struct Forward.
  arch::Packet* packets;
  int64_t first_tile;
};

template <class P, bool plain>
class BackwardLoop : protected Loop<P, plain> {
 protected:
  using Base = Loop<P, plain>;
  using Base::B_, Base::direction_, Base::H_, Base::own_length_, Base::own_row_, Base::s_, Base::shared_, Base::T_,
      Base::units_, Base::weights_;
  using typename Base::Element, typename Base::Operand, typename Base::Sums, typename Base::T, typename Base::Value;
  // Of the copies that have begun, those of so many steps need not be there at the end of a step.
  static constexpr int under_way = P::stages - 2;

 public:
  FUSEDRNN_DEVICE BackwardLoop(const Backward<Element>& f, unsigned char* shared, uint32_t rank)
      : Base(f.shape, true, shared, rank, 0, f.shape.T, f.first_tile), f_(f) {
    weights_.load(shared, this->matrix(f.w_hh, P::gates, H_));
  }

  // Steps are counted in the order of processing: the last one that forward processed is step 0.
  FUSEDRNN_DEVICE void run() {
    start();
    Sums sums;
    const auto sum = [&](const Place& p) { return weights_.sum(sums, p, 0); };
    for (int step = 0; step < T_; ++step) {
      weights_.multiply(arch::shared_address(shared_ + P::operand_of(step)), sums);
      begin_input(step + P::stages - 1);
      if (step > 0) store_results(step - 1);
      store_before(step);
      finish(step, sum);
      arch::wait_for_copies_but<under_way>();
      __syncthreads();
    }
    if (T_ > 0) store_results(T_ - 1);
    weights_.multiply(arch::shared_address(shared_ + P::operand_of(T_)), sums);
    end(sum);
  }

 protected:
  struct State {
    float dh, dc;  // what reaches h past the products; what reaches c
  };

  FUSEDRNN_DEVICE void start() {
    const int64_t R = f_.R;
    dy_ = this->walk(this->part(f_.dy, H_)), y_ = this->walk(this->part(f_.y, H_));
    saved_ = this->walk(this->dense(f_.saved, R, 4 * H_)), cells_ = this->walk(this->dense(f_.cells, R, H_));
    dgates_ = this->walk(this->dense(f_.dgates, R, P::blocks * H_)),
    before_ = this->walk(this->dense(f_.before, R, H_));
    for (int step = 0; step < P::stages - 1; ++step) begin_input(step);
    if constexpr (!P::of_grid) {
      for (int k = threadIdx.x * 16; k < 2 * P::operand_buffer; k += P::threads * 16)
        *reinterpret_cast<uint4*>(shared_ + k) = {0, 0, 0, 0};
    }
    this->each_place([&](const Place& p) { length_[p.side] = this->length(p.b); });
    this->each([&](const Place& p) {
      State& state = state_[p.at];
      if (f_.dh_n) state.dh = static_cast<float>(f_.dh_n[this->state_at(p)]);
      if (P::cell == Cell::lstm && f_.dc_n) state.dc = static_cast<float>(f_.dc_n[this->state_at(p)]);
    });
    arch::wait_for_copies_but<under_way>();
    __syncthreads();
  }

  // sum(place): what reaches h of it through the products.
  template <class Sum>
  FUSEDRNN_DEVICE void end(const Sum& sum) {
    this->each([&](const Place& p) {
      const State& state = state_[p.at];
      f_.dh0[this->state_at(p)] = Operand::narrow(sum(p) + state.dh);
      if (P::cell == Cell::lstm) f_.dc0[this->state_at(p)] = Operand::narrow(state.dc);
    });
    store_bias_sums();
  }

  // What does not count, beyond H, B or a row's length, is computed all the same, from whatever there is, and then dropped.
  template <class Sum>
  FUSEDRNN_DEVICE void finish(int step, const Sum& sum) {
    const int t = this->t_of(step);
    this->each_place([&](const Place& p) {
      State& state = state_[p.at];
      const unsigned char* const input = shared_ + P::input_of(step) + p.column * P::ring_row;
      const bool counts = t < length_[p.side] && p.unit < units_, ends = s_.resets && counts && is_reset(s_, t, p.b);
      state.dh += sum(p);
      State next = state;
      float d[P::blocks];
      gates(input, p.unit, next, d);
#pragma unroll
      for (int k = 0; k < P::blocks; ++k) d[k] = counts ? d[k] : 0;
      state = {counts ? next.dh : state.dh, counts ? next.dc : state.dc};
      if (ends) state = {};
      auto* const result = reinterpret_cast<Element*>(shared_ + P::results_of(step) + p.column * P::out_row) + p.unit;
      auto* const operand =
          reinterpret_cast<Element*>(shared_ + P::own_operand_of(step + 1) + p.column * P::own_operand_row) + p.unit;
#pragma unroll
      for (int k = 0; k < P::blocks; ++k) {
        result[k * P::hidden] = Operand::narrow(d[k]);
        sums_[p.own][k] += d[k];
      }
#pragma unroll
      for (int gate = 0; gate < P::gates; ++gate) {
        const float seen = P::cell == Cell::gru && gate == 2 ? d[P::blocks - 1] : d[gate];
        operand[gate * P::hidden] = Operand::for_product(Operand::narrow(ends ? 0 : seen));
      }
    });
  }

  // dgates of a unit. state.dh: all that reaches h but dy, before; what passes the products, after.
  FUSEDRNN_DEVICE void gates(const unsigned char* input, int unit, State& state, float (&d)[P::blocks]) {
    const auto of = [&](int at, int k) {
      return static_cast<float>(reinterpret_cast<const Element*>(input + at)[k * P::hidden + unit]);
    };
    const Value dh = f_.dy.base ? state.dh + of(0, 0) : state.dh;
    if constexpr (P::cell == Cell::lstm) {
      const auto c = [&](int at) { return reinterpret_cast<const float*>(input + at)[unit]; };
      LstmGates<Value> a{of(P::saved_at, 0), of(P::saved_at, 1), of(P::saved_at, 2), of(P::saved_at, 3)};
      Value dc = state.dc;
      lstm_backward<Value>(a, c(P::c_before_at), c(P::c_at), dh, dc);
      state = {0, dc.v};
      d[0] = a.i.v, d[1] = a.f.v, d[2] = a.g.v, d[3] = a.o.v;
    } else if constexpr (P::cell == Cell::gru) {
      GruGates<Value> a{of(P::saved_at, 0), of(P::saved_at, 1), of(P::saved_at, 2), of(P::saved_at, 3)};
      state.dh = gru_backward<Value>(a, of(P::before_at, 0), dh).v;
      d[0] = a.r.v, d[1] = a.z.v, d[2] = a.n.v, d[3] = a.hn.v;
    } else {
      const Value y = of(P::saved_at, 0);
      d[0] = s_.cell == Cell::rnn_relu ? rnn_backward<true>(y, dh).v : rnn_backward<false>(y, dh).v;
      state.dh = 0;
    }
  }

  // To be called for each step in turn, as the two that follow.
  FUSEDRNN_DEVICE void store_results(int step) {
    const int t = this->t_of(step);
    Element* const to = this->next(dgates_, t);
    if (own_row_ < B_ && (this->copies(t) || !s_.row_offsets))
      this->template store<P::blocks>(to, this->own_column(P::results_of(step), P::out_row));
  }

  // From the ring, while the step's input is there.
  FUSEDRNN_DEVICE void store_before(int step) {
    const int t = this->t_of(step);
    Element* const to = this->next(before_, t);
    if (this->copies(t)) {
      this->template store<1>(to, this->own_column(P::input_of(step) + P::before_at, P::ring_row));
    } else if (own_row_ < B_ && !s_.row_offsets) {
      this->template each_part<Element, 1>(units_, [&](int, int there) {
        *reinterpret_cast<uint4*>(reinterpret_cast<unsigned char*>(to) + there) = {0, 0, 0, 0};
      });
    }
  }

  FUSEDRNN_DEVICE void begin_input(int step) {
    if (step < T_) {
      const int t = this->t_of(step);
      const Element* const dy = f_.dy.base ? this->next(dy_, t) : nullptr;
      const Element* const y = this->next(y_, t);
      const Element* const kept = is_rnn(P::cell) ? y : this->next(saved_, t);
      const float* const c = P::cell == Cell::lstm ? this->next(cells_, t) : nullptr;
      if (this->copies(t)) {
        const uint32_t to = this->own_column(P::input_of(step), P::ring_row);
        const bool reset = is_reset(s_, t, own_row_), first = s_.reverse ? t + 1 >= own_length_ : t == 0;
        const int64_t state = (direction_ * s_.B + own_row_) * H_ + this->first_unit_;
        if (dy) this->template begin_copy<1>(to, dy, units_);
        this->template begin_copy<1>(to + P::before_at,
                                     reset   ? reinterpret_cast<const Element*>(f_.zeros)
                                     : first ? f_.h0 + state
                                             : this->following(y_, t),
                                     units_);
        this->template begin_copy<P::blocks>(to + P::saved_at, kept, units_);
        if constexpr (P::cell == Cell::lstm) {
          this->template begin_copy<1>(to + P::c_at, c, units_);
          this->template begin_copy<1>(to + P::c_before_at,
                                       reset   ? f_.zeros
                                       : first ? f_.c0 + state
                                               : this->following(cells_, t),
                                       units_);
        }
      }
    }
    arch::commit_copies();
  }

  // Of the rows of this batch tile, in their order, by way of the ring, which is not needed any more.
  FUSEDRNN_DEVICE void store_bias_sums() {
    auto* const sums = reinterpret_cast<float*>(shared_ + P::ring_at);
    this->each_place([&](const Place& p) {
      if (p.side > 0) return;
#pragma unroll
      for (int k = 0; k < P::blocks; ++k)
        sums[(p.column / T::sides * P::blocks + k) * P::hidden + p.unit] = sums_[p.own][k];
    });
    __syncthreads();
    for (int k = threadIdx.x; k < P::blocks * units_; k += P::threads) {
      const int block = k / units_, unit = k % units_, at = block * P::hidden + unit;
      float sum = 0;
      for (int share = 0; share < P::shares; ++share) sum += sums[share * P::blocks * P::hidden + at];
      f_.db[(static_cast<int64_t>(this->tile(f_.first_tile)) * P::blocks + block) * H_ + this->first_unit_ + unit] =
          sum;
    }
  }

  const Backward<Element>& f_;
  Walk<const Element> dy_, y_, saved_;
  Walk<const float> cells_;
  Walk<Element> dgates_, before_;
  int length_[T::sides];  // of the columns of this thread's places
  State state_[Base::places] = {};
  float sums_[Base::units][P::blocks] = {};
};

}  // namespace fusedrnn::cuda
