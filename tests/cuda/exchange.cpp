// Clusters: messages by every way, in rings and from all to all, barriers, stores and polled words.
#include "cases.h"
#include "exchange.cuh"

namespace {

using namespace micro;

constexpr int kReps = 7;

template <Way way, Scope scope = Scope::cluster>
void messages_by(const std::string& packet) {
  for (int n : {2, 4, 8, 16}) {
    for (int bytes : {16, 64, 256}) {
      const std::string at = " by " + packet + ", " + std::to_string(n) + " CTAs, " + std::to_string(bytes) + " bytes";
      const Shape all{
          .ctas = n, .threads = threads_for(way, n, bytes), .cluster = n, .shared = boxes(kInboxes * n, 2, bytes)};
      cases::check("exchange" + at, [&] { return run(all, exchange_kernel<way, scope>, kReps, bytes, true); });
      const Shape one{.ctas = n, .threads = threads_for(way, 1, bytes), .cluster = n, .shared = boxes(1, 1, bytes)};
      cases::check("ring" + at, [&] { return run(one, ring_kernel<way, scope>, kReps, bytes, true); });
    }
  }
}

void all() {
  messages_by<Way::packets4>("4 bytes");
  messages_by<Way::packets8>("8 bytes");
  messages_by<Way::packets16>("16 bytes");
  messages_by<Way::bulk>("the copy engine");
  messages_by<Way::packets16, Scope::cta>("16 bytes, ordered in the CTA alone");
  for (int n : {2, 8, 16}) {
    const Shape shape{.ctas = 2 * n, .threads = 64, .cluster = n};  // two clusters
    const std::string at = ", " + std::to_string(n) + " CTAs";
    cases::check("cluster barrier" + at, [&] { return run(shape, cluster_barrier_kernel<true>, kReps); });
    cases::check("cluster barrier without release" + at,
                 [&] { return run(shape, cluster_barrier_kernel<false>, kReps); });
    cases::check("posted stores" + at, [&] { return run(shape, posted_stores_kernel, 24); });
  }
  const Shape two{.ctas = 2, .threads = 1, .cluster = 2};
  cases::check("remote load", [&] { return run(two, remote_latency_kernel, 100, last_slot(100, 1024)); });
  cases::check("answer, relaxed", [&] { return run(two, answer_kernel<false>, kReps); });
  cases::check("answer, release", [&] { return run(two, answer_kernel<true>, kReps); });
}

}  // namespace

int main(int count, char** arguments) { return cases::main_of(count, arguments, all); }
