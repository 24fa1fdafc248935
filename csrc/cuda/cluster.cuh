// What the CTAs of a cluster need of each other: the state of all units, of which each computes a slice.
#pragma once

#include <arch90.cuh>

#include "loop.cuh"

namespace fusedrnn::cuda {

// Until `done`; a wait that does not end within seconds ends the kernel.
template <class Done>
FUSEDRNN_DEVICE void patiently(const Done& done) {
  constexpr uint64_t patience = uint64_t{1} << 34;  // cycles
  if (done()) return;
  const uint64_t start = arch::cycles();
  while (!done())
    if (arch::cycles() - start > patience) arch::trap();
}

// Waits for a phase of a barrier.
FUSEDRNN_DEVICE void wait_for(uint32_t barrier, uint32_t parity) {
  patiently([&] { return arch::try_wait(barrier, parity); });
}

// Of the CTA among those that hold the layer's weights.
template <class P>
FUSEDRNN_DEVICE uint32_t rank_of() {
  if constexpr (P::ctas == 1) {
    return 0;
  } else if constexpr (P::of_grid) {
    return blockIdx.x % P::ctas;
  } else {
    return arch::cluster_rank();
  }
}

// The operand of each step, in two buffers by turns, as of all CTAs. A row begins with the slice of the CTA's own units;
// that of the CTA of the next rank but `away` follows after as many slices, since there the weights' columns are.
//
// The slices come in waves, of which each has a barrier in each buffer: it counts the bytes that peers push, each as it is
// ready, a warp what it has written, 16 bytes at a time, into all of them; and the first one also the warps of the CTA that
// have written their own. Who waits for the first wave can multiply it while the next is under way.
//
// Two buffers do. A warp pushes what step s + 1 reads, over what step s - 1 read, after it has waited for all waves of
// step s, that is for all that every warp of the cluster pushed for s; and each of them had read what it needed for s - 1
// before. For the same reason no barrier is two phases ahead of one that waits: the phase after the next counts what that
// thread's own warp has yet to push.
//
// A CTA may end while its stores are under way, but none while others may come to it: it has waited for all of them.
template <class P>
class Exchange {
  using Weights = typename P::Tiles::template Weights<P, P>;
  static constexpr uint32_t slice = P::hidden * P::size, of_wave = P::ctas / P::waves;  // CTAs
  static_assert(P::ctas % P::waves == 0);

 public:
  template <class Arguments>
  FUSEDRNN_DEVICE Exchange(const Arguments&, unsigned char* shared, uint32_t rank, uint32_t)
      : shared_(arch::shared_address(shared)), rank_(rank) {
    if (threadIdx.x == 0) {
      for (int step = 0; step < 2; ++step) {
        for (int wave = 0; wave < P::waves; ++wave) {
          arch::barrier_init(barrier(step, wave), 1 + (wave == 0 ? P::warps : 0));
          expect(step, wave);
        }
      }
      arch::fence_barrier_init();
    }
    arch::cluster_barrier();
  }

  // To be called for each wave of each step in turn.
  FUSEDRNN_DEVICE void wait(int step, int wave) const {
    wait_for(barrier(step, wave), step >> 1 & 1);
    if (threadIdx.x == 0) expect(step, wave);  // of the step after the next
  }

  // What the lanes of this warp have written for the step. To be called by all of them.
  FUSEDRNN_DEVICE void push(int step) const {
    const uint32_t operand = shared_ + P::operand_of(step);
    __syncwarp();
    if (threadIdx.x % 32 == 0) arch::arrive(barrier(step, 0));
    Weights::template each_packet<P::ctas - 1>([&](int at, int column, int earlier) {
      const uint32_t place = earlier + 1, rank = (rank_ + P::ctas - place) % P::ctas;
      const uint32_t from = operand + column * P::operand_row + at;
      arch::store_async_16(arch::map_to_rank(from + place * slice, rank), arch::load_shared_16(from),
                           arch::map_to_rank(barrier(step, place / of_wave), rank));
    });
  }

