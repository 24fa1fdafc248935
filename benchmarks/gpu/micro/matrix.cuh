// Matrix instructions as a recurrence uses them: the weights are A and stay in registers, the batch is B, N columns.
// Every product is checked: A and B are small integers, so that float32 sums of some repetitions are exact.
#pragma once

#include <cuda_bf16.h>

#include "measure.cuh"
#if FUSEDRNN_SM >= 90
#include "arch90.cuh"
#endif

namespace micro {

// Elements of A and B, from -2 to 2, by their places.
__device__ int a_of(uint32_t row, uint32_t k) { return int((row * 7 + k * 13 + (row * k) % 11) % 5) - 2; }
__device__ int b_of(uint32_t k, uint32_t column) { return int((k * 3 + column * 17 + (k * column) % 7) % 5) - 2; }

__device__ uint32_t two_bf16(int low, int high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(both);
}

struct Bf16 {
  static constexpr const char* name = "bf16";
  static constexpr int k = 16;

  // The fragments of this lane, as arch.cuh gives them: A [16, 16] from (row, k), B [16, 8] from (k, column).
  static __device__ void a(uint32_t (&f)[4], uint32_t row, uint32_t k) {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (uint32_t j = 0; j < 4; ++j) {
      const uint32_t r = row + g + j % 2 * 8, c = k + 2 * t + j / 2 * 8;
      f[j] = two_bf16(a_of(r, c), a_of(r, c + 1));
    }
  }
  static __device__ void b(uint32_t (&f)[2], uint32_t k, uint32_t column) {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (uint32_t j = 0; j < 2; ++j) {
      const uint32_t r = k + 2 * t + j * 8;
      f[j] = two_bf16(b_of(r, column + g), b_of(r + 1, column + g));
    }
  }
  static __device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { arch::mma_bf16(d, a, b); }
};

struct Tf32 {
  static constexpr const char* name = "tf32";
  static constexpr int k = 8;

  static __device__ void a(uint32_t (&f)[4], uint32_t row, uint32_t k) {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (uint32_t j = 0; j < 4; ++j) f[j] = __float_as_uint(a_of(row + g + j % 2 * 8, k + t + j / 2 * 4));
  }
  static __device__ void b(uint32_t (&f)[2], uint32_t k, uint32_t column) {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (uint32_t j = 0; j < 2; ++j) f[j] = __float_as_uint(b_of(k + t + j * 4, column + g));
  }
  static __device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { arch::mma_tf32(d, a, b); }
};

// The part [16, 8] of D that this lane holds, against the sum over k of A and B, `reps` times.
__device__ void check_product(Report* report, const float* d, uint32_t row, uint32_t column, uint32_t K, int reps) {
  const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t r = row + g + j / 2 * 8, c = column + 2 * t + j % 2;
    int want = 0;
#pragma unroll 1
    for (uint32_t k = 0; k < K; ++k) want += a_of(r, k) * b_of(k, c);
    if (d[j] != static_cast<float>(want * reps)) atomicAdd(&report->wrong, 1u);
  }
}

constexpr int kExact = 512;  // repetitions up to which sums are exact: 512 * 256 * 4 is below 2^24

// `tiles` products of 16 rows each that do not wait for each other, by `columns` / 8 fragments of B, all in registers.
template <class Type, int tiles, int columns>
__global__ __launch_bounds__(512) void mma_registers_kernel(Report* report, int reps) {
  constexpr int n = columns / 8;
  const uint32_t row = threadIdx.x / 32 * tiles * 16;
  uint32_t a[tiles][4], b[n][2];
  float d[tiles][n][4] = {};
#pragma unroll
  for (int i = 0; i < tiles; ++i) Type::a(a[i], row + 16 * i, 0);
#pragma unroll
  for (int j = 0; j < n; ++j) Type::b(b[j], 0, 8 * j);
  Stopwatch watch;
  __syncthreads();
  watch.start();
#pragma unroll 4
  for (int r = 0; r < reps; ++r) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
#pragma unroll
      for (int i = 0; i < tiles; ++i) Type::mma(d[i][j], a[i], b[j]);
    }
  }
  __syncthreads();
  watch.stop(report);
  if (reps > kExact) return;
#pragma unroll
  for (int i = 0; i < tiles; ++i) {
#pragma unroll
    for (int j = 0; j < n; ++j) check_product(report, d[i][j], row + 16 * i, 8 * j, Type::k, reps);
  }
}

template <class Type, int tiles, int columns>
void mma_registers(int sms) {
  for (int warps : {4, 8, 16}) {
    measured("mma from registers",
             At()("type", Type::name)("chains", tiles * columns / 8)("N", columns)("warps", warps),
             [=](int reps) {
               return run({.ctas = sms, .threads = 32 * warps}, mma_registers_kernel<Type, tiles, columns>, reps);
             },
             {2.0 * 16 * Type::k * columns * tiles * warps, "flops"});
  }
}

constexpr int kDepth = 256;  // K of the products below: 64 registers of weights a thread

