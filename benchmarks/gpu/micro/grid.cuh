// What it costs all CTAs of a grid to wait for each other through L2, by a counter or by the data itself.
#pragma once

#include "measure.cuh"

namespace micro {

// One counter, never reset: repetition i is over once every CTA has added 1 to it i + 1 times.
__global__ void grid_barrier_kernel(Report* report, int reps, uint32_t* counter) {
  Patience patience(report);
  Stopwatch watch;
  watch.start();
  for (int i = 0; i < reps; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      arch::add_release_gpu(counter, 1);
      const uint32_t all = (i + 1) * gridDim.x;
      patience.wait([&] { return arch::load_acquire_gpu(counter) >= all; });
    }
    __syncthreads();
  }
  watch.stop(report);
}

// Each step every CTA of a group of `group` writes `packets` packets of 12 bytes and the step they are of, and polls
// all packets of its group until they are of this step. Two slots a packet, by parity: a CTA writes step s + 2 after
// all of its threads have seen all packets of s + 1, each of which was written after all threads of its CTA had seen
// all of s; so nobody still waits for what is overwritten.
__global__ void tagged_packets_kernel(Report* report, int reps, arch::Packet* slots, int group, int packets) {
  constexpr int together = 4;  // loads in flight
  const int first = blockIdx.x / group * group, mine = blockIdx.x - first;
  const int all = group * packets, size = gridDim.x * packets;
  Patience patience(report);
  uint32_t wrong = 0;
  Stopwatch watch;
  __syncthreads();
  watch.start();
  for (int i = 0; i < reps; ++i) {
    const uint32_t tag = i + 1;
    arch::Packet* step = slots + (i & 1) * size + first * packets;
    for (int k = threadIdx.x; k < packets; k += blockDim.x) {
      const uint64_t place = mine * packets + k;
      arch::store_relaxed_gpu(step + place, {place << 32 | tag, place * tag});
    }
    for (int k = threadIdx.x; k < all; k += together * blockDim.x) {
      arch::Packet found[together];
      patience.wait([&] {
        bool arrived = true;
#pragma unroll
        for (int j = 0; j < together; ++j) {
          const int place = k + j * static_cast<int>(blockDim.x);
          if (place < all) found[j] = arch::load_relaxed_gpu(step + place);
        }
#pragma unroll
        for (int j = 0; j < together; ++j)
          if (k + j * static_cast<int>(blockDim.x) < all) arrived &= static_cast<uint32_t>(found[j].low) == tag;
        return arrived;
      });
#pragma unroll
      for (int j = 0; j < together; ++j) {
        const uint64_t place = k + j * static_cast<int>(blockDim.x);
        if (place < all) wrong += found[j].low != (place << 32 | tag) || found[j].high != place * tag;
      }
    }
    __syncthreads();
  }
  watch.stop(report);
  if (wrong) atomicAdd(&report->wrong, wrong);
}

inline void grid(int sms) {
  DeviceArray<uint32_t> counter(1);
  for (int ctas : {64, 96, 128, 132}) {
    if (ctas > sms) continue;
    measured("grid barrier", At()("ctas", ctas), [&](int reps) {
      counter.zero();
      return run({.ctas = ctas, .cooperative = true}, grid_barrier_kernel, reps, counter);
    });
  }
  for (auto [ctas, group] : {std::pair{64, 64}, {128, 64}, {128, 128}, {132, 132}}) {
    if (ctas > sms) continue;
    for (int packets : {1, 4, 8, 16, 32}) {
      DeviceArray<arch::Packet> slots(2 * ctas * packets);
      measured("tagged packets", At()("ctas", ctas)("group", group)("bytes", 12 * packets), [&](int reps) {
        slots.zero();
        return run({.ctas = ctas, .cooperative = true}, tagged_packets_kernel, reps, slots, group, packets);
      });
    }
  }
}

}  // namespace micro
