// The numbers of the CUDA kernels: what operands of products are, and what gates are computed in.
#pragma once

#include <arch.cuh>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fusedrnn::cuda {

// How sigmoid and tanh are computed: within an absolute error of 5e-4 by the instruction, or of 2e-7 by exp2 and a
// reciprocal, which is enough for what is rounded to 11 bits.

struct ByInstruction {
  FUSEDRNN_DEVICE static float tanh(float x) { return arch::tanh_approx(x); }
  FUSEDRNN_DEVICE static float sigmoid(float x) { return fmaf(0.5f, tanh(0.5f * x), 0.5f); }
};

struct ByExponential {
  static constexpr float log2e = 1.44269504f;
  FUSEDRNN_DEVICE static float sigmoid(float x) { return arch::reciprocal_approx(1 + arch::exp2_approx(-log2e * x)); }
  FUSEDRNN_DEVICE static float tanh(float x) { return fmaf(2, sigmoid(2 * x), -1); }
};

// A float whose sigmoid and tanh, as ../cells.h calls them, are those of Math.
template <class Math>
struct Number {
  float v;

  FUSEDRNN_DEVICE Number() {}
  FUSEDRNN_DEVICE Number(float v) : v(v) {}

  friend FUSEDRNN_DEVICE Number operator+(Number a, Number b) { return a.v + b.v; }
  friend FUSEDRNN_DEVICE Number operator-(Number a, Number b) { return a.v - b.v; }
  friend FUSEDRNN_DEVICE Number operator*(Number a, Number b) { return a.v * b.v; }
  friend FUSEDRNN_DEVICE Number fma(Number a, Number b, Number c) { return fmaf(a.v, b.v, c.v); }
  friend FUSEDRNN_DEVICE Number sigmoid(Number a) { return Math::sigmoid(a.v); }
  friend FUSEDRNN_DEVICE Number tanh(Number a) { return Math::tanh(a.v); }
  friend FUSEDRNN_DEVICE Number relu(Number a) { return a.v < 0 ? 0 : a.v; }
  friend FUSEDRNN_DEVICE Number positive(Number a) { return a.v > 0 ? 1 : 0; }
};

// What operands of products are in memory, and how they lie in 32-bit words, as fragments hold them.
template <class Element>
struct Operand;

template <>
struct Operand<__nv_bfloat16> {
  using Math = ByInstruction;
  FUSEDRNN_DEVICE static __nv_bfloat16 narrow(float x) { return __float2bfloat16(x); }
  FUSEDRNN_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    arch::mma_bf16(d, a, b);
  }
};

template <>
struct Operand<__half> {
  using Math = ByExponential;
  FUSEDRNN_DEVICE static __half narrow(float x) { return __float2half(x); }
  FUSEDRNN_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    arch::mma_f16(d, a, b);
  }
};

// Multiplied as TF32.
template <>
struct Operand<float> {
  using Math = ByExponential;
  FUSEDRNN_DEVICE static float narrow(float x) { return x; }
  FUSEDRNN_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    arch::mma_tf32(d, a, b);
  }
};

// As a product reads it: TF32 takes the nearest of its numbers, where the instruction would cut bits off.
template <class Element>
FUSEDRNN_DEVICE Element for_product(Element x) {
  if constexpr (sizeof(Element) == 4) {
    return arch::nearest_tf32(x);
  } else {
    return x;
  }
}

template <class Element>
constexpr int elements_of_word = 4 / sizeof(Element);

// As many elements as fill a register of a fragment, the next one `apart` after each.
template <class Element>
FUSEDRNN_DEVICE uint32_t word_of(const Element* first, int apart) {
  Element elements[elements_of_word<Element>];
#pragma unroll
  for (int i = 0; i < elements_of_word<Element>; ++i) elements[i] = for_product(first[i * apart]);
  uint32_t word;
  memcpy(&word, elements, 4);
  return word;
}

}  // namespace fusedrnn::cuda
