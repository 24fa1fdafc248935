// What the CTAs of a grid need of each other, where no cluster is large enough: the operand of all units, by way of L2.
#pragma once

#include "cluster.cuh"

namespace fusedrnn::cuda {

// The operand of each step, in two buffers by turns, as of all CTAs: row after row the slices of the CTAs in their order.
//
// A warp writes what it has of its CTA's slice to memory in packets: 8 bytes of the operand and the number of the step
// they are of, stored and loaded whole, so that whoever finds the number has the bytes: there is no flag, fence or
// barrier. Of all packets each CTA of a cluster polls its share, two at a time, and passes what they bring on to every CTA
// of the cluster, itself too, by stores that count their bytes on the receiver's barrier: a packet is fetched once for each
// cluster. Numbers grow from step to step over all launches of a layer, and packets begin as zeros, so none is ever reset.
//
// Two buffers do, of packets as of the operand. Who writes a packet of step s + 1 has waited for the whole operand of s.
// Every CTA wrote a part of that, after a barrier of its threads at which all of them had multiplied the operand of s - 1;
// so that had come to every CTA, and all packets of s - 1 had been read. Nor is a barrier two phases ahead of one that
// waits: the phase after the next counts bytes of s + 2, whose writers have what this CTA wrote for s + 1, after a barrier
// to which its threads came when they had waited for s.
//
// A CTA may end while its stores are under way, but none while others may come to it: it has waited for all of them.
template <class P>
class Packets {
  using Weights = typename P::Tiles::template Weights<P, P>;
  // Pieces of 16 bytes, of two packets each: of a row of the operand; of a row, that the threads of a cluster fetch at once;
  // of those, one beside the other; that a thread fetches in all, and at once.
  static constexpr int of_row = P::ctas * P::slice / 16, at_once = P::cluster * P::threads / P::columns;
  static constexpr int beside = at_once < 16 ? at_once : 16, mine = over(of_row, at_once),
                       together = mine < 2 ? mine : 2;
  static_assert(P::slice % 16 == 0 && P::slice * P::ctas == P::depth * P::parts * P::Tiles::bytes);
  static_assert(P::cluster * P::threads % P::columns == 0 && at_once % beside == 0);

 public:
  static constexpr int buffer = 2 * P::columns * of_row;  // packets

  template <class Arguments>
  FUSEDRNN_DEVICE Packets(const Arguments& f, unsigned char* shared, uint32_t rank, uint32_t tile)
      : shared_(arch::shared_address(shared)), slice_(shared + P::slice_at) {
    const uint32_t thread = rank % P::cluster * P::threads + threadIdx.x, column = thread / beside % P::columns;
    piece_ = thread % beside + thread / (beside * P::columns) * beside;
    arch::Packet* const packets = f.packets + static_cast<int64_t>(tile) * 2 * buffer;
    from_ = packets + (column * of_row + piece_) * 2;
    to_ = shared_ + column * P::operand_row + piece_ * 16;
    own_ = packets + rank * (P::slice / 8);
    if constexpr (requires { f.first; }) first_ = static_cast<uint32_t>(f.first);
    if (threadIdx.x == 0) {
      for (int step = 0; step < 2; ++step) {
        arch::barrier_init(barrier(step), 1);
        expect(step);
      }
      arch::fence_barrier_init();
    }
    arch::cluster_barrier();
  }

  // What the lanes of this warp have written for the step. To be called by all of them.
  FUSEDRNN_DEVICE void push(int step) const {
    arch::Packet* const to = own_ + step % 2 * buffer;
    __syncwarp();
    Weights::template each_packet<P::slice / (P::hidden * P::size) * 2>([&](int at, int column, int which) {
      const int within = which / 2 * P::hidden * P::size + at + which % 2 * 8;
      const auto bytes = *reinterpret_cast<const uint64_t*>(slice_ + column * P::slice_row + within);
      arch::store_relaxed_gpu(to + column * of_row * 2 + within / 8, {bytes, number_of(step)});
    });
  }

  // To be called for each step that was pushed, in turn.
  FUSEDRNN_DEVICE void wait(int step, int = 0) const {
#pragma unroll
    for (int first = 0; first < mine; first += together) fetch(step, first);
    wait_for(barrier(step), step >> 1 & 1);
    if (threadIdx.x == 0) expect(step);  // of the step after the next
  }

 private:
  // Of this thread's pieces those from `first` on that are fetched together.
  FUSEDRNN_DEVICE void fetch(int step, int first) const {
    const arch::Packet* const from = from_ + step % 2 * buffer;
    const auto each = [&](const auto& f) {
#pragma unroll
      for (int k = 0; k < together; ++k) {
        const int before = (first + k) * at_once;
        if (before + at_once <= of_row || static_cast<int>(piece_) + before < of_row) f(k, before);
      }
    };
    arch::Packet found[together][2];
    patiently([&] {
      each([&](int k, int before) {
        for (int half = 0; half < 2; ++half) found[k][half] = arch::load_relaxed_gpu(from + 2 * before + half);
      });
      bool all = true;
      each([&](int k, int) {
        for (int half = 0; half < 2; ++half) all &= static_cast<uint32_t>(found[k][half].high) == number_of(step);
      });
      return all;
    });
    each([&](int k, int before) {
      const uint64_t low = found[k][0].low, high = found[k][1].low;
      const uint4 bytes = {static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high),
                           static_cast<uint32_t>(high >> 32)};
      const uint32_t to = to_ + P::operand_of(step) + before * 16;
#pragma unroll
      for (int other = 0; other < P::cluster; ++other)
        arch::store_async_16(arch::map_to_rank(to, other), bytes, arch::map_to_rank(barrier(step), other));
    });
  }

  FUSEDRNN_DEVICE uint32_t number_of(int step) const { return first_ + step + 1; }
  FUSEDRNN_DEVICE void expect(int step) const {
    arch::arrive_expecting(barrier(step), P::columns * P::ctas * P::slice);
  }
  FUSEDRNN_DEVICE uint32_t barrier(int step) const { return shared_ + P::barriers_at + step % 2 * 8; }

  uint32_t shared_, to_, piece_;  // to_: where this thread's first piece belongs
  const unsigned char* slice_;
  const arch::Packet* from_;
  arch::Packet* own_;
  uint32_t first_ = 0;  // of all steps, that of the loop
};

}  // namespace fusedrnn::cuda
