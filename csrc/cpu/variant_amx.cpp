// 512-bit vectors and the tile registers of AMX, for bfloat16; other numbers take the kernels of AVX-512.
#if defined(__AMX_BF16__)
#define FUSEDRNN_VARIANT amx
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_TILE_ROWS 6
#include "variant.h"

namespace fusedrnn {
template <>
const Kernels<bfloat16>* amx_kernels<bfloat16>() {
  return &amx::kernels<bfloat16>;
}
}  // namespace fusedrnn
#else
#include "layer.h"

namespace fusedrnn {
template <>
const Kernels<bfloat16>* amx_kernels<bfloat16>() {
  return nullptr;
}
}  // namespace fusedrnn
#endif
