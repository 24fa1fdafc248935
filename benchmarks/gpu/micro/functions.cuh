// tanh and sigmoid: cycles of a chain of them, rate of an SM, and error against double precision.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>

#include "measure.cuh"

namespace micro {

struct TanhApprox {
  static constexpr const char* name = "tanh.approx.f32";
  static __device__ float of(float x) { return arch::tanh_approx(x); }
};

struct SigmoidApprox {
  static constexpr const char* name = "sigmoid by tanh.approx.f32";
  static __device__ float of(float x) { return fmaf(arch::tanh_approx(0.5f * x), 0.5f, 0.5f); }
};

constexpr float kLog2E = 1.4426950408889634f;

struct TanhExp2 {
  static constexpr const char* name = "tanh by ex2 and rcp";
  static __device__ float of(float x) {
    return fmaf(-2.0f, arch::reciprocal_approx(1.0f + arch::exp2_approx(2 * kLog2E * x)), 1.0f);
  }
};

struct SigmoidExp2 {
  static constexpr const char* name = "sigmoid by ex2 and rcp";
  static __device__ float of(float x) { return arch::reciprocal_approx(1.0f + arch::exp2_approx(-kLog2E * x)); }
};

struct TanhLibrary {
  static constexpr const char* name = "tanhf";
  static __device__ float of(float x) { return tanhf(x); }
};

template <class F>
__global__ void function_latency_kernel(Report* report, int reps, float x) {
  Stopwatch watch;
  watch.start();
#pragma unroll 16
  for (int i = 0; i < reps; ++i) x = F::of(x);
  watch.stop(report);
  if (!(fabsf(x) < 2.0f)) atomicAdd(&report->wrong, 1u);
}

template <class F>
__global__ void function_rate_kernel(Report* report, int reps, float first) {
  constexpr int chains = 8;
  float x[chains];
  for (int c = 0; c < chains; ++c) x[c] = first + 0.01f * c + 0.001f * threadIdx.x;
  __syncthreads();
  Stopwatch watch;
  watch.start();
  for (int i = 0; i < reps; ++i) {
#pragma unroll
    for (int c = 0; c < chains; ++c) x[c] = F::of(x[c]);
  }
  __syncthreads();
  watch.stop(report);
  for (int c = 0; c < chains; ++c)
    if (!(fabsf(x[c]) < 2.0f)) atomicAdd(&report->wrong, 1u);
}

template <class F>
__global__ void function_values_kernel(Report*, const float* x, float* y, int count) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) y[i] = F::of(x[i]);
}

// [-12, 12] evenly, and magnitudes from 2^-20 to 1 evenly in the exponent.
inline std::vector<float> arguments() {
  std::vector<float> x;
  constexpr int even = 1 << 20, small = 1 << 16;
  for (int i = 0; i <= even; ++i) x.push_back(-12.0f + 24.0f * i / even);
  for (int i = 0; i < small; ++i) x.push_back(std::exp2(-20.0f * i / small) * (i % 2 ? 1 : -1));
  return x;
}

inline double true_value(const char* name, double x) {
  return std::strncmp(name, "sigmoid", 7) == 0 ? 1 / (1 + std::exp(-x)) : std::tanh(x);
}

inline void errors(const char* name, const std::vector<float>& x, const std::vector<float>& y) {
  double absolute = 0, relative = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = true_value(name, x[i]), error = std::fabs(y[i] - want);
    if (!(error < 1)) throw std::runtime_error(std::string(name) + " is not itself at " + std::to_string(x[i]));
    absolute = std::max(absolute, error);
    if (want != 0) relative = std::max(relative, error / std::fabs(want));
  }
  const At at = At()("function", name);
  fact("largest absolute error", at, absolute, "");
  fact("largest relative error", at, relative, "");
}

template <class F>
void function() {
  const At at = At()("function", F::name);
  measured("function latency", at,
           [](int reps) { return run({.threads = 32}, function_latency_kernel<F>, reps, 0.7f); });
  for (int threads : {128, 256, 1024}) {
    measured("function rate", At(at)("threads", threads),
             [=](int reps) { return run({.threads = threads}, function_rate_kernel<F>, reps, 0.3f); },
             {8.0 * threads, "values"});
  }
  const auto x = arguments();
  DeviceArray<float> in(x.size()), out(x.size());
  in.write(x);
  run({.ctas = 264}, function_values_kernel<F>, in, out, static_cast<int>(x.size()));
  errors(F::name, x, out.read());
}

// Two values at a time, in 16 bits each.

template <class T>
struct Pair;

template <>
struct Pair<__half2> {
  static constexpr const char* name = "tanh.approx.f16x2";
  static __device__ uint32_t of(uint32_t x) { return arch::tanh_approx_f16x2(x); }
  static __device__ __half2 make(float x) { return __half2half2(__float2half(x)); }
};

#if FUSEDRNN_SM >= 90
template <>
struct Pair<__nv_bfloat162> {
  static constexpr const char* name = "tanh.approx.bf16x2";
  static __device__ uint32_t of(uint32_t x) { return arch::tanh_approx_bf16x2(x); }
  static __device__ __nv_bfloat162 make(float x) { return __bfloat162bfloat162(__float2bfloat16(x)); }
};
#endif

template <class T>
__global__ void pair_rate_kernel(Report* report, int reps, uint32_t first) {
  constexpr int chains = 8;
  uint32_t x[chains];
  for (int c = 0; c < chains; ++c) x[c] = first + 0x00010001u * (c + threadIdx.x % 32);
  __syncthreads();
  Stopwatch watch;
  watch.start();
  for (int i = 0; i < reps; ++i) {
#pragma unroll
    for (int c = 0; c < chains; ++c) x[c] = Pair<T>::of(x[c]);
  }
  __syncthreads();
  watch.stop(report);
  for (int c = 0; c < chains; ++c)
    if ((x[c] ^ (x[c] >> 16)) & 0xffff) atomicAdd(&report->wrong, 1u);  // the halves are equal
}

// The error against tanh of the rounded argument, the function's own.
template <class T>
__global__ void pair_values_kernel(Report*, float* x, float* y, int count) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    const T rounded = Pair<T>::make(x[i]);
    uint32_t bits = Pair<T>::of(reinterpret_cast<const uint32_t&>(rounded));
    x[i] = static_cast<float>(rounded.x);
    y[i] = static_cast<float>(reinterpret_cast<const T&>(bits).x);
  }
}

template <class T>
void pair_function(uint32_t first) {
  const At at = At()("function", Pair<T>::name);
  for (int threads : {128, 256, 1024}) {
    measured("function rate", At(at)("threads", threads),
             [=](int reps) { return run({.threads = threads}, pair_rate_kernel<T>, reps, first); },
             {16.0 * threads, "values"});
  }
  const auto x = arguments();
  DeviceArray<float> in(x.size()), out(x.size());
  in.write(x);
  run({.ctas = 264}, pair_values_kernel<T>, in, out, static_cast<int>(x.size()));
  errors(Pair<T>::name, in.read(), out.read());
}

inline void functions() {
  function<TanhApprox>();
  function<SigmoidApprox>();
  function<TanhExp2>();
  function<SigmoidExp2>();
  function<TanhLibrary>();
  pair_function<__half2>(0x34003400);  // 0.25, 0.25
#if FUSEDRNN_SM >= 90
  pair_function<__nv_bfloat162>(0x3e803e80);
#endif
}

}  // namespace micro
