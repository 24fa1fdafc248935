// What it costs the CTAs of a cluster to hand each other data through their shared memory.
#pragma once

#include "arch90.cuh"
#include "measure.cuh"
#include "memory.cuh"

namespace micro {

template <bool releases>
__global__ void cluster_barrier_kernel(Report* report, int reps) {
  Stopwatch watch;
  arch::cluster_barrier();
  watch.start();
#pragma unroll 8
  for (int i = 0; i < reps; ++i) {
    if constexpr (releases)
      arch::cluster_barrier();
    else
      arch::cluster_barrier_without_release();
  }
  watch.stop(report);
}

// How a message travels: as packets of 4, 8 or 16 bytes, each an asynchronous store, or whole, by the copy engine.
enum class Way { packets4 = 4, packets8 = 8, packets16 = 16, bulk = 0 };

// What a wait for a message orders: the stores of the cluster, which is what the memory model asks for, or only those of
// the CTA, which shows what the former costs.
enum class Scope { cluster, cta };

template <Scope scope>
__device__ bool try_wait(uint32_t barrier, uint32_t parity) {
  return scope == Scope::cluster ? arch::try_wait(barrier, parity) : arch::try_wait_cta(barrier, parity);
}

// The words of a message tell its step, its sender and their place.
__device__ uint32_t word_of(uint32_t step, uint32_t sender, uint32_t place) {
  return step * 2654435761u + (sender << 16) + place;
}

template <Way way>
__device__ void store_packet(uint32_t to, uint32_t step, uint32_t sender, uint32_t word, uint32_t barrier) {
  const auto w = [&](uint32_t k) { return word_of(step, sender, word + k); };
  if constexpr (way == Way::packets4) arch::store_async_4(to, w(0), barrier);
  if constexpr (way == Way::packets8) arch::store_async_8(to, {w(0), w(1)}, barrier);
  if constexpr (way == Way::packets16) arch::store_async_16(to, {w(0), w(1), w(2), w(3)}, barrier);
}

// Sends this step's message of `bytes`, a power of two, to `count` CTAs from rank `first` on. `inbox` and `barrier` are
// where the receiver has them, in this CTA's addresses; `outbox` is used by the copy engine alone. All threads call.
template <Way way>
__device__ void send(uint32_t step, uint32_t bytes, uint32_t first, uint32_t count, uint32_t inbox, uint32_t barrier,
                     uint32_t* outbox) {
  const uint32_t sender = arch::cluster_rank();
  if constexpr (way == Way::bulk) {
    for (uint32_t k = threadIdx.x; k < bytes / 4; k += blockDim.x) outbox[k] = word_of(step, sender, k);
    arch::fence_async_proxy();
    __syncthreads();
    for (uint32_t k = threadIdx.x; k < count; k += blockDim.x)
      arch::copy_bulk_to_cluster(arch::map_to_rank(inbox, first + k), arch::shared_address(outbox), bytes,
                                 arch::map_to_rank(barrier, first + k));
  } else {
    constexpr uint32_t packet = static_cast<uint32_t>(way);
    const uint32_t each = bytes / packet, bits = 31 - __clz(each);
    for (uint32_t k = threadIdx.x; k < count * each; k += blockDim.x) {
      const uint32_t rank = first + (k >> bits), place = k & (each - 1);
      store_packet<way>(arch::map_to_rank(inbox, rank) + place * packet, step, sender, place * (packet / 4),
                        arch::map_to_rank(barrier, rank));
    }
  }
}

// Threads of a CTA: no more than have something to send, since one that sends nothing may fall behind the others by
// more than a phase. With the copy engine all meet at each step anyway.
inline int threads_for(Way way, int messages, int bytes) {
  if (way == Way::bulk) return 128;
  return std::min(256, messages * bytes / static_cast<int>(way));
}

__device__ void count_wrong(Report* report, const uint32_t* inbox, uint32_t bytes, uint32_t step, uint32_t sender) {
  for (uint32_t k = threadIdx.x; k < bytes / 4; k += blockDim.x)
    if (inbox[k] != word_of(step, sender, k)) atomicAdd(&report->wrong, 1u);
}

// Dynamic shared memory of both kernels: inboxes, outboxes, barriers.
inline size_t boxes(int inboxes, int outboxes, int bytes) { return size_t(inboxes + outboxes) * bytes + 2 * 8; }

// Each step every CTA sends its message to every CTA of the cluster, itself too, and goes on once all have come: what a
// recurrence does with its slices of h. Nothing but the messages holds the threads of a CTA together, and a thread may
// have a part in those to one CTA alone. While thread t of CTA Y still waits for messages s, or reads them, a CTA Z that
// it sends to has not all messages s + 1; so no message s + 2 of Z is sent, no CTA has all messages s + 2, and none sends
// message s + 3. So three inboxes by turns do, and two barriers: t finds the phase of s ended, that of s + 2 not.
constexpr uint32_t kInboxes = 3;

template <Way way, Scope scope>
__global__ void exchange_kernel(Report* report, int reps, uint32_t bytes, bool verify) {
  FUSEDRNN_DYNAMIC_SHARED(uint32_t, memory);
  const uint32_t n = arch::cluster_size(), rank = arch::cluster_rank(), words = bytes / 4;
  uint32_t* const outbox = memory + kInboxes * n * words;
  const uint32_t barriers = arch::shared_address(outbox + 2 * words), inboxes = arch::shared_address(memory);
  if (threadIdx.x == 0) {
    for (uint32_t parity = 0; parity < 2; ++parity) {
      arch::barrier_init(barriers + 8 * parity, 1);
      arch::arrive_expecting(barriers + 8 * parity, n * bytes);
    }
    arch::fence_barrier_init();
  }
  arch::cluster_barrier();
  Patience patience(report);
  Stopwatch watch;
  watch.start();
  for (uint32_t step = 0, turn = 0; step < reps; ++step, turn = turn + 1 < kInboxes ? turn + 1 : 0) {
    const uint32_t parity = step & 1, barrier = barriers + 8 * parity, inbox = inboxes + turn * n * bytes;
    send<way>(step, bytes, 0, n, inbox + rank * bytes, barrier, outbox + parity * words);
    patience.wait([&] { return try_wait<scope>(barrier, step >> 1 & 1); });
    __syncwarp();
    if (threadIdx.x == 0) arch::arrive_expecting(barrier, n * bytes);
    if (verify) {
      for (uint32_t from = 0; from < n; ++from)
        count_wrong(report, memory + (turn * n + from) * words, bytes, step, from);
    }
  }
  watch.stop(report);
  arch::cluster_barrier();
}

// One message goes round: each CTA waits for it and sends it on. A repetition is a lap of `cluster size` hops. A message
// comes again only after it went round, so one inbox and one barrier do.
template <Way way, Scope scope>
__global__ void ring_kernel(Report* report, int reps, uint32_t bytes, bool verify) {
  FUSEDRNN_DYNAMIC_SHARED(uint32_t, memory);
  const uint32_t n = arch::cluster_size(), rank = arch::cluster_rank(), words = bytes / 4;
  const uint32_t before = (rank + n - 1) % n, after = (rank + 1) % n;
  uint32_t* const outbox = memory + words;
  const uint32_t inbox = arch::shared_address(memory), barrier = arch::shared_address(outbox + words);
  if (threadIdx.x == 0) {
    arch::barrier_init(barrier, 1);
    arch::arrive_expecting(barrier, bytes);
    arch::fence_barrier_init();
  }
  arch::cluster_barrier();
  Patience patience(report);
  Stopwatch watch;
  watch.start();
  if (rank == 0) send<way>(0, bytes, after, 1, inbox, barrier, outbox);
  for (uint32_t lap = 0; lap < reps; ++lap) {
    patience.wait([&] { return try_wait<scope>(barrier, lap & 1); });
    __syncwarp();
    if (threadIdx.x == 0) arch::arrive_expecting(barrier, bytes);
    if (verify) count_wrong(report, memory, bytes, lap, before);
    const uint32_t next = rank == 0 ? lap + 1 : lap;
    if (next < reps) send<way>(next, bytes, after, 1, inbox, barrier, outbox);
  }
  watch.stop(report);
  arch::cluster_barrier();
}

template <class Kernel>
void exchanged(const char* measure, const Shape& shape, const char* packet, Kernel kernel, int bytes, int messages) {
  constexpr int verified = 500;
  measured(
      measure, At()("ctas", shape.cluster)("bytes", bytes)("packet", packet),
      [=](int reps) { return run(shape, kernel, reps, bytes, false); }, {double(messages) * bytes, "bytes"},
      [=] { run(shape, kernel, verified, bytes, true); });
}

template <Way way, Scope scope = Scope::cluster>
void exchanges_by(const char* packet) {
  for (int n : {2, 4, 8, 16}) {
    for (int bytes : {16, 64, 256, 1024, 4096}) {
      Shape shape{
          .ctas = n, .threads = threads_for(way, n, bytes), .cluster = n, .shared = boxes(kInboxes * n, 2, bytes)};
      exchanged("exchange", shape, packet, exchange_kernel<way, scope>, bytes, n);
      shape.threads = threads_for(way, 1, bytes), shape.shared = boxes(1, 1, bytes);
      exchanged("ring", shape, packet, ring_kernel<way, scope>, bytes, n);
    }
  }
}

inline void exchanges() {
  exchanges_by<Way::packets16>("16");
  exchanges_by<Way::bulk>("copy engine");
  exchanges_by<Way::packets8>("8");
  exchanges_by<Way::packets4>("4");
  exchanges_by<Way::packets16, Scope::cta>("16, ordered in the CTA alone");
}

// Stores into the next CTA that nobody waits for, 16 bytes a lane: what a warp pays to hand them over. Eight slots by
// turns, since of two stores to one place the compiler drops the first.
__global__ void posted_stores_kernel(Report* report, int reps) {
  constexpr int slots = 8, widest = 256;
  __shared__ uint4 inbox[slots][widest];
  const uint32_t mine = arch::shared_address(&inbox[0][threadIdx.x]);
  const uint32_t to = arch::map_to_rank(mine, (arch::cluster_rank() + 1) % arch::cluster_size());
  arch::cluster_barrier();
  Stopwatch watch;
  watch.start();
  for (int i = 0; i < reps; i += slots) {
#pragma unroll
    for (int k = 0; k < slots; ++k)
      arch::store_cluster_16(to + k * widest * 16, {static_cast<uint32_t>(i + k), 0, threadIdx.x, 0});
  }
  watch.stop(report);
  arch::cluster_barrier();
  for (int k = 0; k < slots; ++k) {
    const uint4 last = inbox[k][threadIdx.x];
    if (last.x != reps - slots + k || last.z != threadIdx.x) atomicAdd(&report->wrong, 1u);
  }
}

// Two CTAs answer each other by a word that is polled; a repetition is there and back. A poll acquires, which takes more
// than the load: an upper bound.
template <bool release>
__global__ void answer_kernel(Report* report, int reps) {
  __shared__ uint32_t word;
  const uint32_t rank = arch::cluster_rank(), mine = arch::shared_address(&word);
  const uint32_t theirs = arch::map_to_rank(mine, 1 - rank);
  word = 0;
  arch::cluster_barrier();
  Patience patience(report);
  Stopwatch watch;
  watch.start();
  for (uint32_t i = 1; i <= reps; ++i) {
    if (rank == 1) patience.wait([&] { return arch::load_acquire_cluster(mine) == i; });
    if constexpr (release)
      arch::store_release_cluster(theirs, i);
    else
      arch::store_relaxed_cluster(theirs, i);
    if (rank == 0) patience.wait([&] { return arch::load_acquire_cluster(mine) == i; });
  }
  watch.stop(report);
  arch::cluster_barrier();
}

// The chain of shared_latency_kernel through the memory of the next CTA.
__global__ void remote_latency_kernel(Report* report, int reps, uint32_t last) {
  constexpr uint32_t count = 1024;
  __shared__ uint32_t slots[count];
  const uint32_t mine = arch::shared_address(slots);
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) slots[i] = 4 * next_slot(i, count);
  const uint32_t base = arch::map_to_rank(mine, (arch::cluster_rank() + 1) % arch::cluster_size());
  arch::cluster_barrier();
  Stopwatch watch;
  watch.start();
  uint32_t at = 0;
#pragma unroll 16
  for (int i = 0; i < reps; ++i) at = arch::load_cluster(base + at);
  watch.stop(report);
  if (at != 4 * last) atomicAdd(&report->wrong, 1u);
  arch::cluster_barrier();
}

