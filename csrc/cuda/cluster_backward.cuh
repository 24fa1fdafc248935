// The reverse time loop of a layer whose recurrent weights a cluster of CTAs holds, as cluster_forward.cuh has the forward
// one. Each CTA has the gates of its units, and sums what reaches all units from them.
//
//   step:  sums        over all CTAs, of what each has pushed of what reaches this CTA's units
//          dgates      of a thread's own units; a barrier
//          products    W_hh^T dgates over the gates of the CTA's units; what they give to each unit goes to its CTA
//          meanwhile   results of the last step go to memory, copies of what forward kept begin for a later one
#pragma once

#include "backward.cuh"
#include "cluster.cuh"

namespace fusedrnn::cuda {

template <class P, bool plain>
class ClusterBackwardLoop : BackwardLoop<P, plain> {
  using Base = BackwardLoop<P, plain>;
  using Base::shared_, Base::T_, Base::weights_;
  using typename Base::Sums;
  static_assert(P::ctas > 1);

 public:
  FUSEDRNN_DEVICE ClusterBackwardLoop(const Backward<typename P::Element>& f, unsigned char* shared, uint32_t rank)
      : Base(f, shared, rank), slots_(shared, rank) {}

  FUSEDRNN_DEVICE void run() {
    this->start();
    for (int step = 0; step < T_; ++step) {
      this->begin_input(step + P::stages - 1);
      if (step > 0) this->store_results(step - 1);
      this->store_before(step);
      if (step > 0) slots_.wait(step);
      this->finish(step, [&](const Place& p) { return sum(step, p); });
      arch::wait_for_copies_but<Base::under_way>();
      __syncthreads();
      Sums sums;
      weights_.multiply(arch::shared_address(shared_ + P::operand_of(step + 1)), sums);
      slots_.push(step + 1, sums);
    }
    if (T_ > 0) {
      this->store_results(T_ - 1);
      slots_.wait(T_);
    }
    this->end([&](const Place& p) { return sum(T_, p); });
  }

 private:
  FUSEDRNN_DEVICE float sum(int step, const Place& p) const { return step > 0 ? slots_.sum(step, p) : 0; }

  Slots<P> slots_;
};

}  // namespace fusedrnn::cuda
