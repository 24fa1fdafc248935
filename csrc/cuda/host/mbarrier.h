// Shared memory across a cluster, its barriers (mbarrier), and what is brought there asynchronously.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>

#include "grid.h"

namespace fusedrnn::host {

struct Place {
  Cta* cta;
  std::byte* at;
};

// Where `bytes` lie that a shared address names, its own CTA's or one that map_to_rank made.
inline Place place(uint32_t address, size_t bytes, size_t alignment) {
  if (address % alignment) throw Error("shared address " + std::to_string(address) + " is not aligned");
  const uint32_t rank = address >> kRankShift, offset = address & ((1u << kRankShift) - 1);
  Cta* const cta = rank ? self->cta->cluster->ctas.at(rank - 1) : self->cta;
  if (!cta->started) throw Error("reaches into a CTA that may not have started");
  if (cta->ended()) throw Error("reaches into a CTA that has ended");
  return {cta, cta->memory.at(offset, bytes)};
}

inline std::byte* own_place(uint32_t address, size_t bytes) {
  const Place found = place(address, bytes, bytes);
  if (found.cta != self->cta) throw Error("the instruction takes shared memory of its own CTA alone");
  return found.at;
}

// Barriers. The 8 bytes hold no more than a mark, which shows whether something else was written there.

constexpr uint64_t kMbarrierMark = 0x6d62617272696572;
constexpr int64_t kMostBytes = (1 << 20) - 1, kMostArrivals = (1 << 20) - 1;

inline Mbarrier& mbarrier(const Place& place) {
  const auto found = place.cta->mbarriers.find(place.at);
  if (found == place.cta->mbarriers.end()) throw Error("uses a barrier that was not initialised");
  if (std::memcmp(place.at, &kMbarrierMark, 8)) throw Error("a barrier was written over");
  return found->second;
}

inline void initialise(uint32_t address, uint32_t arrivals) {
  if (arrivals < 1 || arrivals > kMostArrivals) throw Error("a barrier expects 1 to 2^20 - 1 arrivals");
  const Place where{self->cta, own_place(address, 8)};
  where.cta->mbarriers[where.at] = {.expected = arrivals, .pending = arrivals, .gate = {}};
  std::memcpy(where.at, &kMbarrierMark, 8);
  grid->pause();
}

inline void end_phase_if_complete(Mbarrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  // They may as well have come before, and have counted instead of others.
  if (barrier.under_way) throw Error("a phase of a barrier ended while bytes that count in it were still under way");
  ++barrier.phase;
  barrier.pending = barrier.expected;
  grid->open(barrier.gate);
}

inline void count_bytes(Mbarrier& barrier, int64_t bytes) {
  barrier.bytes += bytes;
  if (std::abs(barrier.bytes) > kMostBytes) throw Error("a barrier counts at most 2^20 - 1 bytes");
}

inline void arrive(uint32_t address, uint32_t bytes) {
  Mbarrier& barrier = mbarrier({self->cta, own_place(address, 8)});
  if (barrier.pending == 0) throw Error("more arrivals than the barrier expects");
  count_bytes(barrier, bytes);
  --barrier.pending;
  end_phase_if_complete(barrier);
  grid->pause();
}

// Whether the phase of this parity has ended, which is the current one or the one before. Like the hardware it waits for
// that, but not for ever.
inline bool try_wait(uint32_t address, uint32_t parity) {
  grid->poll();
  Mbarrier& barrier = mbarrier({self->cta, own_place(address, 8)});
  const auto ended = [&] { return (barrier.phase & 1) != parity; };
  if (!ended() && !grid->chance(4)) grid->wait_at(barrier.gate, "a barrier in shared memory");
  return ended();
}

// `write` brings `bytes` to `to` at some later moment and they count on `barrier`, which is in the same CTA.
template <class Write>
void bring_later(uint32_t to, uint32_t bytes, size_t alignment, uint32_t barrier, Write write) {
  const Place target = place(to, bytes, alignment), counter = place(barrier, 8, 8);
  if (target.cta != counter.cta) throw Error("bytes and the barrier that counts them are in different CTAs");
  ++mbarrier(counter).under_way;
  grid->later([=] {
    if (target.cta->ended()) throw Error("bytes came after their CTA had ended");
    write(target.at);
    Mbarrier& counting = mbarrier(counter);
    --counting.under_way;
    count_bytes(counting, -static_cast<int64_t>(bytes));
    end_phase_if_complete(counting);
  });
  grid->pause();
}

template <class T>
void store_later(uint32_t to, T value, uint32_t barrier) {
  bring_later(to, sizeof value, sizeof value, barrier,
              [value](std::byte* at) { std::memcpy(at, &value, sizeof value); });
}

// The copy engine reads its source when it writes, piece by piece in any order. `still_there` throws if it is not.
template <class StillThere>
void copy_later(uint32_t to, const std::byte* from, uint32_t bytes, uint32_t barrier, StillThere still_there) {
  constexpr uint32_t piece = 64;
  if (bytes == 0 || bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    throw Error("the copy engine takes multiples of 16 bytes");
  for (uint32_t at = 0; at < bytes; at += piece) {
    const uint32_t part = std::min(piece, bytes - at);
    bring_later(to + at, part, 16, barrier, [=](std::byte* target) {
      still_there();
      std::memcpy(target, from + at, part);
    });
  }
}

}  // namespace fusedrnn::host
