// The forward kernels that are compiled: few sizes, each serving all H up to its own, those of a cell in their order.
#include "forward.cuh"
#include "kernels.cuh"

namespace fusedrnn::cuda {

template <Cell cell, class Element, int... sizes>
constexpr Kernel<Forward<Element>> kernel =
    kernel_of<ForwardPlan<cell, Element, sizes...>>(forward_kernel<ForwardPlan<cell, Element, sizes...>, true>,
                                                    forward_kernel<ForwardPlan<cell, Element, sizes...>, false>);

template <class Element>
constexpr std::array kernels{
    kernel<Cell::lstm, Element, 64, 8>,
    kernel<Cell::lstm, Element, 128, 8, 6>,
    kernel<Cell::gru, Element, 64, 4>,
    kernel<Cell::gru, Element, 128, 8>,
    kernel<Cell::gru, Element, 192, 12, 5>,
    kernel<Cell::rnn_tanh, Element, 64, 4>,
    kernel<Cell::rnn_tanh, Element, 128, 8>,
    kernel<Cell::rnn_tanh, Element, 256, 16, 12>,
    kernel<Cell::lstm, Element, 64, 8, 64, 32>,
    kernel<Cell::lstm, Element, 128, 8, 4, 32>,
    kernel<Cell::gru, Element, 64, 4, 64, 32>,
    kernel<Cell::gru, Element, 128, 8, 64, 32>,
    kernel<Cell::rnn_tanh, Element, 64, 4, 64, 32>,
    kernel<Cell::rnn_tanh, Element, 128, 8, 64, 32>,
};
template <>
constexpr std::array kernels<float>{
    kernel<Cell::lstm, float, 64, 8>,
    kernel<Cell::lstm, float, 128, 8, 10>,
    kernel<Cell::gru, float, 64, 4>,
    kernel<Cell::gru, float, 128, 8, 10>,
    kernel<Cell::rnn_tanh, float, 64, 4>,
    kernel<Cell::rnn_tanh, float, 128, 8>,
    kernel<Cell::rnn_tanh, float, 256, 16, 12>,
    kernel<Cell::lstm, float, 64, 8, 64, 32>,
    kernel<Cell::gru, float, 64, 4, 64, 32>,
    kernel<Cell::rnn_tanh, float, 64, 4, 64, 32>,
    kernel<Cell::rnn_tanh, float, 128, 8, 64, 32>,
};

// Null, or what went wrong.
FUSEDRNN_EXPORT const char* fusedrnn_cuda_forward(int64_t element, const int64_t* words, int64_t how_many,
                                                  int64_t directions, int64_t columns, int64_t shared, void* stream) {
  return with_element(element, [&]<class Element>(Element) {
    return launch(kernels<Element>, words, how_many, directions, columns, shared, stream);
  });
}

// The largest H that a kernel serves, where a CTA may have `shared` bytes of shared memory; inputs: those of x that are
// multiplied in the kernel, 0: none. 0: no kernel serves such a layer.
FUSEDRNN_EXPORT int64_t fusedrnn_cuda_forward_hidden(int64_t element, int64_t cell, int64_t inputs, int64_t shared) {
  return with_element(element,
                      [&]<class Element>(Element) { return most_hidden(kernels<Element>, cell, inputs, shared); });
}

// Why no kernel runs on the device that is in use, or null.
FUSEDRNN_EXPORT const char* fusedrnn_cuda_missing() {
  cudaFuncAttributes attributes;
  const void* const kernel = reinterpret_cast<const void*>(kernels<float>[0].plain);
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Whether it was built for the CPU, by way of host/.
FUSEDRNN_EXPORT int64_t fusedrnn_cuda_on_host() {
#ifdef __CUDACC__
  return 0;
#else
  return 1;
#endif
}

}  // namespace fusedrnn::cuda