__global__ __launch_bounds__(256, 1) void resident_kernel(Report*) {}

// How many clusters the chip holds at once when each CTA has `shared` bytes.
inline void most_clusters() {
  for (int n : {2, 4, 8, 16}) {
    for (int kilobytes : {32, 100, 164, 227}) {
      const Shape shape{.ctas = n, .cluster = n, .shared = size_t(kilobytes) << 10};
      allow(resident_kernel, shape);
      const Config config(shape);
      int clusters = 0;
      check(cudaOccupancyMaxActiveClusters(&clusters, resident_kernel, &config));
      fact("clusters at once", At()("ctas", n)("threads", 256)("shared KB", kilobytes), clusters, "clusters");
    }
  }
}

inline void clusters() {
  most_clusters();
  for (int n : {2, 4, 8, 16}) {
    const Shape shape{.ctas = n, .cluster = n};
    measured("cluster barrier", At()("ctas", n)("order", "release, acquire"),
             [=](int reps) { return run(shape, cluster_barrier_kernel<true>, reps); });
    measured("cluster barrier", At()("ctas", n)("order", "acquire"),
             [=](int reps) { return run(shape, cluster_barrier_kernel<false>, reps); });
  }
  const Shape two{.ctas = 2, .threads = 1, .cluster = 2};
  measured("remote load", At(), [=](int reps) { return run(two, remote_latency_kernel, reps, last_slot(reps, 1024)); });
  measured("answer", At()("order", "relaxed"), [=](int reps) { return run(two, answer_kernel<false>, reps); });
  measured("answer", At()("order", "release"), [=](int reps) { return run(two, answer_kernel<true>, reps); });
  for (int n : {2, 8, 16}) {
    for (int warps : {1, 4, 8}) {
      const Shape shape{.ctas = n, .threads = 32 * warps, .cluster = n};
      measured("posted stores", At()("ctas", n)("warps", warps),
               [=](int reps) { return run(shape, posted_stores_kernel, reps); }, {512.0 * warps, "bytes"});
    }
  }
}

