// 16-byte vectors: SSE2 on x86-64, NEON on arm64, whatever the compiler makes of them elsewhere.
#define FUSEDRNN_VARIANT portable
#define FUSEDRNN_VECTOR_BYTES 16
#define FUSEDRNN_TILE_ROWS 3
#include "variant.h"

namespace fusedrnn {
template <>
const Kernels<float>* portable_kernels<float>() {
  return &portable::kernels<float>;
}
template <>
const Kernels<double>* portable_kernels<double>() {
  return &portable::kernels<double>;
}
}  // namespace fusedrnn
