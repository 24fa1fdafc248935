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
  Rows<const int64_t> tokens;  // or null
  const Element* w_hh;         // [D, G*H, H]
  const Element* b_hn;         // GRU: [D, H], or null
  const Element *h0, *c0;      // [D, B, H]
  Rows<Element> y;             // [row][D*H]
  Element *h_n, *c_n;          // [D, B, H]
  Element* saved;              // [D, R, 4, H], or null
  float* cells;                // [D, R, H], or null
};

template <class P>
class ForwardLoop : Loop<P> {
  using Base = Loop<P>;
  using Base::direction_, Base::H_, Base::own_length_, Base::own_row_, Base::s_, Base::shared_, Base::weights_;
  using typename Base::Element, typename Base::T, typename Base::Value;

 public:
  FUSEDRNN_DEVICE ForwardLoop(const Forward<Element>& f, unsigned char* shared) : Base(f.shape, shared), f_(f) {
    const Element* const w = f.w_hh + direction_ * T::gates * H_ * H_;
    weights_.load(shared, [&](int unit, int tile, int half, int k) {
      const int64_t row = static_cast<int64_t>(T::gate(tile, half)) * H_ + unit;
      return unit < H_ && k < H_ ? w[row * H_ + k] : Operand<Element>::narrow(0);
    });
  }

  FUSEDRNN_DEVICE void run() {
    start();
    for (int64_t position = 0; position < s_.T; ++position) {
      float sums[P::groups][T::tiles][4];
      weights_.multiply(arch::shared_address(shared_ + state_of(position)), sums);
      begin_input(position + P::stages - 1);
      if (position > 0) store_results(position - 1);
      finish(position, sums);
      arch::wait_for_copies_but<P::stages - 2>();
      __syncthreads();
    }
    if (s_.T > 0) store_results(s_.T - 1);
    this->each([&](const Place& p) {
      const State& state = state_[p.group][p.of][p.side];
      f_.h_n[this->state_at(p)] = Operand<Element>::narrow(state.h);
      if (P::cell == Cell::lstm) f_.c_n[this->state_at(p)] = Operand<Element>::narrow(state.c);
    });
  }

 private:
  struct State {
    float h, c;
  };

  // Where in shared memory the step at `position` finds the state before it and its input, and leaves its results.
  FUSEDRNN_DEVICE static int state_of(int64_t position) { return position % 2 * P::operand_buffer; }
  FUSEDRNN_DEVICE static int input_of(int64_t position) { return P::ring_at + position % P::stages * P::ring_stage; }
  FUSEDRNN_DEVICE static int results_of(int64_t position) { return P::out_at + position % 2 * P::out_buffer; }

  FUSEDRNN_DEVICE void start() {
    find_token(0);
    for (int position = 0; position < P::stages - 1; ++position) begin_input(position);
    this->each([&](const Place& p) {
      State& state = state_[p.group][p.of][p.side];
      if (P::cell == Cell::gru && f_.b_hn) b_hn_[p.group][p.of] = static_cast<float>(f_.b_hn[direction_ * H_ + p.unit]);
      if (s_.T > 0 && ends_before(0, p.b)) return;
      state.h = static_cast<float>(f_.h0[this->state_at(p)]);
      if (P::cell == Cell::lstm) state.c = static_cast<float>(f_.c0[this->state_at(p)]);
    });
    publish(0);
    arch::wait_for_copies_but<P::stages - 2>();
    __syncthreads();
  }

  // Whether row b's state is set to zero before the step at `position`.
  FUSEDRNN_DEVICE bool ends_before(int64_t position, int64_t b) const {
    const int64_t t = step_at(s_, position);
    return is_reset(s_, t, b) && t < length_of(s_, b);
  }

  FUSEDRNN_DEVICE void finish(int64_t position, const float (&sums)[P::groups][T::tiles][4]) {
    const int64_t t = step_at(s_, position);
    this->each([&](const Place& p) {
      State& state = state_[p.group][p.of][p.side];
      unsigned char* const result = shared_ + results_of(position) + p.column * P::out_row;
      Element* const y = reinterpret_cast<Element*>(result) + p.unit;
      if (t < length_of(s_, p.b)) {
        gates(position, sums[p.group], p, result, state);
        *y = Operand<Element>::narrow(state.h);
      } else {
        *y = Operand<Element>::narrow(0);
      }
      if (position + 1 < s_.T && ends_before(position + 1, p.b)) state = {};
    });
    publish(position + 1);
  }

