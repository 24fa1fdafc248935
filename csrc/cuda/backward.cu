// The backward kernels that are compiled: few sizes, each serving all H up to its own.
#include "backward.cuh"

namespace fusedrnn::cuda {

#define FUSEDRNN_BACKWARD(...)                                         \
  template __global__ void backward_kernel<BackwardPlan<__VA_ARGS__>>( \
      const Backward<BackwardPlan<__VA_ARGS__>::Element>)

#define FUSEDRNN_BACKWARD_16(Element)                 \
  FUSEDRNN_BACKWARD(Cell::lstm, Element, 64, 4);      \
  FUSEDRNN_BACKWARD(Cell::gru, Element, 64, 4);       \
  FUSEDRNN_BACKWARD(Cell::gru, Element, 128, 8, 16);  \
  FUSEDRNN_BACKWARD(Cell::rnn_tanh, Element, 64, 4);  \
  FUSEDRNN_BACKWARD(Cell::rnn_tanh, Element, 128, 8); \
  FUSEDRNN_BACKWARD(Cell::rnn_relu, Element, 64, 4);  \
  FUSEDRNN_BACKWARD(Cell::rnn_relu, Element, 128, 8)

FUSEDRNN_BACKWARD_16(__nv_bfloat16);
FUSEDRNN_BACKWARD_16(__half);
FUSEDRNN_BACKWARD(Cell::lstm, float, 64, 4, 16);
FUSEDRNN_BACKWARD(Cell::gru, float, 64, 4, 16);
FUSEDRNN_BACKWARD(Cell::rnn_tanh, float, 64, 4);
FUSEDRNN_BACKWARD(Cell::rnn_tanh, float, 128, 8);
FUSEDRNN_BACKWARD(Cell::rnn_relu, float, 64, 4);
FUSEDRNN_BACKWARD(Cell::rnn_relu, float, 128, 8);

}  // namespace fusedrnn::cuda
