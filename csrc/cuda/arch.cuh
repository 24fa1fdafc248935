// Every hardware instruction the CUDA code uses, each a function of its name; what is above is ordinary C++.
//
// Semantics, fragment layouts and memory order are those of NVIDIA's PTX ISA (sections "Parallel Synchronization and
// Communication Instructions", "Warp Level Matrix Instructions", "Asynchronous Warpgroup Level Matrix Instructions").
// Shared memory is addressed by 32-bit numbers: those of the CTA itself name its own memory in the cluster's window too,
// and `map_to_rank` turns one into the same place in the CTA of another rank.
//
// host/ has the same functions for the CPU, so that kernels can be run and checked where there is no GPU.
#pragma once

#include <cstdint>

namespace fusedrnn::arch {

#define FUSEDRNN_DEVICE __device__ __forceinline__

// Declares `name`, the dynamic shared memory of the CTA, as T*.
#define FUSEDRNN_DYNAMIC_SHARED(T, name) extern __shared__ __align__(1024) T name[]

// Clocks.

FUSEDRNN_DEVICE uint64_t cycles() {
  uint64_t t;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(t)::"memory");
  return t;
}

FUSEDRNN_DEVICE uint64_t nanoseconds() {
  uint64_t t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory");
  return t;
}

// Shared memory.

FUSEDRNN_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

FUSEDRNN_DEVICE uint32_t load_shared(uint32_t from) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(from) : "memory");
  return v;
}

FUSEDRNN_DEVICE uint4 load_shared_16(uint32_t from) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}

FUSEDRNN_DEVICE float4 load_shared_floats(uint32_t from) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(from)
               : "memory");
  return v;
}

// Four 8 by 8 tiles of 16-bit elements; lane i gives the address of row i % 8 of tile i / 8.
FUSEDRNN_DEVICE uint4 load_tiles(uint32_t row) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(row)
               : "memory");
  return v;
}

// The same of the transposed tiles.
FUSEDRNN_DEVICE uint4 load_tiles_transposed(uint32_t row) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(row)
               : "memory");
  return v;
}

// The warp's number, which the compiler then knows to be the same for all of its lanes, but not from one use to the next.
FUSEDRNN_DEVICE int warp() { return __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); }

// Between lanes of a warp, all of which take part: what the lane whose number differs in the bits of `lanes` gives.
FUSEDRNN_DEVICE float exchange(float given, int lanes) {
  float taken;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(taken) : "f"(given), "r"(lanes));
  return taken;
}

// Ends the kernel, and with it all work of the process on this GPU.
FUSEDRNN_DEVICE void trap() { asm volatile("trap;"); }

// Global memory, past the L1 cache.

FUSEDRNN_DEVICE uint32_t load_l2(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.global.cg.b32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}

FUSEDRNN_DEVICE void copy_16_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

FUSEDRNN_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// What this thread began to copy since it last did this is a group, which may be empty.
FUSEDRNN_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups but the latest `groups`.
template <int groups>
FUSEDRNN_DEVICE void wait_for_copies_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// Between CTAs of a grid, through L2.

FUSEDRNN_DEVICE void add_release_gpu(uint32_t* to, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

FUSEDRNN_DEVICE uint32_t load_acquire_gpu(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}

// 16 bytes that are written and read whole, so that a tag among them vouches for the rest.
struct alignas(16) Packet {
  uint64_t low, high;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 700
FUSEDRNN_DEVICE void store_relaxed_gpu(Packet* to, Packet v) {
  asm volatile("{ .reg .b128 whole; mov.b128 whole, {%1, %2}; st.relaxed.gpu.global.b128 [%0], whole; }" ::"l"(to),
               "l"(v.low), "l"(v.high)
               : "memory");
}

FUSEDRNN_DEVICE Packet load_relaxed_gpu(const Packet* from) {
  Packet v;
  asm volatile("{ .reg .b128 whole; ld.relaxed.gpu.global.b128 whole, [%2]; mov.b128 {%0, %1}, whole; }"
               : "=l"(v.low), "=l"(v.high)
               : "l"(from)
               : "memory");
  return v;
}
#endif

// Transcendental functions of the special unit, and the two ways to tanh and sigmoid built on them.

FUSEDRNN_DEVICE float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two values in 16 bits each.
FUSEDRNN_DEVICE uint32_t tanh_approx_f16x2(uint32_t x) {
  uint32_t y;
  asm("tanh.approx.f16x2 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
FUSEDRNN_DEVICE uint32_t tanh_approx_bf16x2(uint32_t x) {
  uint32_t y;
  asm("tanh.approx.bf16x2 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
#endif

FUSEDRNN_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

FUSEDRNN_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Matrix products of a warp, D += A B with float32 sums. With g = lane / 4 and t = lane % 4, 16-bit elements:
//   A 16 by 16   a[0] row g, columns 2t and 2t + 1; a[1] row g + 8; a[2], a[3] the same rows, columns 8 further
//   B 16 by 8    b[0] rows 2t and 2t + 1, column g; b[1] rows 8 further
//   D 16 by 8    d[0], d[1] row g, columns 2t and 2t + 1; d[2], d[3] row g + 8
// TF32: A 16 by 8, B 8 by 8, one element a register:
//   a[0] row g, column t; a[1] row g + 8; a[2], a[3] the same rows, column t + 4;  b[0] row t, column g; b[1] row t + 4

FUSEDRNN_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

FUSEDRNN_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

FUSEDRNN_DEVICE float nearest_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

FUSEDRNN_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace fusedrnn::arch
