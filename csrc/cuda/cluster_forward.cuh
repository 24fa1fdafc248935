// The forward time loop of a layer whose recurrent weights a cluster of CTAs holds, or a grid: each has some units, with
// all gates.
//
//   step:  sums = W_hh h    first of its own slice of h and those that come first, then of the others
//          a barrier        which publishes this step's input, the results of the last one, and, where several warps share
//                           rows of W_hh, what each of them has summed
//          gates, c, h      of a thread's own units; the new slice of h to all CTAs
//          meanwhile        the results of the last step go to memory, and copies begin for a later one
//
// Nothing but h passes between CTAs, and a CTA goes on as soon as it has all of it.
#pragma once

#include "cluster.cuh"
#include "forward.cuh"
#include "packets.cuh"

namespace fusedrnn::cuda {

template <class P, bool plain>
class ClusterForwardLoop : ForwardLoop<P, plain> {
  using Base = ForwardLoop<P, plain>;
  using Base::shared_, Base::T_, Base::weights_;
  using typename Base::Sums, typename Base::Weights;
  static_assert(P::ctas > 1 && P::inputs == 0);

 public:
  FUSEDRNN_DEVICE ClusterForwardLoop(const Forward<typename P::Element>& f, unsigned char* shared, uint32_t rank)
      : Base(f, shared, rank), exchange_(f, shared, rank, this->tile(f.first_tile)) {}

  FUSEDRNN_DEVICE void run() {
    this->start();
    if (T_ > 0) exchange_.push(0);
    for (int step = 0; step < T_; ++step) {
      Sums sums;
      multiply(step, sums);
      this->finish(step, sums);
      if (step + 1 < T_) exchange_.push(step + 1);
      if (step > 0) this->store_results(step - 1);
      this->begin_input(step + P::stages - 1);
    }
    __syncthreads();
    this->end();
  }

 private:
  FUSEDRNN_DEVICE void multiply(int step, Sums& sums) {
    const uint32_t operand = arch::shared_address(shared_ + P::operand_of(step));
    typename Weights::Chains chains = {};
    add_wave<0>(step, operand, chains);
    if constexpr (P::waves > 1) add_wave<1>(step, operand, chains);
    typename Weights::Whole whole;
    Weights::total(chains, whole);
    if constexpr (P::parts > 1) Weights::share(shared_, whole);
    arch::wait_for_copies_but<Base::under_way>();
    __syncthreads();
    if constexpr (P::parts > 1) {
      Weights::collect(shared_, sums);
    } else {
      memcpy(sums, whole, sizeof sums);
    }
  }

  template <int wave>
  FUSEDRNN_DEVICE void add_wave(int step, uint32_t operand, typename Weights::Chains& chains) {
    static_assert(P::waves <= 2);
    exchange_.wait(step, wave);
    weights_.template add<wave * P::depth / P::waves, (wave + 1) * P::depth / P::waves>(operand, chains);
  }

  std::conditional_t<P::of_grid, Packets<P>, Exchange<P>> exchange_;
};

}  // namespace fusedrnn::cuda