// A warp's part of a step: D [16, columns] += A [16, 256] B [256, columns], with B [columns][256] read from shared memory
// by every warp. Two sums a tile, so that successive products of one do not wait for each other. `shift` is 0, which the
// compiler does not know: it has to read B again each time.
template <int columns>
__global__ __launch_bounds__(256, 1) void mma_shared_kernel(Report* report, int reps, uint32_t shift) {
  constexpr int n = columns / 8, pitch = kDepth + 8;  // 16 bytes more: rows on different banks
  __shared__ __align__(16) __nv_bfloat16 b[columns * pitch];
  for (uint32_t i = threadIdx.x; i < columns * kDepth; i += blockDim.x)
    b[i / kDepth * pitch + i % kDepth] = __float2bfloat16(b_of(i % kDepth, i / kDepth));
  const uint32_t row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  uint32_t a[kDepth / 16][4];
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) Bf16::a(a[k], row, 16 * k);
  float d[n][2][4] = {};
  uint32_t first = arch::shared_address(b) + 2 * (lane % 8 * pitch + lane / 8 * 8);
  Stopwatch watch;
  __syncthreads();
  watch.start();
  for (int r = 0; r < reps; ++r, first += shift) {
#pragma unroll
    for (int k = 0; k < kDepth / 16; k += 2) {
#pragma unroll
      for (int j = 0; j < n; ++j) {
        const uint4 v = arch::load_tiles(first + 2 * (j * 8 * pitch + k * 16));
        arch::mma_bf16(d[j][0], a[k], {v.x, v.y});
        arch::mma_bf16(d[j][1], a[k + 1], {v.z, v.w});
      }
    }
  }
  __syncthreads();
  watch.stop(report);
  if (reps > kExact) return;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    for (int i = 0; i < 4; ++i) d[j][0][i] += d[j][1][i];
    check_product(report, d[j][0], row, 8 * j, kDepth, reps);
  }
}

template <int columns>
void mma_shared(int sms) {
  for (int warps : {1, 4, 8}) {
    measured("mma, B in shared memory", At()("N", columns)("K", kDepth)("warps", warps),
             [=](int reps) { return run({.ctas = sms, .threads = 32 * warps}, mma_shared_kernel<columns>, reps, 0); },
             {2.0 * 16 * kDepth * columns * warps, "flops"});
  }
}

#if FUSEDRNN_SM == 90
// The same of a warpgroup: D [64, columns] += A [64, 256] B [256, columns]. B lies as describe_tiles has it.
template <int columns>
__global__ __launch_bounds__(256, 1) void wgmma_kernel(Report* report, int reps) {
  constexpr int tile = 64;  // elements of 8 columns by 8 of k
  __shared__ __align__(128) __nv_bfloat16 b[columns * kDepth];
  for (uint32_t i = threadIdx.x; i < columns * kDepth; i += blockDim.x) {
    const uint32_t k = i % kDepth, column = i / kDepth;
    b[(column / 8 * (kDepth / 8) + k / 8) * tile + column % 8 * 8 + k % 8] = __float2bfloat16(b_of(k, column));
  }
  const uint32_t row = threadIdx.x / 32 * 16;
  uint32_t a[kDepth / 16][4];
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) Bf16::a(a[k], row, 16 * k);
  float d[columns / 2] = {};
  const uint32_t start = arch::shared_address(b);
  arch::fence_async_proxy();
  Stopwatch watch;
  __syncthreads();
  watch.start();
  for (int r = 0; r < reps; ++r) {
    arch::warpgroup_fence();
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k)
      arch::wgmma_bf16(d, a[k], arch::describe_tiles(start + 2 * 2 * tile * k, 2 * tile, 2 * tile * (kDepth / 8)));
    arch::warpgroup_commit();
    arch::warpgroup_wait(d);
  }
  __syncthreads();
  watch.stop(report);
  if (reps > kExact) return;
#pragma unroll
  for (int j = 0; j < columns / 8; ++j) check_product(report, d + 4 * j, row, 8 * j, kDepth, reps);
}

template <int columns>
void wgmma(int sms) {
  for (int warps : {4, 8}) {
    measured("wgmma, A in registers", At()("N", columns)("K", kDepth)("warps", warps),
             [=](int reps) { return run({.ctas = sms, .threads = 32 * warps}, wgmma_kernel<columns>, reps); },
             {2.0 * 16 * kDepth * columns * warps, "flops"});
  }
}
#endif

inline void matrix(int sms) {
  mma_registers<Bf16, 1, 8>(sms);
  mma_registers<Bf16, 2, 8>(sms);
  mma_registers<Bf16, 4, 8>(sms);
  mma_registers<Bf16, 8, 8>(sms);
  mma_registers<Bf16, 4, 16>(sms);
  mma_registers<Bf16, 4, 32>(sms);
  mma_registers<Tf32, 1, 8>(sms);
  mma_registers<Tf32, 4, 8>(sms);
  mma_shared<8>(sms);
  mma_shared<16>(sms);
  mma_shared<32>(sms);
#if FUSEDRNN_SM == 90
  wgmma<8>(sms);
  wgmma<16>(sms);
  wgmma<32>(sms);
#endif
}

}  // namespace micro
