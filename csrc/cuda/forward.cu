// The forward kernels that are compiled: few sizes, each serving all H up to its own.
#include "forward.cuh"

namespace fusedrnn::cuda {

#define FUSEDRNN_FORWARD(...) \
  template __global__ void forward_kernel<ForwardPlan<__VA_ARGS__>>(const Forward<ForwardPlan<__VA_ARGS__>::Element>)

#define FUSEDRNN_FORWARD_16(Element)                 \
  FUSEDRNN_FORWARD(Cell::lstm, Element, 64, 8);      \
  FUSEDRNN_FORWARD(Cell::lstm, Element, 128, 8, 4);  \
  FUSEDRNN_FORWARD(Cell::gru, Element, 64, 4);       \
  FUSEDRNN_FORWARD(Cell::gru, Element, 128, 8);      \
  FUSEDRNN_FORWARD(Cell::rnn_tanh, Element, 64, 4);  \
  FUSEDRNN_FORWARD(Cell::rnn_tanh, Element, 128, 8); \
  FUSEDRNN_FORWARD(Cell::rnn_relu, Element, 64, 4);  \
  FUSEDRNN_FORWARD(Cell::rnn_relu, Element, 128, 8)

FUSEDRNN_FORWARD_16(__nv_bfloat16);
FUSEDRNN_FORWARD_16(__half);
FUSEDRNN_FORWARD(Cell::lstm, float, 64, 8);
FUSEDRNN_FORWARD(Cell::gru, float, 64, 4);
FUSEDRNN_FORWARD(Cell::gru, float, 128, 8, 10);
FUSEDRNN_FORWARD(Cell::rnn_tanh, float, 64, 4);
FUSEDRNN_FORWARD(Cell::rnn_tanh, float, 128, 8);
FUSEDRNN_FORWARD(Cell::rnn_relu, float, 64, 4);
FUSEDRNN_FORWARD(Cell::rnn_relu, float, 128, 8);

}  // namespace fusedrnn::cuda
