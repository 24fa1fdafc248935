// Layers of every cell, number and option.
#include "layer.h"

namespace {

using namespace layers;

void all() {
  using Gru = ForwardPlan<Cell::gru, __nv_bfloat16, 32, 1>;
  using GruBack = BackwardPlan<Cell::gru, __nv_bfloat16, 32, 1>;
  using Rnn = ForwardPlan<Cell::rnn_tanh, __nv_bfloat16, 64, 2>;
  using RnnBack = BackwardPlan<Cell::rnn_tanh, __nv_bfloat16, 64, 2>;
  layer<Lstm, LstmBack>("lstm", 7, 8, 32, kBf16, {});
  layer<LstmWithX, LstmBack>("lstm with x", 9, 11, 24, kBf16, {.directions = 2, .lengths = true});
  layer<ForwardPlan<Cell::gru, float, 32, 1, 32, 32>, BackwardPlan<Cell::gru, float, 32, 1>>("gru with x in tf32", 5, 8,
                                                                                             32, kTf32, {});
  layer<Lstm, LstmBack>("lstm of 24 units", 6, 11, 24, kBf16, {.lengths = true, .resets = true});
  layer<Lstm, LstmBack>("lstm packed both ways", 6, 3, 24, kBf16, {.directions = 2, .packed = true});
  layer<Lstm, LstmBack>("lstm of tokens", 6, 3, 32, kBf16, {.reverse = true, .tokens = true, .saves = false});
  layer<ForwardPlan<Cell::lstm, __nv_bfloat16, 32, 2, 1>, BackwardPlan<Cell::lstm, __nv_bfloat16, 32, 1, 3>>(
      "lstm, weights in both memories", 5, 8, 32, kBf16, {});
  layer<ForwardPlan<Cell::lstm, __half, 32, 2>, BackwardPlan<Cell::lstm, __half, 32, 2>>("lstm in half", 5, 8, 32, kF16,
                                                                                         {.dy = false});
  layer<ForwardPlan<Cell::lstm, float, 32, 2>, BackwardPlan<Cell::lstm, float, 32, 2>>("lstm in tf32", 5, 8, 32, kTf32,
                                                                                       {});
  layer<Gru, GruBack>("gru", 7, 8, 32, kBf16, {});
  layer<Gru, GruBack>("gru of tokens both ways", 6, 9, 24, kBf16,
                      {.directions = 2, .lengths = true, .resets = true, .tokens = true});
  layer<ForwardPlan<Cell::gru, float, 32, 1>, BackwardPlan<Cell::gru, float, 32, 1>>("gru in tf32", 5, 8, 32, kTf32,
                                                                                     {.packed = true});
  layer<Rnn, RnnBack>("rnn", 7, 8, 64, kBf16, {});
  layer<ForwardPlan<Cell::rnn_relu, __half, 32, 1>, BackwardPlan<Cell::rnn_relu, __half, 32, 1>>(
      "relu rnn in half", 7, 2, 8, kF16, {.directions = 2, .resets = true});
  layer<Rnn, RnnBack>("rnn without steps", 0, 8, 64, kBf16, {});
}

}  // namespace

int main(int count, char** arguments) { return cases::main_of(count, arguments, all); }
