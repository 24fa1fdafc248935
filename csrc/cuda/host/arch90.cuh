// The functions of csrc/cuda/arch90.cuh on the host: see mbarrier.h and wgmma.h.
#pragma once

#include "arch.cuh"
#include "descriptor.cuh"
#include "wgmma.h"

namespace fusedrnn::arch {

// Clusters.

FUSEDRNN_DEVICE uint32_t cluster_rank() { return host::self->cta->rank; }
FUSEDRNN_DEVICE uint32_t cluster_size() { return host::self->cta->cluster->ctas.size(); }

FUSEDRNN_DEVICE void cluster_barrier_without_release() {
  host::grid->meet(host::self->cta->cluster->meeting, "the barrier of their cluster");
}

FUSEDRNN_DEVICE void cluster_barrier() {
  host::grid->release(*host::self->cta);
  cluster_barrier_without_release();
}

FUSEDRNN_DEVICE uint32_t map_to_rank(uint32_t shared, uint32_t rank) {
  if (rank >= cluster_size()) throw host::Error("maps to a rank that its cluster does not have");
  return (shared & ((1u << host::kRankShift) - 1)) | (rank + 1) << host::kRankShift;
}

FUSEDRNN_DEVICE uint32_t load_cluster(uint32_t from) {
  host::grid->release(*host::self->cta);  // a thread sees what it stored itself
  uint32_t v;
  std::memcpy(&v, host::place(from, 4, 4).at, 4);
  return v;
}

FUSEDRNN_DEVICE void store_cluster_16(uint32_t to, uint4 v) {
  const host::Place target = host::place(to, 16, 16);
  host::grid->post(*host::self->cta, [target, v] {
    if (target.cta->ended()) throw host::Error("a store came after its CTA had ended");
    std::memcpy(target.at, &v, 16);
  });
  host::grid->pause();
}

FUSEDRNN_DEVICE void store_relaxed_cluster(uint32_t to, uint32_t v) {
  std::memcpy(host::place(to, 4, 4).at, &v, 4);
  host::grid->changed();
  host::grid->pause();
}

FUSEDRNN_DEVICE void store_release_cluster(uint32_t to, uint32_t v) {
  host::grid->release(*host::self->cta);
  store_relaxed_cluster(to, v);
}

FUSEDRNN_DEVICE uint32_t load_acquire_cluster(uint32_t from) {
  host::grid->poll();
  return load_cluster(from);
}

// Barriers in shared memory.

FUSEDRNN_DEVICE void barrier_init(uint32_t barrier, uint32_t arrivals) { host::initialise(barrier, arrivals); }
FUSEDRNN_DEVICE void fence_barrier_init() {}
FUSEDRNN_DEVICE void arrive_expecting(uint32_t barrier, uint32_t bytes) { host::arrive(barrier, bytes); }
FUSEDRNN_DEVICE void arrive(uint32_t barrier) { host::arrive(barrier, 0); }
FUSEDRNN_DEVICE bool try_wait(uint32_t barrier, uint32_t parity) { return host::try_wait(barrier, parity); }
FUSEDRNN_DEVICE bool try_wait_cta(uint32_t barrier, uint32_t parity) { return host::try_wait(barrier, parity); }

// Asynchronous stores.

FUSEDRNN_DEVICE void store_async_4(uint32_t to, uint32_t v, uint32_t barrier) { host::store_later(to, v, barrier); }
FUSEDRNN_DEVICE void store_async_8(uint32_t to, uint2 v, uint32_t barrier) { host::store_later(to, v, barrier); }
FUSEDRNN_DEVICE void store_async_16(uint32_t to, uint4 v, uint32_t barrier) { host::store_later(to, v, barrier); }

// The copy engine.

FUSEDRNN_DEVICE void copy_bulk_to_cluster(uint32_t to, uint32_t from, uint32_t bytes, uint32_t barrier) {
  const host::Place source = host::place(from, bytes, 16);
  if (source.cta != host::self->cta) throw host::Error("the copy engine reads shared memory of its own CTA alone");
  host::copy_later(to, source.at, bytes, barrier, [cta = source.cta] {
    if (cta->ended()) throw host::Error("a copy reads from a CTA that has ended");
  });
}

FUSEDRNN_DEVICE void copy_bulk_from_global(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  host::copy_later(to, static_cast<const std::byte*>(from), bytes, barrier, [] {});
}

FUSEDRNN_DEVICE void fence_async_proxy() {}

// Products of a warpgroup.

FUSEDRNN_DEVICE void warpgroup_fence() { host::wgmma_fence(); }
FUSEDRNN_DEVICE void warpgroup_commit() { host::wgmma_commit(); }

template <int count>
FUSEDRNN_DEVICE void warpgroup_wait(float (&)[count]) {
  host::wgmma_wait();
}

template <int count>
FUSEDRNN_DEVICE void wgmma_bf16(float (&d)[count], const uint32_t (&a)[4], uint64_t b) {
  static_assert(count == 4 || count == 8 || count == 16);
  host::wgmma(d, count, a, b);
}

}  // namespace fusedrnn::arch
