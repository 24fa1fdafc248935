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
  const void* zeros;           // H of float: the state after a reset
  const Element* saved;        // [D, R, 4, H]
  const float* cells;          // LSTM: [D, R, H]
  Element* dgates;             // [D, R, blocks*H]: of the GRU r z n and n r, which W_hn sees
  Element* before;             // [D, R, H]: the state each row started from
  Element *dh0, *dc0;          // [D, B, H]
  float* db;                   // [CTA, blocks*H]: sums of dgates over the CTA's rows
};

template <class P>
class BackwardLoop : Loop<P> {
  using Base = Loop<P>;
  using Base::direction_, Base::H_, Base::own_length_, Base::own_row_, Base::s_, Base::shared_, Base::weights_;
  using typename Base::Element, typename Base::T, typename Base::Value;

 public:
  FUSEDRNN_DEVICE BackwardLoop(const Backward<Element>& f, unsigned char* shared) : Base(f.shape, shared), f_(f) {
    const Element* const w = f.w_hh + direction_ * P::gates * H_ * H_;
    weights_.load(shared, [&](int unit, int, int, int k) {
      const int gate = k / P::hidden, of = k % P::hidden;
      const int64_t row = static_cast<int64_t>(gate) * H_ + of;
      return unit < H_ && of < H_ ? w[row * H_ + unit] : Operand<Element>::narrow(0);
    });
  }

  // Steps are counted in the order of processing: the last position is step 0.
  FUSEDRNN_DEVICE void run() {
    start();
    float sums[P::groups][T::tiles][4];
    for (int64_t step = 0; step < s_.T; ++step) {
      weights_.multiply(arch::shared_address(shared_ + operand_of(step)), sums);
      begin_input(step + P::stages - 1);
      if (step > 0) store_results(step - 1);
      store_before(step);
      finish(step, sums);
      arch::wait_for_copies_but<P::stages - 2>();
      __syncthreads();
    }
    if (s_.T > 0) store_results(s_.T - 1);
    weights_.multiply(arch::shared_address(shared_ + operand_of(s_.T)), sums);
    this->each([&](const Place& p) {
      const State& state = state_[p.group][p.of][p.side];
      f_.dh0[this->state_at(p)] = Operand<Element>::narrow(T::sum(sums[p.group], 0, p.of, p.side) + state.dh);
      if (P::cell == Cell::lstm) f_.dc0[this->state_at(p)] = Operand<Element>::narrow(state.dc);
    });
    store_bias_sums();
  }

 private:
  struct State {
    float dh, dc;  // what reaches h past the products; what reaches c
  };

  // Where in shared memory a step finds dgates of the step before it and its input, and leaves its results.
  FUSEDRNN_DEVICE static int operand_of(int64_t step) { return step % 2 * P::operand_buffer; }
  FUSEDRNN_DEVICE static int input_of(int64_t step) { return P::ring_at + step % P::stages * P::ring_stage; }
  FUSEDRNN_DEVICE static int results_of(int64_t step) { return P::out_at + step % 2 * P::out_buffer; }

  FUSEDRNN_DEVICE int64_t t_of(int64_t step) const { return step_at(s_, s_.T - 1 - step); }

  FUSEDRNN_DEVICE void start() {
    for (int step = 0; step < P::stages - 1; ++step) begin_input(step);
    for (int k = threadIdx.x * 16; k < 2 * P::operand_buffer; k += P::threads * 16)
      *reinterpret_cast<uint4*>(shared_ + k) = {0, 0, 0, 0};
    this->each([&](const Place& p) {
      State& state = state_[p.group][p.of][p.side];
      if (f_.dh_n) state.dh = static_cast<float>(f_.dh_n[this->state_at(p)]);
      if (P::cell == Cell::lstm && f_.dc_n) state.dc = static_cast<float>(f_.dc_n[this->state_at(p)]);
    });
    arch::wait_for_copies_but<P::stages - 2>();
    __syncthreads();
  }

  FUSEDRNN_DEVICE void finish(int64_t step, const float (&sums)[P::groups][T::tiles][4]) {
    const int64_t t = t_of(step);
    this->each([&](const Place& p) {
      State& state = state_[p.group][p.of][p.side];
      const unsigned char* const input = shared_ + input_of(step) + p.column * P::ring_row;
      state.dh += T::sum(sums[p.group], 0, p.of, p.side);
      float d[P::blocks] = {};
      const bool active = t < length_of(s_, p.b), ends = active && is_reset(s_, t, p.b);
      if (active) gates(input, p.unit, state, d);
      if (ends) state = {};
      auto* const result = reinterpret_cast<Element*>(shared_ + results_of(step) + p.column * P::out_row) + p.unit;
      auto* const operand =
          reinterpret_cast<Element*>(shared_ + operand_of(step + 1) + p.column * P::operand_row) + p.unit;
#pragma unroll
      for (int k = 0; k < P::blocks; ++k) {
        result[k * H_] = Operand<Element>::narrow(d[k]);
        sums_[p.group][p.of][k] += d[k];
      }
#pragma unroll
      for (int gate = 0; gate < P::gates; ++gate) {
        const float seen = P::cell == Cell::gru && gate == 2 ? d[P::blocks - 1] : d[gate];
        operand[gate * P::hidden] = for_product(Operand<Element>::narrow(ends ? 0 : seen));
      }
    });
  }

