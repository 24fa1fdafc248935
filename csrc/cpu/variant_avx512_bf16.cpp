// 512-bit vectors and their products of bfloat16, for bfloat16; other numbers take the kernels of AVX-512.
#if defined(__AVX512BF16__)
#define FUSEDRNN_VARIANT avx512_bf16
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_TILE_ROWS 6
#include "variant.h"

namespace fusedrnn {
template <>
const Kernels<bfloat16>* avx512_bf16_kernels<bfloat16>() {
  return &avx512_bf16::kernels<bfloat16>;
}
}  // namespace fusedrnn
#else
#include "layer.h"

namespace fusedrnn {
template <>
const Kernels<bfloat16>* avx512_bf16_kernels<bfloat16>() {
  return nullptr;
}
}  // namespace fusedrnn
#endif
