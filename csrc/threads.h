// How work is cut among torch's threads. Part of bindings.cpp.

constexpr int64_t least_work = 1 << 16;  // multiply-adds worth a second thread
constexpr int64_t least_step = 1 << 14;  // multiply-adds of a step worth meeting after it

int64_t threads_for(int64_t work, int64_t pieces) {
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

// f(share) for all B rows and all their units, which come in `panels`. row_work: multiply-adds of a row's step.
template <class F>
void in_shares(const Shape& s, int64_t row_work, int64_t panels, const F& f) {
  const int64_t threads = threads_for(row_work * s.B * s.T, s.B * panels),
                groups = std::clamp<int64_t>(s.B, 1, threads);
  const int64_t most = std::min(panels, row_work * (s.B / groups) / least_step);
  int64_t pieces = std::clamp<int64_t>(most, 1, threads / groups);
  if (pieces > 1 && !sharing.is_wanted()) pieces = 1;
  const bool shared = pieces > 1;
  std::vector<Meeting> meetings(shared ? groups : 0);
  const int64_t start = shared ? nanoseconds() : 0;
  in_pieces(groups * pieces, groups * pieces, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin / pieces; group * pieces < end; ++group) {
      const int64_t before = group * pieces;
      f(Share{s.B * group / groups, s.B * (group + 1) / groups, std::max(begin - before, int64_t(0)),
              std::min(end - before, pieces), pieces, shared ? &meetings[group] : nullptr});
    }
  });
  if (!shared || meetings[0].arrived == 0) return;  // nobody had to wait
  const int64_t spent = nanoseconds() - start;
  const auto in_vain = [&](const Meeting& meeting) { return meeting.waited > spent * pieces / 4; };
  sharing.went(std::none_of(meetings.begin(), meetings.end(), in_vain));
}
