// The reverse time loop of a layer whose recurrent weights a grid of CTAs holds. Each CTA has what reaches its own units
// from the gates of all, and needs those gates.
//
//   step:  products    W_hh^T dgates over the gates of all units, which the step before has pushed
//          a barrier   which publishes what warps that share rows have summed, this step's input and the last one's results
//          dgates      of a thread's own units; to all CTAs
//          meanwhile   results of the last step go to memory, copies of what forward kept begin for a later one
#pragma once

#include "backward.cuh"
#include "packets.cuh"

namespace fusedrnn::cuda {

template <class P, bool plain>
class GridBackwardLoop : BackwardLoop<P, plain> {
  using Base = BackwardLoop<P, plain>;
  using Base::shared_, Base::T_, Base::weights_;
  using typename Base::Sums, typename Base::Weights;
  static_assert(P::of_grid && P::parts > 1);

 public:
  FUSEDRNN_DEVICE GridBackwardLoop(const Backward<typename P::Element>& f, unsigned char* shared, uint32_t rank)
      : Base(f, shared, rank), packets_(f, shared, rank, this->tile(f.first_tile)) {}

  FUSEDRNN_DEVICE void run() {
    this->start();
    Sums sums = {};
    const auto sum = [&](const Place& p) { return weights_.sum(sums, p, 0); };
    for (int step = 0; step < T_; ++step) {
      if (step > 0) multiply(step, sums);
      this->finish(step, sum);
      packets_.push(step);
      if (step > 0) this->store_results(step - 1);
      this->store_before(step);
      this->begin_input(step + P::stages - 1);
    }
    if (T_ > 0) {
      multiply(T_, sums);
      this->store_results(T_ - 1);
    }
    this->end(sum);
  }

 private:
  FUSEDRNN_DEVICE void multiply(int step, Sums& sums) {
    packets_.wait(step - 1);
    typename Weights::Chains chains = {};
    weights_.template add<0, P::depth>(arch::shared_address(shared_ + P::operand_of(step - 1)), chains);
    typename Weights::Whole whole;
    Weights::total(chains, whole);
    Weights::share(shared_, whole);
    arch::wait_for_copies_but<Base::under_way>();
    __syncthreads();
    Weights::collect(shared_, sums);
  }

  Packets<P> packets_;
};

}  // namespace fusedrnn::cuda
