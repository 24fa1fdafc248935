// 256-bit vectors; 16 registers: 3 rows of 4 accumulators, 3 weights in flight and 1 broadcast.
#if defined(__AVX2__)
#define FUSEDRNN_VARIANT avx2
#define FUSEDRNN_VECTOR_BYTES 32
#define FUSEDRNN_TILE_ROWS 3
#include "variant.h"

namespace fusedrnn {
template <>
const Kernels<float>* avx2_kernels<float>() {
  return &avx2::kernels<float>;
}
template <>
const Kernels<double>* avx2_kernels<double>() {
  return &avx2::kernels<double>;
}
}  // namespace fusedrnn
#else
#include "layer.h"

namespace fusedrnn {
template <>
const Kernels<float>* avx2_kernels<float>() {
  return nullptr;
}
template <>
const Kernels<double>* avx2_kernels<double>() {
  return nullptr;
}
}  // namespace fusedrnn
#endif
