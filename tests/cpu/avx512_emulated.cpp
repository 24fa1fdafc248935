// The AVX-512 source in the place of the portable kernels. The compiler cuts its vectors down to those it has; a
// multiply-add is one of the C library for each lane.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
template <class V>
__attribute__((noinline)) V fma_of_lanes(V a, V b, V c) {
  for (int k = 0; k < int(sizeof a / sizeof a[0]); ++k) a[k] = __builtin_fma(a[k], b[k], c[k]);
  return a;
}
template <class V>
V load_lanes(unsigned mask, const void* from) {
  V v{};
  for (int k = 0; k < int(sizeof v / sizeof v[0]); ++k) {
    if (mask >> k & 1) v[k] = static_cast<const decltype(+v[0])*>(from)[k];
  }
  return v;
}
template <class V>
void store_lanes(void* to, unsigned mask, V v) {
  for (int k = 0; k < int(sizeof v / sizeof v[0]); ++k) {
    if (mask >> k & 1) static_cast<decltype(+v[0])*>(to)[k] = v[k];
  }
}
// 14 bits of the reciprocal
template <class V>
V estimate_of_lanes(V v) {
  for (int k = 0; k < int(sizeof v / sizeof v[0]); ++k) {
    v[k] = __builtin_bit_cast(float, __builtin_bit_cast(unsigned, 1 / v[k]) & ~0x1ffu);
  }
  return v;
}
#define __AVX512F__ 1
#define _mm512_maskz_loadu_ps load_lanes<VectorF>
#define _mm512_maskz_loadu_pd load_lanes<VectorD>
#define _mm512_mask_storeu_ps store_lanes
#define _mm512_mask_storeu_pd store_lanes
#define _mm512_rcp14_ps estimate_of_lanes
#define _mm512_fmadd_ps fma_of_lanes
#define _mm512_fmadd_pd fma_of_lanes
#include "../../csrc/cpu/variant_avx512.cpp"

namespace fusedrnn {
template <>
const Kernels<float>* portable_kernels<float>() {
  return avx512_kernels<float>();
}
template <>
const Kernels<double>* portable_kernels<double>() {
  return avx512_kernels<double>();
}
}  // namespace fusedrnn
