// The backward kernels that are compiled, as forward.cu has the forward ones.
#include "kernels.cuh"

namespace fusedrnn::cuda {

// hidden, warps, in_registers, ctas of a BackwardPlan.
template <Cell cell, class Kind, int... sizes>
constexpr auto kernel = kernel_of<BackwardPlan<cell, Kind, sizes...>>();
template <Cell cell, class Kind, int hidden, int warps, int ctas, int in_registers = 255>
constexpr auto of_cluster = kernel<cell, Kind, hidden, warps, in_registers, ctas>;
template <Cell cell, class Kind, int hidden, int ctas, int in_registers = 255>
constexpr auto of_grid = kernel<cell, Kind, hidden, 8, in_registers, ctas, grid_cluster>;

template <class Kind>
constexpr std::array kernels{
    kernel<Cell::lstm, Kind, 64, 4>,
    kernel<Cell::lstm, Kind, 128, 8>,
    kernel<Cell::gru, Kind, 64, 4>,
    kernel<Cell::gru, Kind, 128, 8>,
    kernel<Cell::gru, Kind, 192, 6, 124>,
    kernel<Cell::rnn_tanh, Kind, 64, 4>,
    kernel<Cell::rnn_tanh, Kind, 128, 8>,
    kernel<Cell::rnn_tanh, Kind, 256, 8>,
    of_cluster<Cell::lstm, Kind, 32, 8, 8>,
    of_cluster<Cell::lstm, Kind, 64, 8, 4>,
    of_cluster<Cell::lstm, Kind, 32, 8, 16>,
    of_cluster<Cell::lstm, Kind, 40, 8, 16, 128>,
    of_cluster<Cell::lstm, Kind, 48, 8, 16, 148>,
    of_cluster<Cell::gru, Kind, 32, 8, 8>,
    of_cluster<Cell::gru, Kind, 64, 8, 4>,
    of_cluster<Cell::gru, Kind, 32, 8, 16>,
    of_cluster<Cell::gru, Kind, 64, 8, 8, 172>,
    of_cluster<Cell::gru, Kind, 40, 8, 16, 156>,
    of_cluster<Cell::gru, Kind, 48, 8, 16, 152>,
    of_cluster<Cell::gru, Kind, 56, 8, 16, 168>,
    of_cluster<Cell::rnn_tanh, Kind, 64, 8, 8>,
    of_cluster<Cell::rnn_tanh, Kind, 64, 8, 16>,
    of_grid<Cell::lstm, Kind, 16, 64>,
    of_grid<Cell::lstm, Kind, 16, 80, 128>,
    of_grid<Cell::gru, Kind, 16, 64>,
    of_grid<Cell::gru, Kind, 16, 96, 132>,
    of_grid<Cell::gru, Kind, 16, 112, 132>,
    of_grid<Cell::rnn_tanh, Kind, 32, 64>,
};
template <>
constexpr std::array kernels<Tf32>{
    kernel<Cell::lstm, Tf32, 64, 4>,
    kernel<Cell::gru, Tf32, 64, 4>,
    kernel<Cell::gru, Tf32, 128, 8, 144>,
    kernel<Cell::rnn_tanh, Tf32, 64, 4>,
    kernel<Cell::rnn_tanh, Tf32, 128, 8>,
    of_cluster<Cell::lstm, Tf32, 32, 8, 8>,
    of_cluster<Cell::lstm, Tf32, 32, 8, 16, 160>,
    of_cluster<Cell::gru, Tf32, 32, 8, 8>,
    of_cluster<Cell::gru, Tf32, 32, 8, 16, 160>,
    of_cluster<Cell::rnn_tanh, Tf32, 64, 8, 8>,
    of_grid<Cell::lstm, Tf32, 16, 40, 128>,
    of_grid<Cell::gru, Tf32, 16, 48, 132>,
    of_grid<Cell::rnn_tanh, Tf32, 16, 64>,
};
template <int columns>
constexpr std::array kernels<Ieee<columns>>{
    kernel<Cell::lstm, Ieee<columns>, 64, 4>,
    kernel<Cell::lstm, Ieee<columns>, 128, 8, (columns == 1 ? 120 : 152)>,
    kernel<Cell::gru, Ieee<columns>, 64, 4>,
    kernel<Cell::gru, Ieee<columns>, 128, 8>,
    kernel<Cell::rnn_tanh, Ieee<columns>, 64, 4>,
    kernel<Cell::rnn_tanh, Ieee<columns>, 128, 4>,
    kernel<Cell::rnn_tanh, Ieee<columns>, 256, 8, (columns == 1 ? 160 : 164)>,
    of_cluster<Cell::lstm, Ieee<columns>, 32, 8, 8>,
    of_cluster<Cell::lstm, Ieee<columns>, 32, 8, 16, (columns == 1 ? 124 : 132)>,
    of_cluster<Cell::gru, Ieee<columns>, 32, 8, 8>,
    of_cluster<Cell::gru, Ieee<columns>, 32, 8, 16, (columns == 1 ? 192 : 152)>,
    of_cluster<Cell::rnn_tanh, Ieee<columns>, 64, 8, 8>,
    of_cluster<Cell::rnn_tanh, Ieee<columns>, 64, 8, 16, (columns == 1 ? 140 : 152)>,
};

FUSEDRNN_EXPORT_KERNELS(backward)

}  // namespace fusedrnn::cuda
