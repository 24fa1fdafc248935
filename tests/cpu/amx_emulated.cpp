// The kernels of AMX in the place of those of AVX512-BF16, their instructions emulated. Other numbers than bfloat16 take
// the portable kernels.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __AMX_BF16__ 1
#define FUSEDRNN_AMX_INSTRUCTIONS "../../tests/cpu/tiles.h"
#include "../../csrc/cpu/variant_amx.cpp"

namespace fusedrnn {
template <>
const Kernels<bfloat16>* avx512_bf16_kernels<bfloat16>() {
  return amx_kernels<bfloat16>();
}
template <>
const Kernels<float>* avx512_kernels<float>() {
  return portable_kernels<float>();
}
template <>
const Kernels<double>* avx512_kernels<double>() {
  return portable_kernels<double>();
}
}  // namespace fusedrnn
