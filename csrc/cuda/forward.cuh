// The forward time loop of a layer whose recurrent weights one CTA holds: for batch tiles of 8 rows, one CTA and direction
// each, the whole sequence in one launch.
//
//   step:  sums = W_hh h     from the state of the step before, in shared memory, by tensor cores
//          meanwhile         copies of x W_ih + b begin for a later step, and the results of the last step go to memory
//          gates, c, h       of a thread's own units; the new state and the results into shared memory; one barrier
//
// Each thread keeps c, and h as it was before it was rounded, in registers for the whole sequence. The barrier is all that
// a step needs. What it publishes are the new state, the results, and the ring's next stage, whose copies every thread has
// waited for. What is written after it was read before it: of two buffers the older one, of the ring the stage just used.
#pragma once

#include "loop.cuh"

namespace fusedrnn::cuda {

// Rows of pre and y, and H of them, are whole 16 bytes.
template <class Element>
struct Forward {
  Shape shape;  // of the first direction; a second one is the reverse
  int64_t R;
  Rows<const Element> pre;     // x W_ih + b but b_hn, [row][D, G*H]; of tokens [token][D, G*H]
  Rows<const int64_t> tokens;  // or null, as those of a plain layer are
  const Element* w_hh;         // [D, G*H, H]
  const Element* b_hn;         // GRU: [D, H], or null
  const Element *h0, *c0;      // [D, B, H]
  Rows<Element> y;             // [row][D*H]
  Element *h_n, *c_n;          // [D, B, H]
  Element* saved;              // [D, R, 4, H], or null
  float* cells;                // [D, R, H], or null
  // Instead of pre and tokens; rows and I of them are whole 16 bytes.
  Rows<const Element> x;  // [row][I], or null
  const Element* w_ih;    // [D, G*H, I]
  const Element* bias;    // [D, G*H], what pre would have, or null
  // Of the T steps of the loop those from `first` up to `last`. Where that is a part, the state between parts, before it
  // was rounded.
  int64_t first, last;
  float *h_between, *c_between;  // [D, B, H]
  // Of a grid, by way of which its CTAs exchange the state: of each tile so many, zeros before the first step; and the
  // first tile of those that are launched together.
  arch::Packet* packets;
  int64_t first_tile;
};

// The products of W_ih and x, of a step that follows.
template <class P>
struct InputProducts {
  using T = typename P::Tiles;
  using Weights = typename T::template Weights<P, typename P::Inputs>;
  Weights weights;
  typename Weights::Sums sums;
  float bias[P::groups * T::of_thread][T::gates] = {};
};
struct NoProducts {};

template <class P, bool plain>
class ForwardLoop : protected Loop<P, plain> {
 protected:
  using Base = Loop<P, plain>;
  using Base::H_, Base::own_length_, Base::s_, Base::shared_, Base::T_, Base::units_, Base::weights_;
  using typename Base::Element, typename Base::Operand, typename Base::Sums, typename Base::T, typename Base::Value;
  static constexpr int kept_blocks = fusedrnn::cuda::kept_blocks<P::cell>;
  static constexpr bool concat = P::inputs > 0;
  // Of the copies that have begun, those of so many steps need not be there at the end of a step.
  static constexpr int under_way = P::stages - (concat ? 3 : 2);
  static_assert(under_way >= 0);

 public:
  FUSEDRNN_DEVICE ForwardLoop(const Forward<Element>& f, unsigned char* shared, uint32_t rank)
      : Base(f.shape, false, shared, rank, f.first, f.last, f.first_tile), f_(f) {
    weights_.load(shared, this->matrix(f.w_hh, T::gates, H_));
    if constexpr (concat) inputs_.weights.load(shared, this->matrix(f.w_ih, T::gates, static_cast<int>(s_.I)));
  }

  FUSEDRNN_DEVICE void run() {
    start();
    for (int step = 0; step < T_; ++step) {
      Sums sums;
      weights_.multiply(arch::shared_address(shared_ + P::operand_of(step)), sums);
      begin_input(step + P::stages - 1);
      if (step > 0) store_results(step - 1);
      finish(step, sums);
      multiply_input(step + 1);
      arch::wait_for_copies_but<under_way>();
      __syncthreads();
    }
    end();
  }

 protected:
  struct State {
    float h, c;
  };

