// Layers whose recurrent weights a cluster holds, or a grid.
#include "cases.h"
#include "layer.h"

namespace {

using namespace layers;
using Bf16 = __nv_bfloat16;

template <Cell cell, class Kind, int hidden, int warps, int ctas, int in_registers = 255>
void by(const char* name, int64_t T, int64_t B, int64_t H, double tolerance, auto options) {
  layer<ForwardPlan<cell, Kind, hidden, warps, in_registers, 0, ctas>,
        BackwardPlan<cell, Kind, hidden, warps, in_registers, ctas>>(name, T, B, H, tolerance, options);
}

template <Cell cell, class Kind, int hidden, int warps, int ctas, int cluster, int in_registers = 255>
void of_grid(const char* name, int64_t T, int64_t B, int64_t H, double tolerance, auto options) {
  layer<ForwardPlan<cell, Kind, hidden, warps, in_registers, 0, ctas, cluster>,
        BackwardPlan<cell, Kind, hidden, warps, in_registers, ctas, cluster>>(name, T, B, H, tolerance, options);
}

void all() {
  by<Cell::rnn_tanh, Bf16, 32, 2, 2>("rnn by 2", 7, 8, 64, kBf16, plain);
  by<Cell::rnn_tanh, __half, 32, 2, 16>("rnn by 16", 3, 8, 392, kF16, with<Options{.reverse = true, .resets = true}>);
  by<Cell::lstm, Bf16, 32, 4, 2>("lstm by 2", 7, 8, 64, kBf16, plain);
  by<Cell::lstm, Bf16, 32, 8, 4>("lstm by 4 in parts", 6, 9, 104, kBf16,
                                 with<Options{.directions = 2, .packed = true}>);
  by<Cell::lstm, Bf16, 32, 4, 4, 20>("lstm by 4 in both", 3, 8, 128, kBf16, plain);
  by<Cell::lstm, Tf32, 16, 2, 8>("lstm by 8 in tf32", 4, 3, 100, kTf32, with<Options{.lengths = true}>);
  by<Cell::gru, Bf16, 32, 4, 4>("gru by 4 in parts", 6, 8, 128, kBf16, plain);
  by<Cell::gru, Tf32, 32, 8, 4>("gru by 4 in four parts", 5, 8, 128, kTf32, with<Options{.tokens = true}>);
  by<Cell::gru, Bf16, 16, 1, 4>("gru by 4", 0, 8, 64, kBf16, plain);
  layer<ForwardPlan<Cell::gru, Bf16, 48, 3, 255, 0, 8>, BackwardPlan<Cell::gru, Bf16, 48, 8, 64, 8>>(
      "gru by 8 with idle warps", 3, 8, 376, kBf16, with<Options{.lengths = true}>);
  // Weights of an odd number of products in registers, of warps that share rows.
  by<Cell::gru, Tf32, 32, 8, 8, 64>("gru by 8 in tf32", 2, 3, 252, kTf32, plain);
  by<Cell::lstm, Ieee<1>, 16, 1, 4>("lstm by 4 in ieee", 6, 3, 64, kIeee, plain);
  by<Cell::lstm, Ieee<2>, 32, 8, 8, 40>("lstm by 8 in ieee", 3, 3, 220, kIeee,
                                        with<Options{.directions = 2, .resets = true}>);
  by<Cell::gru, Ieee<1>, 32, 4, 4>("gru by 4 in ieee", 5, 2, 128, kIeee, with<Options{.packed = true}>);
  by<Cell::rnn_tanh, Ieee<2>, 64, 1, 2, 80>("rnn by 2 in ieee", 6, 5, 104, kIeee,
                                            with<Options{.reverse = true, .lengths = true}>);
  of_grid<Cell::lstm, Bf16, 16, 4, 4, 2>("lstm of a grid", 7, 8, 64, kBf16, plain);
  of_grid<Cell::lstm, Bf16, 16, 8, 8, 4, 20>("lstm of a grid in both", 4, 9, 104, kBf16,
                                             with<Options{.directions = 2, .packed = true}>);
  of_grid<Cell::gru, __half, 16, 8, 16, 4>("gru of a grid", 3, 8, 248, kF16,
                                           with<Options{.reverse = true, .resets = true}>);
  of_grid<Cell::gru, Tf32, 16, 4, 4, 1>("gru of a grid in tf32", 5, 3, 60, kTf32, with<Options{.tokens = true}>);
  of_grid<Cell::rnn_tanh, Bf16, 32, 8, 8, 4>("rnn of a grid", 3, 8, 256, kBf16, with<Options{.lengths = true}>);
  of_grid<Cell::rnn_tanh, Bf16, 32, 4, 4, 2>("rnn of a grid", 1, 8, 128, kBf16, with<Options{.dy = false}>);
  of_grid<Cell::rnn_tanh, Bf16, 16, 2, 4, 1>("rnn of a grid of CTAs", 24, 3, 64, kBf16, plain);
  of_grid<Cell::gru, Bf16, 16, 4, 8, 2>("gru of a grid", 0, 8, 128, kBf16, plain);
}

}  // namespace

int main(int count, char** arguments) { return cases::main_of(count, arguments, all); }
