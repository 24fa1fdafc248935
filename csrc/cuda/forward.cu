// The forward kernels that are compiled: few sizes, each serving all H up to its own, those of a cell in their order.
#include "kernels.cuh"

namespace fusedrnn::cuda {

// hidden, warps, in_registers, inputs, ctas of a ForwardPlan.
template <Cell cell, class Kind, int... sizes>
constexpr auto kernel = kernel_of<ForwardPlan<cell, Kind, sizes...>>();
template <Cell cell, class Kind, int hidden, int warps, int ctas, int in_registers = 255>
constexpr auto of_cluster = kernel<cell, Kind, hidden, warps, in_registers, 0, ctas>;
template <Cell cell, class Kind, int hidden, int ctas, int in_registers = 255>
constexpr auto of_grid = kernel<cell, Kind, hidden, 8, in_registers, 0, ctas, grid_cluster>;

template <class Kind>
constexpr std::array kernels{
    kernel<Cell::lstm, Kind, 64, 8>,
    kernel<Cell::lstm, Kind, 128, 8>,
    kernel<Cell::gru, Kind, 64, 4>,
    kernel<Cell::gru, Kind, 128, 8>,
    kernel<Cell::gru, Kind, 192, 6, 140>,
    kernel<Cell::rnn_tanh, Kind, 64, 4>,
    kernel<Cell::rnn_tanh, Kind, 128, 8>,
    kernel<Cell::rnn_tanh, Kind, 256, 8>,
    kernel<Cell::lstm, Kind, 64, 8, 255, 32>,
    kernel<Cell::lstm, Kind, 128, 8, 255, 32>,
    kernel<Cell::gru, Kind, 64, 4, 255, 32>,
    kernel<Cell::gru, Kind, 128, 8, 255, 32>,
    kernel<Cell::rnn_tanh, Kind, 64, 4, 255, 32>,
    kernel<Cell::rnn_tanh, Kind, 128, 8, 255, 32>,
    of_cluster<Cell::lstm, Kind, 32, 8, 8>,
    of_cluster<Cell::lstm, Kind, 64, 8, 4>,
    of_cluster<Cell::lstm, Kind, 32, 8, 16>,
    of_cluster<Cell::lstm, Kind, 48, 6, 16, 156>,
    of_cluster<Cell::gru, Kind, 32, 8, 8>,
    of_cluster<Cell::gru, Kind, 64, 8, 4>,
    of_cluster<Cell::gru, Kind, 32, 8, 16>,
    of_cluster<Cell::gru, Kind, 64, 8, 8, 172>,
    of_cluster<Cell::gru, Kind, 48, 12, 16, 104>,
    of_cluster<Cell::gru, Kind, 64, 8, 14, 168>,
    of_cluster<Cell::rnn_tanh, Kind, 64, 8, 8>,
    of_cluster<Cell::rnn_tanh, Kind, 64, 8, 16>,
    of_grid<Cell::lstm, Kind, 16, 64>,
    of_grid<Cell::lstm, Kind, 16, 80>,
    of_grid<Cell::lstm, Kind, 16, 128, 160>,
    of_grid<Cell::gru, Kind, 16, 64>,
    of_grid<Cell::gru, Kind, 16, 96>,
    of_grid<Cell::gru, Kind, 16, 128, 168>,
    of_grid<Cell::rnn_tanh, Kind, 32, 64>,
};
template <>
constexpr std::array kernels<Tf32>{
    kernel<Cell::lstm, Tf32, 64, 8>,
    kernel<Cell::lstm, Tf32, 128, 8, 168>,
    kernel<Cell::gru, Tf32, 64, 4>,
    kernel<Cell::gru, Tf32, 128, 8, 184>,
    kernel<Cell::rnn_tanh, Tf32, 64, 4>,
    kernel<Cell::rnn_tanh, Tf32, 128, 8>,
    kernel<Cell::rnn_tanh, Tf32, 256, 8, 176>,
    kernel<Cell::lstm, Tf32, 64, 8, 255, 32>,
    kernel<Cell::gru, Tf32, 64, 4, 255, 32>,
    kernel<Cell::rnn_tanh, Tf32, 64, 4, 255, 32>,
    kernel<Cell::rnn_tanh, Tf32, 128, 8, 255, 32>,
    of_cluster<Cell::lstm, Tf32, 32, 8, 8>,
    of_cluster<Cell::lstm, Tf32, 32, 8, 16, 160>,
    of_cluster<Cell::gru, Tf32, 32, 8, 8>,
    of_cluster<Cell::gru, Tf32, 32, 8, 16, 188>,
    of_cluster<Cell::rnn_tanh, Tf32, 64, 8, 8>,
    of_cluster<Cell::rnn_tanh, Tf32, 64, 8, 16, 140>,
    of_grid<Cell::lstm, Tf32, 16, 40>,
    of_grid<Cell::lstm, Tf32, 16, 64, 148>,
    of_grid<Cell::gru, Tf32, 16, 48>,
    of_grid<Cell::gru, Tf32, 16, 64, 168>,
};
template <int columns>
constexpr std::array kernels<Ieee<columns>>{
    kernel<Cell::lstm, Ieee<columns>, 64, 4>,
    kernel<Cell::lstm, Ieee<columns>, 128, 8, 160>,
    kernel<Cell::gru, Ieee<columns>, 64, 4>,
    kernel<Cell::gru, Ieee<columns>, 128, 8>,
    kernel<Cell::rnn_tanh, Ieee<columns>, 64, 4>,
    kernel<Cell::rnn_tanh, Ieee<columns>, 128, 4>,
    kernel<Cell::rnn_tanh, Ieee<columns>, 256, 8, (columns == 1 ? 148 : 164)>,
    kernel<Cell::lstm, Ieee<columns>, 64, 4, 255, 32>,
    kernel<Cell::gru, Ieee<columns>, 64, 4, 255, 32>,
    kernel<Cell::rnn_tanh, Ieee<columns>, 64, 4, 255, 32>,
    kernel<Cell::rnn_tanh, Ieee<columns>, 128, 4, 255, 32>,
    of_cluster<Cell::lstm, Ieee<columns>, 32, 8, 8>,
    of_cluster<Cell::lstm, Ieee<columns>, 32, 8, 16, (columns == 1 ? 128 : 152)>,
    of_cluster<Cell::gru, Ieee<columns>, 32, 8, 8>,
    of_cluster<Cell::gru, Ieee<columns>, 32, 8, 16>,
    of_cluster<Cell::rnn_tanh, Ieee<columns>, 64, 8, 8>,
    of_cluster<Cell::rnn_tanh, Ieee<columns>, 64, 8, 16, (columns == 1 ? 152 : 172)>,
};

FUSEDRNN_EXPORT_KERNELS(forward)

// Why no kernel runs on the device that is in use, or null.
FUSEDRNN_EXPORT const char* fusedrnn_cuda_missing() {
  cudaFuncAttributes attributes;
  const void* const kernel = reinterpret_cast<const void*>(kernels<Tf32>[0].plain);
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The CTAs that a cluster may have on the device that is in use, with as much shared memory as kernels take; 1: it has no
// clusters.
FUSEDRNN_EXPORT int64_t fusedrnn_cuda_ctas() {
  int64_t most = 1;
  for (const auto& kernel : kernels<__nv_bfloat16>)
    if (kernel.cluster > most && clusters_at_once(kernel) > 0) most = kernel.cluster;
  return most;
}

FUSEDRNN_EXPORT const char* fusedrnn_cuda_sources() { return FUSEDRNN_SOURCES; }
FUSEDRNN_EXPORT int64_t fusedrnn_cuda_interface() { return interface_number; }

// Whether it was built for the CPU, by way of host/.
FUSEDRNN_EXPORT int64_t fusedrnn_cuda_on_host() {
#ifdef __CUDACC__
  return 0;
#else
  return 1;
#endif
}

}  // namespace fusedrnn::cuda