  FUSEDRNN_DEVICE void start() {
    const auto pre = concat ? f_.x : this->part(f_.pre, T::gates * H_);
    pre_ = this->walk(pre), tokens_ = this->walk(f_.tokens);
    if (of_tokens()) pre_.at = pre.base;
    y_ = this->walk(this->part(f_.y, H_));
    saved_ = this->walk(this->dense(f_.saved, f_.R, 4 * H_)), cells_ = this->walk(this->dense(f_.cells, f_.R, H_));
    if constexpr (concat) {
      for (int k = threadIdx.x * 16; k < P::stages * P::ring_stage; k += P::threads * 16)
        *reinterpret_cast<uint4*>(shared_ + P::ring_at + k) = {0, 0, 0, 0};
      __syncthreads();
    }
    find_token(0);
    for (int step = 0; step < P::stages - 1; ++step) begin_input(step);
    this->each_place([&](const Place& p) { length_[p.side] = this->length(p.b); });
    this->each([&](const Place& p) {
      State& state = state_[p.at];
      if constexpr (concat) {
        for (int gate = 0; f_.bias && gate < T::gates; ++gate)
          inputs_.bias[p.own][gate] = static_cast<float>(f_.bias[this->bias_at(p, T::gates, gate)]);
      }
      if (P::cell == Cell::gru && f_.b_hn) b_hn_[p.own] = static_cast<float>(f_.b_hn[this->bias_at(p, 1, 0)]);
      if (ends_before(0, p)) return;
      const int64_t at = this->state_at(p);
      state.h = f_.first > 0 ? f_.h_between[at] : static_cast<float>(f_.h0[at]);
      if (P::cell == Cell::lstm) state.c = f_.first > 0 ? f_.c_between[at] : static_cast<float>(f_.c0[at]);
    });
    publish(0);
    arch::wait_for_copies_but<under_way>();
    __syncthreads();
    multiply_input(0);
  }

  FUSEDRNN_DEVICE void end() {
    if (T_ > 0) store_results(T_ - 1);
    this->each([&](const Place& p) {
      const State& state = state_[p.at];
      const int64_t at = this->state_at(p);
      if (f_.last < s_.T) {
        f_.h_between[at] = state.h;
        if (P::cell == Cell::lstm) f_.c_between[at] = state.c;
      } else {
        f_.h_n[at] = Operand::narrow(state.h);
        if (P::cell == Cell::lstm) f_.c_n[at] = Operand::narrow(state.c);
      }
    });
  }

  // Whether the state is set to zero before this step, if there is one.
  FUSEDRNN_DEVICE bool ends_before(int step, const Place& p) const {
    if (!s_.resets || step >= T_) return false;
    const int t = this->t_of(step);
    return t < length_[p.side] && is_reset(s_, t, p.b);
  }

  // What does not count, beyond H, B or a row's length, is computed all the same, from whatever there is, and then dropped.
  FUSEDRNN_DEVICE void finish(int step, const Sums& sums) {
    const int t = this->t_of(step);
    this->each_place([&](const Place& p) {
      State& state = state_[p.at];
      unsigned char* const result = shared_ + P::results_of(step) + p.column * P::out_row;
      const bool counts = t < length_[p.side] && p.unit < units_;
      State next = state;
      gates(step, sums, p, result, next);
      const float y = counts ? next.h : 0;
      reinterpret_cast<Element*>(result)[p.unit] = Operand::narrow(y);
      state = {counts ? next.h : state.h, counts ? next.c : state.c};
      if (ends_before(step + 1, p)) state = {};
    });
    publish(step + 1);
  }

