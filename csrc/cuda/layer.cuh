// The kernel of a plan: forward or backward, over the batch tiles and directions of a layer.
#pragma once

#include "cluster_backward.cuh"
#include "cluster_forward.cuh"
#include "grid_backward.cuh"

namespace fusedrnn::cuda {

// Kernels for GPUs that have no clusters are compiled as well, to nothing.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool has_clusters = false;
#else
constexpr bool has_clusters = true;
#endif

template <class P>
using ArgumentsOf = std::conditional_t<P::backward, Backward<typename P::Element>, Forward<typename P::Element>>;

template <class P, bool plain>
using ForwardOf = std::conditional_t<(P::ctas > 1), ClusterForwardLoop<P, plain>, ForwardLoop<P, plain>>;
template <class P, bool plain>
using BackwardOf =
    std::conditional_t<P::of_grid, GridBackwardLoop<P, plain>,
                       std::conditional_t<(P::ctas > 1), ClusterBackwardLoop<P, plain>, BackwardLoop<P, plain>>>;
template <class P, bool plain>
using LoopOf = std::conditional_t<P::backward, BackwardOf<P, plain>, ForwardOf<P, plain>>;

// P::ctas CTAs, with P::shared bytes of dynamic shared memory, for each batch tile and direction: as a cluster, or in
// clusters of P::cluster, all of which have to run at once.
template <class P, bool plain>
__global__ void __launch_bounds__(P::threads, 1) layer_kernel(const ArgumentsOf<P> f) {
  FUSEDRNN_DYNAMIC_SHARED(unsigned char, shared);
  if constexpr (has_clusters || P::ctas == 1) LoopOf<P, plain>(f, shared, rank_of<P>()).run();
}

}  // namespace fusedrnn::cuda