  // dgates of a unit. state.dh: all that reaches h but dy, before; what passes the products, after.
  FUSEDRNN_DEVICE void gates(const unsigned char* input, int unit, State& state, float (&d)[P::blocks]) {
    const auto of = [&](int at, int k) {
      return static_cast<float>(reinterpret_cast<const Element*>(input + at)[k * H_ + unit]);
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
      d[0] = rnn_backward<P::cell == Cell::rnn_relu, Value>(of(P::saved_at, 0), dh).v;
      state.dh = 0;
    }
  }

  FUSEDRNN_DEVICE void store_results(int64_t step) {
    const int64_t t = t_of(step), b = own_row_;
    if (b >= s_.B || (t >= own_length_ && s_.row_offsets)) return;
    const int64_t row = direction_ * f_.R + row_number(s_, t, b);
    this->store(f_.dgates + row * P::blocks * H_, this->own_column(results_of(step), P::out_row),
                P::blocks * H_ * P::size);
  }

  // From the ring, while the step's input is there.
  FUSEDRNN_DEVICE void store_before(int64_t step) {
    const int64_t t = t_of(step), b = own_row_;
    if (b >= s_.B || (t >= own_length_ && s_.row_offsets)) return;
    Element* const to = f_.before + (direction_ * f_.R + row_number(s_, t, b)) * H_;
    if (t < own_length_) {
      this->store(to, this->own_column(input_of(step) + P::before_at, P::ring_row), H_ * P::size);
    } else {
      this->each_part(H_ * P::size, [&](int k) {
        *reinterpret_cast<uint4*>(reinterpret_cast<unsigned char*>(to) + k) = {0, 0, 0, 0};
      });
    }
  }

  FUSEDRNN_DEVICE void begin_input(int64_t step) {
    const int64_t t = t_of(step), b = own_row_;
    if (step < s_.T && t < own_length_) {
      const uint32_t to = this->own_column(input_of(step), P::ring_row);
      const int64_t row = direction_ * f_.R + row_number(s_, t, b), state = (direction_ * s_.B + b) * H_;
      const int64_t before = step_before(s_, t);
      const bool reset = is_reset(s_, t, b), first = is_first(s_, t, b);
      const auto of = [&](const Rows<const Element>& rows, int64_t at) {
        return row_at(s_, rows, at, b) + direction_ * H_;
      };
      const void* const h = reset ? f_.zeros : first ? f_.h0 + state : of(f_.y, before);
      if (f_.dy.base) this->begin_copy(to, of(f_.dy, t), H_ * P::size);
      this->begin_copy(to + P::before_at, h, H_ * P::size);
      if (is_rnn(P::cell)) {
        this->begin_copy(to + P::saved_at, of(f_.y, t), H_ * P::size);
      } else {
        this->begin_copy(to + P::saved_at, f_.saved + row * 4 * H_, 4 * H_ * P::size);
      }
      if (P::cell == Cell::lstm) {
        const void* const c = reset   ? f_.zeros
                              : first ? f_.c0 + state
                                      : f_.cells + (direction_ * f_.R + row_number(s_, before, b)) * H_;
        this->begin_copy(to + P::c_at, f_.cells + row * H_, 4 * H_);
        this->begin_copy(to + P::c_before_at, c, 4 * H_);
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
        sums[(p.column / 2 * P::blocks + k) * P::hidden + p.unit] = sums_[p.group][p.of][k];
    });
    __syncthreads();
    for (int k = threadIdx.x; k < P::blocks * H_; k += P::threads) {
      const int at = k / H_ * P::hidden + k % H_;
      float sum = 0;
      for (int pair = 0; pair < kColumns / 2; ++pair) sum += sums[pair * P::blocks * P::hidden + at];
      f_.db[static_cast<int64_t>(blockIdx.x) * P::blocks * H_ + k] = sum;
    }
  }

  const Backward<Element>& f_;
  State state_[P::groups][T::of_thread][2] = {};
  float sums_[P::groups][T::of_thread][P::blocks] = {};
};

// A grid of (batch tiles) x D CTAs with P::shared bytes of dynamic shared memory.
template <class P>
__global__ void __launch_bounds__(P::threads, 1) backward_kernel(const Backward<typename P::Element> f) {
  FUSEDRNN_DYNAMIC_SHARED(unsigned char, shared);
  BackwardLoop<P>(f, shared).run();
}

}  // namespace fusedrnn::cuda