  FUSEDRNN_DEVICE void gates(int step, const Sums& sums, const Place& p, unsigned char* result, State& state) {
    const unsigned char* const row = shared_ + P::input_of(step) + p.column * P::ring_row;
    const auto* const pre = reinterpret_cast<const Element*>(row) + p.unit;
    auto* const saved = reinterpret_cast<Element*>(result + P::kept_at) + p.unit;
    const auto sum = [&](int gate) { return weights_.sum(sums, p, gate); };
    const auto input = [&](int gate) {
      if constexpr (concat) {
        return inputs_.weights.sum(inputs_.sums, p, gate) + inputs_.bias[p.own][gate];
      } else {
        return static_cast<float>(pre[gate * P::hidden]);
      }
    };
    const auto keep = [&](int block, Value gate) {
      if (f_.saved) saved[block * P::hidden] = Operand::narrow(gate.v);
    };
    if constexpr (P::cell == Cell::lstm) {
      LstmGates<Value> a{sum(0) + input(0), sum(1) + input(1), sum(2) + input(2), sum(3) + input(3)};
      Value c, h;
      lstm_forward<Value>(a, state.c, c, h);
      state = {h.v, c.v};
      keep(0, a.i), keep(1, a.f), keep(2, a.g), keep(3, a.o);
      if (f_.cells) reinterpret_cast<float*>(result + P::cells_at)[p.unit] = c.v;
    } else if constexpr (P::cell == Cell::gru) {
      GruGates<Value> a{input(2), sum(0) + input(0), sum(1) + input(1), sum(2) + b_hn_[p.own]};
      Value h;
      gru_forward<Value>(a, state.h, h);
      state.h = h.v;
      keep(0, a.n), keep(1, a.r), keep(2, a.z), keep(3, a.hn);
    } else {
      const Value a = sum(0) + input(0);
      state.h = s_.cell == Cell::rnn_relu ? rnn_forward<true>(a).v : rnn_forward<false>(a).v;
    }
  }

  // Of a step whose input has been there since the last barrier.
  FUSEDRNN_DEVICE void multiply_input(int step) {
    if constexpr (concat) inputs_.weights.multiply(arch::shared_address(shared_ + P::input_of(step)), inputs_.sums);
  }

  // What finish() left of this step, to memory. To be called for each step in turn.
  FUSEDRNN_DEVICE void store_results(int step) {
    const int t = this->t_of(step);
    const bool active = this->copies(t);
    const uint32_t from = this->own_column(P::results_of(step), P::out_row);
    Element* const y = this->next(y_, t);
    if (active || (this->own_row_ < this->B_ && !s_.row_offsets)) this->template store<1>(y, from);
    if (!f_.saved && !f_.cells) return;
    if constexpr (kept_blocks > 0) {
      Element* const saved = this->next(saved_, t);
      if (active) this->template store<kept_blocks>(saved, from + P::kept_at);
    }
    if constexpr (P::cell == Cell::lstm) {
      float* const cells = this->next(cells_, t);
      if (active) this->template store<1>(cells, from + P::cells_at);
    }
  }

  // The state in registers, for this step.
  FUSEDRNN_DEVICE void publish(int step) {
    this->each_place([&](const Place& p) {
      unsigned char* const row = shared_ + P::own_operand_of(step) + p.column * P::own_operand_row;
      const float h = state_[p.at].h;
      reinterpret_cast<Element*>(row)[p.unit] = Operand::for_product(Operand::narrow(h));
    });
  }

  // Begins to copy what the step adds to its products: a group of copies, which is empty after the last step. To be called
  // for each step in turn: a token is read one step before the row it names.
  FUSEDRNN_DEVICE void begin_input(int step) {
    if (step < T_) {
      const int t = this->t_of(step);
      const Element* const row = of_tokens() ? pre_.at + token_ * pre_.batch : this->next(pre_, t);
      constexpr int blocks = concat ? 1 : T::gates, width = concat ? P::inputs : P::hidden;
      const uint32_t to = this->own_column(P::input_of(step), P::ring_row);
      if (this->copies(t)) this->template begin_copy<blocks, width>(to, row, concat ? static_cast<int>(s_.I) : units_);
    }
    arch::commit_copies();
    find_token(step + 1);
  }

  FUSEDRNN_DEVICE bool of_tokens() const { return !plain && f_.tokens.base; }

  FUSEDRNN_DEVICE void find_token(int step) {
    if (!of_tokens() || step >= T_) return;
    const int t = this->t_of(step);
    const int64_t* const token = this->next(tokens_, t);
    if (this->copies(t)) token_ = static_cast<uint32_t>(*token);
  }

  const Forward<Element>& f_;
  Walk<const Element> pre_;
  Walk<const int64_t> tokens_;
  Walk<Element> y_, saved_;
  Walk<float> cells_;
  uint32_t token_ = 0;
  std::conditional_t<concat, InputProducts<P>, NoProducts> inputs_;
  int length_[T::sides];  // of the columns of this thread's places
  State state_[Base::places] = {};
  float b_hn_[Base::units] = {};
};

}  // namespace fusedrnn::cuda