// As fetch_kernel, by the copy engine; one warp, so that no thread falls behind.
__global__ void bulk_fetch_kernel(Report* report, int reps, const uint4* from, int bytes, bool own) {
  FUSEDRNN_DYNAMIC_SHARED(uint4, data);
  __shared__ uint64_t barrier_memory;
  const uint32_t barrier = arch::shared_address(&barrier_memory), to = arch::shared_address(data);
  const uint4* source = from + (own ? size_t(blockIdx.x) * (bytes / 16) : 0);
  if (threadIdx.x == 0) {
    arch::barrier_init(barrier, 1);
    arch::fence_barrier_init();
  }
  __syncwarp();
  Patience patience(report);
  Stopwatch watch;
  watch.start();
  for (int i = 0; i < reps; ++i) {
    if (threadIdx.x == 0) {
      arch::arrive_expecting(barrier, bytes);
      arch::copy_bulk_from_global(to, source, bytes, barrier);
    }
    patience.wait([&] { return arch::try_wait(barrier, i & 1); });
    __syncwarp();
  }
  watch.stop(report);
  for (int k = threadIdx.x; k < bytes / 16; k += blockDim.x) {
    const uint32_t want = (source - from) + k;
    if (data[k].x != want || data[k].w != ~want) atomicAdd(&report->wrong, 1u);
  }
}

}  // namespace micro
