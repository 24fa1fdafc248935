// The numbers of the CUDA kernels: what operands of products are, and what gates are computed in.
#pragma once

#include <arch.cuh>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fusedrnn::cuda {

// How sigmoid and tanh are computed: within an absolute error of 5e-4 by the instruction, or of 2e-7 by exp2 and a
// reciprocal, which is enough for what is rounded to 11 bits; or within a few units of a float's last place.

struct ByInstruction {
  FUSEDRNN_DEVICE static float tanh(float x) { return arch::tanh_approx(x); }
  FUSEDRNN_DEVICE static float sigmoid(float x) { return fmaf(0.5f, tanh(0.5f * x), 0.5f); }
};

struct ByExponential {
  static constexpr float log2e = 1.44269504f;
  FUSEDRNN_DEVICE static float sigmoid(float x) { return arch::reciprocal_approx(1 + arch::exp2_approx(-log2e * x)); }
  FUSEDRNN_DEVICE static float tanh(float x) { return fmaf(2, sigmoid(2 * x), -1); }
};

struct ByLibrary {
  FUSEDRNN_DEVICE static float sigmoid(float x) { return arch::reciprocal_approx(1 + expf(-x)); }
  FUSEDRNN_DEVICE static float tanh(float x) { return tanhf(x); }
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
  friend FUSEDRNN_DEVICE Number positive(Number a) { return a.v <= 0 ? 0 : 1; }
};

// Kinds of numbers in products, where their elements are floats: rounded to TF32; or as they are, `columns` rows of the
// batch at a time, which tensor cores do not multiply.
struct Tf32 {};
template <int columns>
struct Ieee {};

// What operands of products are in memory and how products read them.
template <class Kind>
struct Operand;

template <>
struct Operand<__nv_bfloat16> {
  using Element = __nv_bfloat16;
  using Math = ByInstruction;
  FUSEDRNN_DEVICE static Element narrow(float x) { return __float2bfloat16(x); }
  FUSEDRNN_DEVICE static Element for_product(Element x) { return x; }
  FUSEDRNN_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    arch::mma_bf16(d, a, b);
  }
};

template <>
struct Operand<__half> {
  using Element = __half;
  using Math = ByExponential;
  FUSEDRNN_DEVICE static Element narrow(float x) { return __float2half(x); }
  FUSEDRNN_DEVICE static Element for_product(Element x) { return x; }
  FUSEDRNN_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    arch::mma_f16(d, a, b);
  }
};

template <>
struct Operand<Tf32> {
  using Element = float;
  using Math = ByExponential;
  FUSEDRNN_DEVICE static float narrow(float x) { return x; }
  // The nearest of its numbers, where the instruction would cut bits off.
  FUSEDRNN_DEVICE static float for_product(float x) { return arch::nearest_tf32(x); }
  FUSEDRNN_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    arch::mma_tf32(d, a, b);
  }
};

template <int columns>
struct Operand<Ieee<columns>> {
  using Element = float;
  using Math = ByLibrary;
  FUSEDRNN_DEVICE static float narrow(float x) { return x; }
  FUSEDRNN_DEVICE static float for_product(float x) { return x; }
};

}  // namespace fusedrnn::cuda
