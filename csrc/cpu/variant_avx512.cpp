// 512-bit vectors; 32 registers: 6 rows of 4 accumulators, 4 weights and 1 broadcast.
#if defined(__AVX512F__)
#define FUSEDRNN_VARIANT avx512
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_TILE_ROWS 6
#include "variant.h"

namespace fusedrnn {
template <>
const Kernels<float>* avx512_kernels<float>() {
  return &avx512::kernels<float>;
}
template <>
const Kernels<double>* avx512_kernels<double>() {
  return &avx512::kernels<double>;
}
}  // namespace fusedrnn
#else
#include "layer.h"

namespace fusedrnn {
template <>
const Kernels<float>* avx512_kernels<float>() {
  return nullptr;
}
template <>
const Kernels<double>* avx512_kernels<double>() {
  return nullptr;
}
}  // namespace fusedrnn
#endif
