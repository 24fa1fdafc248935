// A whole grid through global memory, and the ways from there to shared memory.
#include "cases.h"
#include "exchange.cuh"
#include "functions.cuh"
#include "grid.cuh"
#include "memory.cuh"

namespace {

using namespace micro;

constexpr int kReps = 6;

void through_global_memory() {
  for (int ctas : {4, 8}) {
    DeviceArray<uint32_t> counter(1);
    counter.zero();
    const Shape shape{.ctas = ctas, .threads = 64, .cooperative = true};
    cases::check("grid barrier, " + std::to_string(ctas) + " CTAs",
                 [&] { return run(shape, grid_barrier_kernel, kReps, counter); });
  }
  for (auto [ctas, group] : {std::pair{4, 4}, {8, 8}, {8, 4}}) {
    for (int packets : {1, 4, 24}) {
      DeviceArray<arch::Packet> slots(2 * ctas * packets);
      slots.zero();
      const Shape shape{.ctas = ctas, .threads = 32, .cooperative = true};
      cases::check("tagged packets, " + std::to_string(packets) + " each of " + std::to_string(ctas) +
                       " CTAs in groups of " + std::to_string(group),
                   [&] { return run(shape, tagged_packets_kernel, kReps, slots, group, packets); });
    }
  }
}

void into_shared_memory() {
  constexpr int bytes = 4096;
  for (int ctas : {1, 3}) {
    for (bool own : {true, false}) {
      DeviceArray<uint4> from(ctas * bytes / 16);
      from.write(numbered(ctas * bytes / 16));
      const std::string at = ", " + std::to_string(ctas) + (own ? " CTAs, each its own" : " CTAs, all the same");
      const auto fetch = [&](const char* by, auto kernel, int threads) {
        const Shape shape{.ctas = ctas, .threads = threads, .shared = bytes};
        cases::check(std::string("fetch by ") + by + at, [&] {
          run(shape, kernel, 1, from, bytes, own);  // what comes late is not there from the repetition before
          return run(shape, kernel, kReps, from, bytes, own);
        });
      };
      fetch("cp.async", fetch_kernel, 64);
      fetch("the copy engine", bulk_fetch_kernel, 32);
    }
  }
}

void loads_and_barriers() {
  constexpr int count = 1 << 10, reps = 300;
  DeviceArray<uint32_t> slots(count * kLine);
  cases::check("fill slots", [&] { return run({.ctas = 2, .threads = 64}, fill_slots_kernel, slots, count); });
  cases::check("global load",
               [&] { return run({.threads = 1}, global_latency_kernel, reps, slots, 5, last_slot(reps, count, 5)); });
  cases::check("shared load", [&] { return run({.threads = 64}, shared_latency_kernel, reps, last_slot(reps, 1024)); });
  cases::check("shared read", [&] { return run({.threads = 64}, shared_rate_kernel, reps, 512); });
  cases::check("syncthreads", [&] { return run({.threads = 80}, syncthreads_kernel, kReps); });
}

template <class F>
void function() {
  cases::check(F::name, [] {
    const Report report = run({.threads = 32}, function_latency_kernel<F>, 20, 0.7f);
    run({.threads = 64}, function_rate_kernel<F>, 20, 0.3f);
    const std::vector<float> x = {-30, -2.5f, -0.1f, 0, 1e-6f, 0.3f, 1, 9};
    DeviceArray<float> in(x.size()), out(x.size());
    in.write(x);
    run({.ctas = 2, .threads = 2}, function_values_kernel<F>, in, out, static_cast<int>(x.size()));
    errors(F::name, x, out.read());
    return report;
  });
}

template <class T>
void pair_function(uint32_t first) {
  cases::check(Pair<T>::name, [&] {
    const Report report = run({.threads = 64}, pair_rate_kernel<T>, 20, first);
    const std::vector<float> x = {-3, -0.1f, 0, 0.3f, 1, 9};
    DeviceArray<float> in(x.size()), out(x.size());
    in.write(x);
    run({.ctas = 2, .threads = 2}, pair_values_kernel<T>, in, out, static_cast<int>(x.size()));
    errors(Pair<T>::name, in.read(), out.read());
    return report;
  });
}

void all() {
  through_global_memory();
  into_shared_memory();
  loads_and_barriers();
  function<TanhApprox>();
  function<SigmoidApprox>();
  function<TanhExp2>();
  function<SigmoidExp2>();
  function<TanhLibrary>();
  pair_function<__half2>(0x34003400);
  pair_function<__nv_bfloat162>(0x3e803e80);
}

}  // namespace

int main(int count, char** arguments) { return cases::main_of(count, arguments, all); }
