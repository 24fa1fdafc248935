// How a launch runs on the host: every thread of the grid is a fiber, and one of them runs at a time.
//
// The next one is drawn at random wherever a thread waits, polls, or starts something asynchronous. Whatever completes
// asynchronously is kept aside and happens at a random later moment, at the latest when nobody else can go on. So do
// threads that fall asleep, which lets some fall far behind. All draws come from a seed: the same seed is the same run.
// When nobody can go on and nothing is to happen, the launch has failed and tells what everyone waits for.
//
// A grid of more threads than kAtOnce runs in parts, one after another, as on a GPU that has not the room.
//
// The CTAs take turns. Where a program has __shared__ variables they are threads of the operating system, to which these
// are thread_local.
//
// Memory is sequentially consistent, except for what store_cluster_16 writes: neither missing fences nor missing
// acquires are found. Nor are races between two points where threads switch, but in what nvcc compiled: tests/ptx.py.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>

#include "threads.h"
#include "vector_types.h"

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace fusedrnn::host {

struct LaunchShape {
  unsigned ctas, threads, cluster;  // in the grid, in a CTA, CTAs in a cluster
  size_t dynamic_bytes;             // of shared memory
  unsigned first = 0, part = 0;     // CTAs that run at once: the number of the first, and how many
};

class Grid {
 public:
  // Every thread calls `kernel`.
  Grid(const LaunchShape& shape, std::function<void()> kernel, uint64_t seed);

  // Returns what went wrong: nothing if all is well.
  std::string run();

  // Of the thread that runs.
  void pause();                                // others may run now
  void poll();                                 // others run now, if any can
  void wait_at(Gate& gate, const char* what);  // until it is opened
  void meet(Meeting& meeting, const char* what);

  void open(Gate& gate);
  void later(std::function<void()> what) { late_.push_back(std::move(what)); }
  void changed() { last_change_ = steps_; }  // what others may poll, or this thread came to a wait
  void post(Cta& from, std::function<void()> store);
  void release(Cta& from);  // the stores it posted happen, in their order
  bool chance(unsigned one_in) { return random_() % one_in == 0; }
  uint64_t steps() const { return steps_; }

 private:
  static constexpr unsigned kFruitless = 2000;  // polls of every thread, without a change, that count as a deadlock
  static constexpr unsigned kSleepy = 256;      // one pause, one waking up in so many takes long
  static constexpr size_t kTogether = 64;       // of what is late, one in so many happens at once

  static void enter();
  void prepare(Cta& cta);
  void serve(Cta& cta);
  Cta* turn(Cta& cta);
  void step(Cta& cta);
  void leave(Thread& thread);
  void depart(Meeting& meeting);
  void happen();
  Cta* next();
  std::string deadlock() const;
  void fail(const std::string& what);
  template <class T>
  T take(std::vector<T>& some);  // one of them, at random

  LaunchShape shape_;
  std::function<void()> kernel_;
  std::mt19937_64 random_;
  std::vector<Cta> ctas_;
  std::vector<Cluster> clusters_;
  std::vector<std::function<void()>> late_;
  std::counting_semaphore<> prepared_{0};
  uint64_t steps_ = 0, last_change_ = 0;
  unsigned quantum_, lateness_;  // steps a CTA runs at most; one step in so many lets something late happen
  bool over_ = false;
  std::string error_;
};

// The launch and the thread that run.
inline Grid* grid = nullptr;
inline Thread* self = nullptr;

inline Grid::Grid(const LaunchShape& shape, std::function<void()> kernel, uint64_t seed)
    : shape_(shape),
      kernel_(std::move(kernel)),
      random_(seed),
      ctas_(shape.part),
      clusters_(shape.part / shape.cluster),
      quantum_(16 << random_() % 5),
      lateness_(1 << random_() % 9) {
  const unsigned threads = shape.threads;
  for (unsigned i = 0; i < ctas_.size(); ++i) {
    Cta& cta = ctas_[i];
    cta.number = shape.first + i, cta.rank = i % shape.cluster, cta.cluster = &clusters_[i / shape.cluster];
    cta.cluster->ctas.push_back(&cta);
    cta.cluster->meeting.living += threads;
    cta.meeting.living = threads;
    cta.threads = std::vector<Thread>(threads);
    cta.warps.resize((threads + kLanes - 1) / kLanes);
    cta.warpgroups.resize((cta.warps.size() + kWarpsOfGroup - 1) / kWarpsOfGroup);
    for (unsigned t = 0; t < threads; ++t) {
      Thread& thread = cta.threads[t];
      thread.cta = &cta, thread.number = t;
      ++thread.warp().meeting.living;
      thread.fiber.prepare(stack(i * threads + t), enter);
      cta.ready.push_back(&thread);
    }
  }
}

constexpr unsigned kAtOnce = 16384;  // threads; a process may map twice as many stacks

// A whole launch. Returns what went wrong: nothing if all is well.
inline std::string run_grid(LaunchShape shape, const std::function<void()>& kernel, uint64_t seed) {
  const unsigned part = std::max(1u, kAtOnce / shape.threads / shape.cluster) * shape.cluster;
  std::string error;
  for (shape.first = 0; shape.first < shape.ctas && error.empty(); shape.first += part) {
    shape.part = std::min(part, shape.ctas - shape.first);
    error = Grid(shape, kernel, seed).run();
  }
  return error;
}

inline std::string Grid::run() {
  grid = this;
  blockDim = dim3(shape_.threads), gridDim = dim3(shape_.ctas);
  if (has_statics()) {
    std::vector<std::thread> hosts;
    for (Cta& cta : ctas_) {
      hosts.emplace_back([&] { serve(cta); });
      prepared_.acquire();
    }
    ctas_[0].turn.release();
    for (auto& host : hosts) host.join();
  } else {
    for (Cta& cta : ctas_) prepare(cta);
    for (Cta* cta = &ctas_[0]; cta && !over_;) cta = turn(*cta);
  }
  grid = nullptr;
  return error_;
}

inline void Grid::prepare(Cta& cta) {
  try {
    cta.memory.prepare(shape_.dynamic_bytes);
  } catch (const std::exception& error) {
    fail(error.what());
  }
}

inline void Grid::serve(Cta& cta) {
  prepare(cta);
  prepared_.release();
  cta.turn.acquire();
  while (!over_) {
    Cta* const following = turn(cta);
    if (following == &cta) continue;
    if (following) {
      following->turn.release();
      cta.turn.acquire();
    } else {
      over_ = true;
    }
  }
  for (Cta& other : ctas_) other.turn.release();
}

// The CTA whose turn it is after this one's, none if it is over.
inline Cta* Grid::turn(Cta& cta) {
  try {
    for (unsigned n = quantum_; n > 0 && !cta.ready.empty() && !over_; --n) step(cta);
    return next();
  } catch (const std::exception& error) {
    fail(error.what());
    return nullptr;
  }
}

inline void Grid::step(Cta& cta) {
  ++steps_;
  cta.started = true;
  if (chance(lateness_)) happen();
  self = take(cta.ready);
  threadIdx = {self->number, 0, 0}, blockIdx = {cta.number, 0, 0};
  self->fiber.run();
  self = nullptr;
}

// The whole life of a thread.
inline void Grid::enter() {
  try {
    grid->kernel_();
    grid->leave(*self);
  } catch (const std::exception& error) {
    grid->fail("CTA " + std::to_string(self->cta->number) + ", thread " + std::to_string(self->number) + ": " +
               error.what());
  }
  self->fiber.hand_back();
}

inline void Grid::leave(Thread& thread) {
  if (!thread.sums.empty()) throw Error("ended before it waited for its products");
  Warp& warp = thread.warp();
  if (warp.meeting.arrived && std::strcmp(warp.instruction, "__syncwarp"))
    throw Error(std::string("ended while lanes of its warp wait for it at ") + warp.instruction);
  depart(warp.meeting);
  depart(thread.cta->meeting);
  depart(thread.cta->cluster->meeting);
  if (thread.cta->ended()) thread.cta->memory.check_guard();
  thread.waits_for = nullptr;
  changed();
}

inline void Grid::pause() {
  if (chance(kSleepy)) {
    later([thread = self] { thread->cta->ready.push_back(thread); });
    self->fiber.hand_back();
  } else if (chance(2)) {
    poll();
  }
}

inline void Grid::poll() {
  self->cta->ready.push_back(self);
  self->waits_for = "a change of what they poll";
  self->fiber.hand_back();
}

inline void Grid::wait_at(Gate& gate, const char* what) {
  gate.waiting.push_back(self);
  self->waits_for = what;
  changed();
  self->fiber.hand_back();
}

inline void Grid::open(Gate& gate) {
  for (Thread* thread : gate.waiting) {
    const auto wake = [thread] { thread->cta->ready.push_back(thread); };
    if (chance(kSleepy)) {
      later(wake);
    } else {
      wake();
    }
  }
  gate.waiting.clear();
  changed();
}

// The last to come lets all go on.
inline void Grid::meet(Meeting& meeting, const char* what) {
  if (++meeting.arrived < meeting.living) return wait_at(meeting.gate, what);
  meeting.arrived = 0;
  open(meeting.gate);
  pause();
}

// A thread that ended is not waited for.
inline void Grid::depart(Meeting& meeting) {
  if (--meeting.living > meeting.arrived || meeting.arrived == 0) return;
  meeting.arrived = 0;
  open(meeting.gate);
}

inline void Grid::post(Cta& from, std::function<void()> store) {
  from.posted.push_back(std::move(store));
  later([&from] {
    if (from.posted.empty()) return;
    const auto oldest = std::move(from.posted.front());
    from.posted.pop_front();
    oldest();
  });
}

inline void Grid::release(Cta& from) {
  for (const auto& store : from.posted) store();
  from.posted.clear();
}

inline void Grid::happen() {
  if (late_.empty()) return;
  for (size_t some = (late_.size() + kTogether - 1) / kTogether; some > 0; --some) take(late_)();
  changed();
}

// The CTA whose turn it is, none if all have ended.
inline Cta* Grid::next() {
  while (!over_) {
    std::vector<Cta*> able;
    size_t ready = 0;
    for (Cta& cta : ctas_) {
      if (!cta.ready.empty()) able.push_back(&cta);
      ready += cta.ready.size();
    }
    if (!able.empty() && steps_ - last_change_ < kFruitless * ready) return take(able);
    if (late_.empty()) {
      for (const Cta& cta : ctas_)
        if (!cta.ended()) throw Error(deadlock());
      return nullptr;
    }
    happen();
  }
  return nullptr;
}

inline std::string Grid::deadlock() const {
  std::map<std::string, std::string> ctas_where;
  for (const Cta& cta : ctas_) {
    std::map<std::string, unsigned> waiting;
    for (const Thread& thread : cta.threads)
      if (thread.waits_for) ++waiting[thread.waits_for];
    for (const auto& [what, threads] : waiting)
      ctas_where[std::to_string(threads) + " threads wait for " + what] += " " + std::to_string(cta.number);
  }
  std::string text = "nobody can go on:";
  for (const auto& [what, ctas] : ctas_where) text += " " + what + ", in CTA" + ctas + ";";
  text.back() = '.';
  return text;
}

inline void Grid::fail(const std::string& what) {
  if (error_.empty()) error_ = what;
  over_ = true;
}

template <class T>
T Grid::take(std::vector<T>& some) {
  T& drawn = some[random_() % some.size()];
  T taken = std::move(drawn);
  if (&drawn != &some.back()) drawn = std::move(some.back());
  some.pop_back();
  return taken;
}

}  // namespace fusedrnn::host
