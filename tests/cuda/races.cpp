// Each thread has a clock and knows of all others' clocks how far they had come when it last heard of them (vector clocks:
// Mattern, Virtual Time and Global States of Distributed Systems, 1988).
#include "races.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <deque>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "mbarrier.h"

namespace ptx::races {

namespace {

namespace host = fusedrnn::host;

using Clocks = std::vector<uint32_t>;  // of all threads, then of barriers: how many phases have ended
constexpr size_t kUnit = 2;            // bytes
constexpr uint32_t kNever = ~0u;

struct Use {
  size_t number = 0;  // whose clock
  uint32_t clock = 0;
};
struct Place {
  Use written;
  std::map<size_t, Use> readers;  // the last of each warp
};
struct Thread {
  Clocks known;
  std::map<const void*, unsigned> meetings;
  std::deque<std::vector<const std::byte*>> copies;  // in groups, the last of which is not committed yet
};

// Of the launch that runs.
struct State {
  std::vector<Thread> threads;
  std::unordered_map<uintptr_t, Place> places;
  std::unordered_map<const void*, std::map<unsigned, Clocks>> meetings;
  std::map<std::pair<const std::byte*, uint64_t>, Clocks> phases;
  std::unordered_map<const std::byte*, size_t> numbers;  // of barriers
  std::unordered_map<const void*, Clocks> packets;
};
State state;
uint64_t launch = 0;  // its number

size_t number() { return blockIdx.x * blockDim.x + threadIdx.x; }
Thread& self() { return state.threads[number()]; }
Use now() { return {number(), self().known[number()]}; }
size_t number_of(const std::byte* barrier) {
  return state.numbers.try_emplace(barrier, state.threads.size() + state.numbers.size()).first->second;
}

void know(Clocks& clocks, size_t number, uint32_t clock) {
  if (clocks.size() <= number) clocks.resize(number + 1);
  clocks[number] = std::max(clocks[number], clock);
}
void join(Clocks& into, const Clocks& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}
void release(Clocks& to) {
  join(to, self().known);
  ++self().known[number()];
}
void acquire(const Clocks& from) { join(self().known, from); }

void check(const Use& use, const char* what) {
  const Clocks& known = self().known;
  if (use.clock <= (use.number < known.size() ? known[use.number] : 0)) return;
  const auto name = [](size_t i) {
    return "thread " + std::to_string(i % blockDim.x) + " of CTA " + std::to_string(i / blockDim.x);
  };
  const std::string who = use.number < state.threads.size() ? name(use.number) : "an asynchronous store";
  throw host::Error("a race: " + who + " " + what + " there" + (use.clock == kNever ? ", by a copy under way" : ""));
}
void check_all_of(const Place& place) {
  check(place.written, "wrote");
  for (const auto& [warp, use] : place.readers) check(use, "read");
}

template <class F>
void each(const std::byte* at, size_t bytes, F f) {
  const auto first = reinterpret_cast<uintptr_t>(at) / kUnit;
  for (size_t i = 0; i < (bytes + kUnit - 1) / kUnit; ++i) f(state.places[first + i]);
}
void write_as(const std::byte* at, size_t bytes, const Use& use) {
  each(at, bytes, [&](Place& place) {
    check_all_of(place);
    place.written = use;
  });
}

}  // namespace

void enter() {
  if (launch != host::runtime.launches) {
    launch = host::runtime.launches;
    state = {};
    state.threads.resize(gridDim.x * blockDim.x);
  }
  know(self().known, number(), 1);
}

void arrive(const void* who) { release(state.meetings[who][self().meetings[who]]); }
void wait(const void* who) {
  auto& meetings = state.meetings[who];
  const unsigned n = self().meetings[who]++;
  acquire(meetings[n]);
  if (n > 1) meetings.erase(n - 2);
}

void arrive_at(uint32_t barrier) {
  const host::Place place = host::place(barrier, 8, 8);
  release(state.phases[{place.at, host::mbarrier(place).phase}]);
}
void seen_to_end(uint32_t barrier) {
  const host::Place place = host::place(barrier, 8, 8);
  const uint64_t ended = host::mbarrier(place).phase;
  acquire(state.phases[{place.at, ended - 1}]);
  know(self().known, number_of(place.at), static_cast<uint32_t>(ended));
}

void released(const void* packet) { release(state.packets[packet]); }
void acquired(const void* packet) { acquire(state.packets[packet]); }

void read(const std::byte* at, size_t bytes) {
  each(at, bytes, [](Place& place) {
    check(place.written, "wrote");
    place.readers[number() / host::kLanes] = now();
  });
}
void write(const std::byte* at, size_t bytes) { write_as(at, bytes, now()); }
void store_async(uint32_t to, size_t bytes, uint32_t barrier) {
  const host::Place counter = host::place(barrier, 8, 8);
  const auto ended = static_cast<uint32_t>(host::mbarrier(counter).phase + 1);
  write_as(host::place(to, bytes, bytes).at, bytes, {number_of(counter.at), ended});
  arrive_at(barrier);
}

void begin_copy(const std::byte* to) {
  write_as(to, 16, {number(), kNever});
  auto& groups = self().copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(to);
}
void commit_copies() {
  auto& groups = self().copies;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}
void end_copies(size_t but) {
  auto& groups = self().copies;
  for (; groups.size() > but + 1; groups.pop_front()) {
    for (const std::byte* const to : groups.front()) each(to, 16, [](Place& place) { place.written = now(); });
  }
}

}  // namespace ptx::races
