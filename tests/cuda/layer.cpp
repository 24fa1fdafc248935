// Layers of every cell, number and option.
#include "cases.h"
#include "layer.h"

namespace {

using namespace layers;

void all() {
  using Gru = ForwardPlan<Cell::gru, __nv_bfloat16, 32, 1>;
  using GruBack = BackwardPlan<Cell::gru, __nv_bfloat16, 32, 1>;
  using Rnn = ForwardPlan<Cell::rnn_tanh, __nv_bfloat16, 64, 2>;
  using RnnBack = BackwardPlan<Cell::rnn_tanh, __nv_bfloat16, 64, 2>;
  layer<Lstm, LstmBack>("lstm", 7, 8, 32, kBf16, plain);
  layer<LstmWithX, LstmBack>("lstm with x", 9, 11, 24, kBf16, with<Options{.directions = 2, .lengths = true}>);
  layer<ForwardPlan<Cell::gru, Tf32, 32, 1, 255, 32>, BackwardPlan<Cell::gru, Tf32, 32, 1>>("gru with x in tf32", 5, 8,
                                                                                            32, kTf32, plain);
  layer<Lstm, LstmBack>("lstm of 24 units", 6, 11, 24, kBf16, with<Options{.lengths = true, .resets = true}>);
  layer<Lstm, LstmBack>("lstm packed both ways", 6, 3, 24, kBf16, with<Options{.directions = 2, .packed = true}>);
  layer<Lstm, LstmBack>("lstm of tokens", 6, 3, 32, kBf16,
                        with<Options{.reverse = true, .tokens = true, .saves = false}>);
  layer<LstmInBoth, LstmInBothBack>("lstm in both", 5, 8, 32, kBf16, plain);
  layer<ForwardPlan<Cell::lstm, __half, 32, 2>, BackwardPlan<Cell::lstm, __half, 32, 2>>("lstm in half", 5, 8, 32, kF16,
                                                                                         with<Options{.dy = false}>);
  layer<ForwardPlan<Cell::lstm, Tf32, 32, 2>, BackwardPlan<Cell::lstm, Tf32, 32, 2>>("lstm in tf32", 5, 8, 32, kTf32,
                                                                                     plain);
  layer<Gru, GruBack>("gru", 7, 8, 32, kBf16, plain);
  layer<Gru, GruBack>("gru of tokens both ways", 6, 9, 24, kBf16,
                      with<Options{.directions = 2, .lengths = true, .resets = true, .tokens = true}>);
  layer<ForwardPlan<Cell::gru, Tf32, 32, 1>, BackwardPlan<Cell::gru, Tf32, 32, 1>>("gru in tf32", 5, 8, 32, kTf32,
                                                                                   with<Options{.packed = true}>);
  layer<Rnn, RnnBack>("rnn", 7, 8, 64, kBf16, plain);
  layer<ForwardPlan<Cell::rnn_relu, __half, 32, 1>, BackwardPlan<Cell::rnn_relu, __half, 32, 1>>(
      "relu rnn in half", 7, 2, 8, kF16, with<Options{.directions = 2, .resets = true}>);
  layer<ForwardPlan<Cell::lstm, Ieee<1>, 32, 2>, BackwardPlan<Cell::lstm, Ieee<1>, 32, 2>>("lstm in ieee", 6, 3, 32,
                                                                                           kIeee, plain);
  layer<ForwardPlan<Cell::lstm, Ieee<2>, 32, 2, 20, 32>, BackwardPlan<Cell::lstm, Ieee<2>, 32, 2, 24>>(
      "lstm with x in ieee", 6, 5, 28, kIeee, with<Options{.directions = 2, .resets = true}>);
  layer<ForwardPlan<Cell::gru, Ieee<1>, 64, 4, 40>, BackwardPlan<Cell::gru, Ieee<1>, 64, 4>>(
      "gru in ieee", 4, 2, 36, kIeee, with<Options{.packed = true, .resets = true}>);
  layer<ForwardPlan<Cell::gru, Ieee<2>, 32, 2>, BackwardPlan<Cell::gru, Ieee<2>, 32, 2>>(
      "gru of tokens in ieee", 6, 3, 32, kIeee, with<Options{.reverse = true, .lengths = true, .tokens = true}>);
  layer<ForwardPlan<Cell::rnn_tanh, Ieee<2>, 64, 2, 36>, BackwardPlan<Cell::rnn_tanh, Ieee<2>, 64, 2, 32>>(
      "rnn in ieee", 7, 5, 64, kIeee, with<Options{.lengths = true}>);
  layer<ForwardPlan<Cell::rnn_relu, Ieee<1>, 64, 4>, BackwardPlan<Cell::rnn_relu, Ieee<1>, 64, 4>>(
      "relu rnn in ieee", 5, 3, 40, kIeee, with<Options{.directions = 2}>);
  layer<Rnn, RnnBack>("rnn without steps", 0, 8, 64, kBf16, plain);
}

}  // namespace

int main(int count, char** arguments) { return cases::main_of(count, arguments, all); }