 private:
  FUSEDRNN_DEVICE void expect(int step, int wave) const {
    const uint32_t peers = of_wave - (wave == 0 ? 1 : 0);
    arch::arrive_expecting(barrier(step, wave), peers * P::columns * slice);
  }
  FUSEDRNN_DEVICE uint32_t barrier(int step, int wave) const {
    return shared_ + P::barriers_at + (step % 2 * P::waves + wave) * 8;
  }

  uint32_t shared_, rank_;
};

// What reaches the units of each CTA from the gates of all: a CTA has a slot for each, in two buffers by turns, and adds them
// in their order. A thread stores what it has summed into the slots of the units it is of, 8 bytes at a time, 4 where it has
// one number.
//
// Two buffers do. A warp pushes what step s + 1 reads, over what step s - 1 read, after it has waited for all that every
// warp of the cluster pushed for s; and each of them pushed it after a barrier of its CTA, before which all of its threads
// had read what they needed for s - 1. A CTA may end as one of Exchange may.
template <class P>
class Slots {
  using Weights = typename P::Tiles::template Weights<P, P>;
  static constexpr uint32_t slot = P::hidden * P::columns * 4, buffer = P::ctas * slot;

 public:
  FUSEDRNN_DEVICE Slots(unsigned char* shared, uint32_t rank)
      : at_(arch::shared_address(shared) + P::sums_at), slots_(shared + P::sums_at), rank_(rank) {
    if (threadIdx.x == 0) {
      for (int step = 0; step < 2; ++step) {
        arch::barrier_init(barrier(step), 1);
        arch::arrive_expecting(barrier(step), buffer);
      }
      arch::fence_barrier_init();
    }
    arch::cluster_barrier();
  }

  // To be called for each step from the second on in turn.
  FUSEDRNN_DEVICE void wait(int step) const {
    wait_for(barrier(step), (step - 1) >> 1 & 1);
    if (threadIdx.x == 0) arch::arrive_expecting(barrier(step), buffer);  // for the step after the next
  }
  FUSEDRNN_DEVICE float sum(int step, const Place& p) const {
    const auto* const own =
        reinterpret_cast<const float*>(slots_ + step % 2 * buffer) + p.unit * P::columns + p.column % P::columns;
    float sum = 0;
#pragma unroll
    for (int rank = 0; rank < P::ctas; ++rank) sum += own[rank * P::hidden * P::columns];
    return sum;
  }

  FUSEDRNN_DEVICE void push(int step, const typename Weights::Sums& sums) const {
    const uint32_t mine = at_ + step % 2 * buffer + rank_ * slot;
    // Where the weights take all the registers there are, none keeps where a run goes: it is found anew in each step.
    constexpr bool anew = P::of_row > 64;
    const int warp = anew ? arch::warp() : static_cast<int>(threadIdx.x) / 32;
    Weights::template each_run<P::hidden>(warp, sums, [&](int unit, int at, float a, float b) {
      const int rank = unit / P::hidden;
      const uint32_t place =
          anew ? unit % P::hidden * P::columns + at : (unit * P::columns + at) % (P::hidden * P::columns);
      const uint32_t to = arch::map_to_rank(mine + place * 4, rank);
      const uint32_t counted = arch::map_to_rank(barrier(step), rank);
      if constexpr (Weights::run == 2) {
        arch::store_async_8(to, {__float_as_uint(a), __float_as_uint(b)}, counted);
      } else {
        arch::store_async_4(to, __float_as_uint(a), counted);
      }
    });
  }

 private:
  FUSEDRNN_DEVICE uint32_t barrier(int step) const { return at_ + (P::barriers_at - P::sums_at) + step % 2 * 8; }

  uint32_t at_;
  const unsigned char* slots_;
  uint32_t rank_;
};

}  // namespace fusedrnn::cuda
