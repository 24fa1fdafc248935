// Barriers of one CTA, the latency of loads, the rate of shared memory, and the way from L2 to shared memory.
#pragma once

#include "measure.cuh"

namespace micro {

__global__ void syncthreads_kernel(Report* report, int reps) {
  Stopwatch watch;
  __syncthreads();
  watch.start();
#pragma unroll 16
  for (int i = 0; i < reps; ++i) __syncthreads();
  watch.stop(report);
}

inline void barriers() {
  for (int threads : {32, 128, 256, 512, 1024}) {
    measured("syncthreads", At()("threads", threads),
             [=](int reps) { return run({.threads = threads}, syncthreads_kernel, reps); });
  }
}

// A walk through every one of `count` slots, a power of two: slot i holds the next one, a linear congruence of full
// period (Hull and Dobell 1962: the factor one more than a multiple of 4, the addend odd).
__host__ __device__ constexpr uint32_t next_slot(uint32_t i, uint32_t count) {
  return (i * 1664525u + 1013904223u) & (count - 1);
}

inline uint32_t last_slot(int reps, uint32_t count, uint32_t first = 0) {
  for (int k = 0; k < reps; ++k) first = next_slot(first, count);
  return first;
}

__global__ void shared_latency_kernel(Report* report, int reps, uint32_t last) {
  constexpr uint32_t count = 1024;
  __shared__ uint32_t slots[count];  // addresses in shared memory
  const uint32_t base = arch::shared_address(slots);
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) slots[i] = base + 4 * next_slot(i, count);
  __syncthreads();
  Stopwatch watch;
  watch.start();
  uint32_t at = base;
#pragma unroll 16
  for (int i = 0; i < reps; ++i) at = arch::load_shared(at);
  watch.stop(report);
  if (at != base + 4 * last) atomicAdd(&report->wrong, 1u);
}

constexpr uint32_t kLine = 32;  // words from one slot to the next: 128 bytes

__global__ void fill_slots_kernel(Report* report, uint32_t* slots, uint32_t count) {
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
    slots[size_t(i) * kLine] = next_slot(i, count) * kLine;
}

__global__ void global_latency_kernel(Report* report, int reps, const uint32_t* slots, uint32_t first, uint32_t last) {
  Stopwatch watch;
  watch.start();
  uint32_t at = first * kLine;
#pragma unroll 16
  for (int i = 0; i < reps; ++i) at = arch::load_l2(slots + at);
  watch.stop(report);
  if (at != last * kLine) atomicAdd(&report->wrong, 1u);
}

// Each launch goes on where the last one ended, so that many slots take long to come round again.
inline void global_latency(const char* where, uint32_t count) {
  DeviceArray<uint32_t> slots(size_t(count) * kLine);
  run({.ctas = 256}, fill_slots_kernel, slots, count);
  uint32_t first = 0;
  measured(where, At()("bytes", 4l * kLine * count), [&](int reps) {
    const uint32_t begun = first;
    first = last_slot(reps, count, begun);
    return run({.threads = 1}, global_latency_kernel, reps, slots, begun, first);
  });
}

// Every warp reads its CTA's 16 KB again and again, 16 bytes a lane. `stride` is 512, which the compiler does not know:
// it has to read each time.
__global__ void shared_rate_kernel(Report* report, int reps, uint32_t stride) {
  constexpr int bytes = 16384;
  __shared__ uint4 data[bytes / 16];
  for (uint32_t i = threadIdx.x; i < bytes / 16; i += blockDim.x) data[i] = {i, i, i, i};
  __syncthreads();
  Stopwatch watch;
  watch.start();
  const uint32_t first = arch::shared_address(data) + 16 * (threadIdx.x % 32);
  uint32_t sum = 0, at = 0;
  for (int i = 0; i < reps; ++i) {
#pragma unroll
    for (int part = 0; part < 8; ++part, at += stride) {
      const uint4 v = arch::load_shared_16(first + at % bytes);
      sum += v.x ^ v.y ^ v.z ^ v.w;
    }
  }
  __syncthreads();
  watch.stop(report);
  if (sum) atomicAdd(&report->wrong, 1u);  // the four are equal
}

inline void loads() {
  measured("shared load", At(),
           [](int reps) { return run({.threads = 1}, shared_latency_kernel, reps, last_slot(reps, 1024)); });
  global_latency("L2 load", 1 << 13);
  global_latency("memory load", 1 << 22);
  for (int warps : {4, 8, 16}) {
    measured("shared read", At()("warps", warps),
             [=](int reps) { return run({.threads = 32 * warps}, shared_rate_kernel, reps, 512); },
             {8.0 * 512 * warps, "bytes"});
  }
}

// Each repetition brings `bytes` of every CTA's own region, or of one region for all, and waits for them.
__global__ void fetch_kernel(Report* report, int reps, const uint4* from, int bytes, bool own) {
  FUSEDRNN_DYNAMIC_SHARED(uint4, data);
  const uint4* source = from + (own ? size_t(blockIdx.x) * (bytes / 16) : 0);
  const uint32_t to = arch::shared_address(data);
  Stopwatch watch;
  __syncthreads();
  watch.start();
  for (int i = 0; i < reps; ++i) {
    for (int k = threadIdx.x; k < bytes / 16; k += blockDim.x) arch::copy_16_async(to + 16 * k, source + k);
    arch::wait_for_copies();
    __syncthreads();
  }
  watch.stop(report);
  for (int k = threadIdx.x; k < bytes / 16; k += blockDim.x) {
    const uint32_t want = (source - from) + k;
    if (data[k].x != want || data[k].w != ~want) atomicAdd(&report->wrong, 1u);
  }
}

// Word 0 of 16 bytes is their number, word 3 its complement.
inline std::vector<uint4> numbered(size_t count) {
  std::vector<uint4> values(count);
  for (uint32_t i = 0; i < count; ++i) values[i] = {i, 0, 0, ~i};
  return values;
}

template <class Kernel>
void fetches(const char* measure, Kernel kernel, int threads, int sms) {
  constexpr int largest = 64 << 10;
  DeviceArray<uint4> from(size_t(sms) * largest / 16);
  from.write(numbered(size_t(sms) * largest / 16));
  for (int ctas : {1, sms}) {
    for (bool own : {true, false}) {
      if (ctas == 1 && !own) continue;
      for (int bytes = 4 << 10; bytes <= largest; bytes *= 2) {
        const Shape shape{.ctas = ctas, .threads = threads, .shared = size_t(bytes)};
        measured(measure, At()("ctas", ctas)("bytes", bytes)("regions", own ? ctas : 1),
                 [=, &from](int reps) { return run(shape, kernel, reps, from, bytes, own); }, {double(bytes), "bytes"});
      }
    }
  }
}

}  // namespace micro
