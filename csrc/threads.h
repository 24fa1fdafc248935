// How work is cut among torch's threads. Part of bindings.cpp.

constexpr int64_t least_work = 1 << 16;  // multiply-adds worth a second thread

// OpenMP waits, in a forked child too, for the threads of a pool that its parent had, and they were not forked. A child of a
// process of several threads therefore works alone, and leaves no sum to GEMMs.
bool works_alone = false;

// Of this process; 2 where the system does not tell.
int64_t count_threads() {
  DIR* tasks = opendir("/proc/self/task");
  if (!tasks) return 2;
  int64_t count = 0;
  while (const dirent* task = readdir(tasks)) count += task->d_name[0] != '.';
  closedir(tasks);
  return count;
}

const struct ForkWatch {
  ForkWatch() {
    static bool several = false;
    pthread_atfork([] { several = count_threads() > 1; }, nullptr, [] { works_alone |= several; });
  }
} fork_watch;

int64_t threads_for(int64_t work, int64_t pieces) {
  if (works_alone) return 1;
  const int64_t wanted = std::max<int64_t>(1, work / least_work);
  return std::min({int64_t(torch::stable::get_num_threads()), wanted, std::max<int64_t>(1, pieces)});
}

// While one lives, its thread reads numbers below the smallest normal one as zeros and writes zeros in their place: a
// vector with one of them takes the processor a hundred times as long.
#if defined(__x86_64__)
class NoDenormals {
 public:
  NoDenormals() { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON); }
  ~NoDenormals() { _mm_setcsr(before_); }
  NoDenormals(const NoDenormals&) = delete;
  NoDenormals& operator=(const NoDenormals&) = delete;

 private:
  const unsigned before_ = _mm_getcsr();
};
#else
struct NoDenormals {
  ~NoDenormals() {}
};
#endif

// f(first, last) over [0, n) in `threads` pieces.
template <class F>
void in_pieces(int64_t n, int64_t threads, const F& f) {
  const auto run = [&](int64_t begin, int64_t end) {
    const NoDenormals flushed;
    f(n * begin / threads, n * end / threads);
  };
  if (threads <= 1) return run(0, threads);
  torch::stable::parallel_for(0, threads, 1, run);
}

// Sharing rows is worth nothing to threads that have to wait for a processor. After a call in which they waited more than
// they worked, so many calls do without, and twice as many each time it happens again.
struct Sharing {
  std::atomic<int64_t> calls_without = 0, next_pause = fewest;
  std::atomic<bool> always = false;  // for tests
  static constexpr int64_t fewest = 8, most = 1024;

  bool is_wanted() {
    if (always || calls_without.load(std::memory_order_relaxed) <= 0) return true;
    calls_without.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }
  void went(bool well) {
    if (always) return;
    const int64_t pause = next_pause.load(std::memory_order_relaxed);
    if (!well) calls_without.store(pause, std::memory_order_relaxed);
    next_pause.store(std::clamp(well ? pause / 2 : pause * 2, fewest, most), std::memory_order_relaxed);
  }
} sharing;

// How threads cut a time loop: into groups of batch rows, whose `pieces` threads own units each and meet after every step.
struct Cut {
  int64_t groups, pieces;
};

// For measurements of the model below: taken in its place where it has pieces.
Cut forced_cut{0, 0};

// What a time loop costs a core: multiply-adds a row and step, bytes of the weights read in a step, multiply-adds a cycle.
struct StepCost {
  int64_t row_work, weight_bytes, rate;
};

// Cycles of a step. A core multiplies, at four fifths of its peak, and reads its weights, whichever takes longer and half of
// the other; weights beyond its own cache come at a third of the speed. Where threads meet, a twentieth of the step is lost
// on the slower of them. `benchmarks/test_cuts.py` measures what comes of it.
int64_t step_cycles(const Cut& cut, int64_t B, const StepCost& cost) {
  constexpr int64_t from_level2 = 32, from_beyond = 11, meeting = 1500;  // bytes a cycle; cycles
  static const int64_t level2 = std::max<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE), 256 << 10);
  const int64_t rows = (B + cut.groups - 1) / cut.groups, bytes = cost.weight_bytes / cut.pieces;
  const int64_t multiplying = rows * cost.row_work * 5 / (4 * cut.pieces * cost.rate),
                reading = bytes / (bytes > level2 / 2 ? from_beyond : from_level2);
  const int64_t alone = std::max(multiplying, reading) + std::min(multiplying, reading) / 2;
  return cut.pieces == 1 ? alone : alone + alone / 20 + meeting;
}

// The cut of least cost. Bits do not depend on it.
Cut best_cut(int64_t threads, int64_t B, int64_t panels, const StepCost& cost) {
  Cut best{1, 1};
  int64_t least = step_cycles(best, B, cost);
  for (int64_t groups = std::clamp<int64_t>(B, 1, threads); groups > 0; --groups) {
    for (int64_t pieces = 1; pieces <= std::min(threads / groups, panels); ++pieces) {
      const int64_t cycles = step_cycles({groups, pieces}, B, cost);
      if (cycles < least) best = {groups, pieces}, least = cycles;
    }
  }
  return best;
}

// f(share) for all B rows and all their units, which come in `panels`. row_work: all multiply-adds of a row and step.
template <class F>
void in_shares(const Shape& s, int64_t row_work, int64_t panels, const StepCost& cost, const F& f) {
  const int64_t threads = threads_for(row_work * s.B * s.T, s.B * panels);
  auto [groups, pieces] = best_cut(threads, s.B, panels, cost);
  if (forced_cut.pieces > 0) {
    groups = std::clamp<int64_t>(forced_cut.groups, 1, std::max<int64_t>(1, s.B));
    pieces = std::clamp<int64_t>(forced_cut.pieces, 1, panels);
  }
  if (pieces > 1 && !sharing.is_wanted()) groups = std::clamp<int64_t>(s.B, 1, threads), pieces = 1;
  const bool shared = pieces > 1;
  std::vector<Meeting> meetings(shared ? groups : 0);
  const int64_t start = shared ? nanoseconds() : 0;
  in_pieces(groups * pieces, groups * pieces, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin / pieces; group * pieces < end; ++group) {
      const int64_t before = group * pieces;
      try {
        f(Share{s.B * group / groups, s.B * (group + 1) / groups, std::max(begin - before, int64_t(0)),
                std::min(end - before, pieces), pieces, shared ? &meetings[group] : nullptr});
      } catch (...) {  // memory ran out: those who share its rows wait for this thread no longer
        for (; shared && group * pieces < end; ++group)
          __atomic_fetch_add(&meetings[group].arrived, int64_t{1} << 48, __ATOMIC_RELEASE);
        throw;
      }
    }
  });
  if (!shared || meetings[0].arrived == 0) return;  // nobody had to wait
  const int64_t spent = nanoseconds() - start;
  const auto in_vain = [&](const Meeting& meeting) { return meeting.waited > spent * pieces / 4; };
  sharing.went(std::none_of(meetings.begin(), meetings.end(), in_vain));
}
