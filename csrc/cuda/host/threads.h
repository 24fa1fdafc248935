// The threads of a launch, and what they share: warps, warpgroups, CTAs, clusters.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <semaphore>
#include <vector>

#include "fibers.h"
#include "shared_memory.h"

namespace fusedrnn::host {

struct Thread;
struct Cta;

// Where threads wait until another opens it.
struct Gate {
  std::vector<Thread*> waiting;
};

// Where threads meet: each waits until all that have not ended have come.
struct Meeting {
  Gate gate;
  unsigned arrived = 0, living = 0;
};

// See mbarrier.h.
struct Mbarrier {
  uint32_t expected = 0, pending = 0;  // arrivals
  int64_t bytes = 0;                   // expected and not come yet; below 0 if they came before they were expected
  uint64_t phase = 0;
  unsigned under_way = 0;  // transfers that will count here
  Gate gate;
};

constexpr unsigned kLanes = 32, kWarpsOfGroup = 4;

// What the lanes of a warp do together, each with its operands; `instruction` is the one under way.
struct Warp {
  Meeting meeting;
  const char* instruction = nullptr;
  std::array<void*, kLanes> operands = {};
};

// A thread's part of the sums of products under way. The registers themselves are poisoned meanwhile.
struct Sums {
  float* registers;
  std::vector<float> values;
  uint64_t last_product;  // the number of the last one that adds to them
};

// Product [64, columns] += A [64, 16] B [16, columns] of a warpgroup, which begins once its four warps have issued it.
struct Product {
  struct Operands {
    float* registers;  // of the sums
    std::array<uint32_t, 4> a;
  };
  unsigned columns = 0, warps = 0;  // warps that have issued it
  uint64_t b = 0;                   // descriptor
  std::array<Operands, kLanes * kWarpsOfGroup> operands;
};

// See wgmma.h. Products are numbered from 1.
struct Warpgroup {
  struct OfWarp {
    bool fenced = false;
    uint64_t issued = 0, committed = 0;  // number of the last product
  };
  std::array<OfWarp, kWarpsOfGroup> warps;
  std::deque<Product> products;  // the first has number done + 1
  uint64_t done = 0;
  Gate gate;
};

// A group of asynchronous copies of a thread.
struct Copies {
  unsigned under_way = 0;                      // that happen at some moment
  std::vector<std::function<void()>> awaited;  // that happen when they are waited for
};

struct Thread {
  Cta* cta = nullptr;
  unsigned number = 0;  // in its CTA
  Fiber fiber;
  const char* waits_for = "their turn";        // nothing once it has ended
  std::deque<std::shared_ptr<Copies>> copies;  // by cp.async, in groups, the last of which is not committed yet
  Gate copied;
  std::vector<Sums> sums;

  unsigned lane() const { return number % kLanes; }
  Warp& warp() const;
  Warpgroup& warpgroup() const;
};

struct Cluster {
  Meeting meeting;
  std::vector<Cta*> ctas;  // by rank
};

struct Cta {
  unsigned number = 0, rank = 0;  // in the grid, in the cluster
  Cluster* cluster = nullptr;
  bool started = false;
  SharedMemory memory;
  Meeting meeting;  // of __syncthreads
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::vector<Thread*> ready;
  std::map<const std::byte*, Mbarrier> mbarriers;
  std::deque<std::function<void()>> posted;  // stores into other CTAs that no release has ordered yet, oldest first
  std::counting_semaphore<> turn{0};

  bool ended() const { return meeting.living == 0; }
};

inline Warp& Thread::warp() const { return cta->warps[number / kLanes]; }
inline Warpgroup& Thread::warpgroup() const { return cta->warpgroups[number / (kLanes * kWarpsOfGroup)]; }

}  // namespace fusedrnn::host
