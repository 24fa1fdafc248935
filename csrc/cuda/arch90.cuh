// What Hopper added to the instructions of arch.cuh: clusters of CTAs that reach each other's shared memory, barriers
// that count bytes, and (sm_90a alone) the products of a warpgroup.
#pragma once

#include "arch.cuh"
#include "descriptor.cuh"

namespace fusedrnn::arch {

// Clusters.

FUSEDRNN_DEVICE uint32_t cluster_rank() {
  uint32_t r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}

FUSEDRNN_DEVICE uint32_t cluster_size() {
  uint32_t n;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
  return n;
}

// All threads of all CTAs of the cluster meet; what was written before is seen after.
FUSEDRNN_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// The same for a thread that wrote nothing others are to see.
FUSEDRNN_DEVICE void cluster_barrier_without_release() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

FUSEDRNN_DEVICE uint32_t map_to_rank(uint32_t shared, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared), "r"(rank));
  return there;
}

FUSEDRNN_DEVICE uint32_t load_cluster(uint32_t from) {
  uint32_t v;
  asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(v) : "r"(from) : "memory");
  return v;
}

FUSEDRNN_DEVICE void store_cluster_16(uint32_t to, uint4 v) {
  asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

FUSEDRNN_DEVICE void store_relaxed_cluster(uint32_t to, uint32_t v) {
  asm volatile("st.relaxed.cluster.shared::cluster.b32 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}

FUSEDRNN_DEVICE void store_release_cluster(uint32_t to, uint32_t v) {
  asm volatile("st.release.cluster.shared::cluster.b32 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}

FUSEDRNN_DEVICE uint32_t load_acquire_cluster(uint32_t from) {
  uint32_t v;
  asm volatile("ld.acquire.cluster.shared::cluster.b32 %0, [%1];" : "=r"(v) : "r"(from) : "memory");
  return v;
}

// Barriers in shared memory (mbarrier). A phase ends once the expected arrivals were made and every expected byte has
// come; bytes may come before they are expected, within one phase.

FUSEDRNN_DEVICE void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes barrier_init visible to the other CTAs of the cluster and to asynchronous copies, once they have met.
FUSEDRNN_DEVICE void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

FUSEDRNN_DEVICE void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// What the thread wrote before is seen by those of the CTA that wait.
FUSEDRNN_DEVICE void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// True once the phase of this parity has ended; waits for a time that the hardware limits. What other CTAs of the cluster
// stored before is seen after: ptxas makes that an invalidation of the L1 cache, which holds no shared memory.
FUSEDRNN_DEVICE bool try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done;
}

// The same for what threads of this CTA stored, and the copy engine.
FUSEDRNN_DEVICE bool try_wait_cta(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done;
}

// Asynchronous stores into the shared memory of a CTA of the cluster; each counts its bytes on the barrier beside them.

FUSEDRNN_DEVICE void store_async_4(uint32_t to, uint32_t v, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(v),
               "r"(barrier)
               : "memory");
}

FUSEDRNN_DEVICE void store_async_8(uint32_t to, uint2 v, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to),
               "r"(v.x), "r"(v.y), "r"(barrier)
               : "memory");
}

FUSEDRNN_DEVICE void store_async_16(uint32_t to, uint4 v, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
      : "memory");
}

// The copy engine. `bytes` and both addresses are multiples of 16.

FUSEDRNN_DEVICE void copy_bulk_to_cluster(uint32_t to, uint32_t from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "r"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

FUSEDRNN_DEVICE void copy_bulk_from_global(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// Ordinary stores to shared memory of this thread come before what the copy engine or a warpgroup's product reads next.
FUSEDRNN_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Products of a warpgroup, four warps: D [64, N] += A [64, 16] B [16, N], bf16 with float32 sums. Warp w of the four has
// rows 16 w to 16 w + 15 of A and D in the fragments of mma_bf16, D in blocks of eight columns one after another.

FUSEDRNN_DEVICE void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FUSEDRNN_DEVICE void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until all products committed have ended. No use of the sums `d` moves up across it.
template <int count>
FUSEDRNN_DEVICE void warpgroup_wait(float (&d)[count]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

FUSEDRNN_DEVICE void wgmma_bf16(float (&d)[4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, 1, 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

FUSEDRNN_DEVICE void wgmma_bf16(float (&d)[8], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, 1, 1, 1, "
      "0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

FUSEDRNN_DEVICE void wgmma_bf16(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

}  // namespace fusedrnn::arch
