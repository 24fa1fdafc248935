// The backward kernels that are compiled, as forward.cu has the forward ones.
#include "backward.cuh"
#include "kernels.cuh"

namespace fusedrnn::cuda {

template <Cell cell, class Element, int... sizes>
constexpr Kernel<Backward<Element>> kernel =
    kernel_of<BackwardPlan<cell, Element, sizes...>>(backward_kernel<BackwardPlan<cell, Element, sizes...>, true>,
                                                     backward_kernel<BackwardPlan<cell, Element, sizes...>, false>);

template <class Element>
constexpr std::array kernels{
    kernel<Cell::lstm, Element, 64, 4>,      kernel<Cell::lstm, Element, 128, 8, 6>,
    kernel<Cell::gru, Element, 64, 4>,       kernel<Cell::gru, Element, 128, 8, 16>,
    kernel<Cell::gru, Element, 192, 12, 19>, kernel<Cell::rnn_tanh, Element, 64, 4>,
    kernel<Cell::rnn_tanh, Element, 128, 8>, kernel<Cell::rnn_tanh, Element, 256, 16>,

};
template <>
constexpr std::array kernels<float>{
    kernel<Cell::lstm, float, 64, 4, 16>, kernel<Cell::gru, float, 64, 4, 16>,   kernel<Cell::gru, float, 128, 8, 31>,
    kernel<Cell::rnn_tanh, float, 64, 4>, kernel<Cell::rnn_tanh, float, 128, 8>,
};

FUSEDRNN_EXPORT const char* fusedrnn_cuda_backward(int64_t element, const int64_t* words, int64_t how_many,
                                                   int64_t directions, int64_t columns, int64_t shared, void* stream) {
  return with_element(element, [&]<class Element>(Element) {
    return launch(kernels<Element>, words, how_many, directions, columns, shared, stream);
  });
}

FUSEDRNN_EXPORT int64_t fusedrnn_cuda_backward_hidden(int64_t element, int64_t cell, int64_t inputs, int64_t shared) {
  return with_element(element,
                      [&]<class Element>(Element) { return most_hidden(kernels<Element>, cell, inputs, shared); });
}

}  // namespace fusedrnn::cuda