  FUSEDRNN_DEVICE void gates(int64_t position, const float (&sums)[T::tiles][4], const Place& p, unsigned char* result,
                             State& state) {
    const unsigned char* const row = shared_ + input_of(position) + p.column * P::ring_row;
    const auto* const pre = reinterpret_cast<const Element*>(row) + p.unit;
    auto* const saved = reinterpret_cast<Element*>(result + P::kept_at) + p.unit;
    const auto sum = [&](int gate) { return T::sum(sums, gate, p.of, p.side); };
    const auto input = [&](int gate) { return static_cast<float>(pre[gate * H_]); };
    const auto keep = [&](int block, Value gate) {
      if (f_.saved) saved[block * H_] = Operand<Element>::narrow(gate.v);
    };
    if constexpr (P::cell == Cell::lstm) {
      LstmGates<Value> a{sum(0) + input(0), sum(1) + input(1), sum(2) + input(2), sum(3) + input(3)};
      Value c, h;
      lstm_forward<Value>(a, state.c, c, h);
      state = {h.v, c.v};
      keep(0, a.i), keep(1, a.f), keep(2, a.g), keep(3, a.o);
      if (f_.cells) reinterpret_cast<float*>(result + P::cells_at)[p.unit] = c.v;
    } else if constexpr (P::cell == Cell::gru) {
      GruGates<Value> a{input(2), sum(0) + input(0), sum(1) + input(1), sum(2) + b_hn_[p.group][p.of]};
      Value h;
      gru_forward<Value>(a, state.h, h);
      state.h = h.v;
      keep(0, a.n), keep(1, a.r), keep(2, a.z), keep(3, a.hn);
    } else {
      state.h = rnn_forward<P::cell == Cell::rnn_relu, Value>(sum(0) + input(0)).v;
    }
  }

  // What finish() left of the step at `position`, to memory.
  FUSEDRNN_DEVICE void store_results(int64_t position) {
    const int64_t t = step_at(s_, position), b = own_row_;
    const bool active = t < own_length_;
    if (b >= s_.B || (!active && s_.row_offsets)) return;
    const uint32_t from = this->own_column(results_of(position), P::out_row);
    this->store(row_at(s_, f_.y, t, b) + direction_ * H_, from, H_ * P::size);
    if (!active) return;
    const int64_t row = direction_ * f_.R + row_number(s_, t, b);
    if (P::kept && f_.saved) this->store(f_.saved + 4 * row * H_, from + P::kept_at, 4 * H_ * P::size);
    if (P::cells && f_.cells) this->store(f_.cells + row * H_, from + P::cells_at, 4 * H_);
  }

  // The state in registers, for the step at `position`.
  FUSEDRNN_DEVICE void publish(int64_t position) {
    this->each_place([&](const Place& p) {
      unsigned char* const row = shared_ + state_of(position) + p.column * P::operand_row;
      const float h = state_[p.group][p.of][p.side].h;
      reinterpret_cast<Element*>(row)[p.unit] = for_product(Operand<Element>::narrow(h));
    });
  }

  // Begins to copy what the step at `position` adds to its products: a group of copies, which is empty after the last step.
  // To be called for each position in turn: a token is read one step before the row it names.
  FUSEDRNN_DEVICE void begin_input(int64_t position) {
    const int64_t t = step_at(s_, position);
    if (position < s_.T && t < own_length_) {
      const Element* const row = f_.tokens.base ? f_.pre.base + token_ * f_.pre.batch : row_at(s_, f_.pre, t, own_row_);
      this->begin_copy(this->own_column(input_of(position), P::ring_row), row + direction_ * T::gates * H_,
                       T::gates * H_ * P::size);
    }
    arch::commit_copies();
    find_token(position + 1);
  }

  FUSEDRNN_DEVICE void find_token(int64_t position) {
    const int64_t t = step_at(s_, position);
    if (f_.tokens.base && position < s_.T && t < own_length_) token_ = *row_at(s_, f_.tokens, t, own_row_);
  }

  const Forward<Element>& f_;
  int64_t token_ = 0;
  State state_[P::groups][T::of_thread][2] = {};
  float b_hn_[P::groups][T::of_thread] = {};
};

// A grid of (batch tiles) x D CTAs with P::shared bytes of dynamic shared memory.
template <class P>
__global__ void __launch_bounds__(P::threads, 1) forward_kernel(const Forward<typename P::Element> f) {
  FUSEDRNN_DYNAMIC_SHARED(unsigned char, shared);
  ForwardLoop<P>(f, shared).run();
}

}  // namespace fusedrnn::cuda
