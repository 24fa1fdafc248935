// The functions of csrc/cuda/arch.cuh on the host: see grid.h for how threads run, warps.h for the fragments.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "mbarrier.h"
#include "warps.h"

#define FUSEDRNN_DEVICE inline
#define FUSEDRNN_DYNAMIC_SHARED(T, name) \
  T* const name = reinterpret_cast<T*>(::fusedrnn::host::self->cta->memory.dynamic())

namespace fusedrnn::arch {

// Clocks count steps of the whole launch.

FUSEDRNN_DEVICE uint64_t cycles() { return host::grid->steps(); }
FUSEDRNN_DEVICE uint64_t nanoseconds() { return host::grid->steps(); }

// Shared memory.

FUSEDRNN_DEVICE uint32_t shared_address(const void* p) { return host::self->cta->memory.offset_of(p); }

template <class T>
T load_own(uint32_t from) {
  T v;
  std::memcpy(&v, host::own_place(from, sizeof v), sizeof v);
  return v;
}

FUSEDRNN_DEVICE uint32_t load_shared(uint32_t from) { return load_own<uint32_t>(from); }
FUSEDRNN_DEVICE uint4 load_shared_16(uint32_t from) { return load_own<uint4>(from); }

FUSEDRNN_DEVICE float4 load_shared_floats(uint32_t from) { return load_own<float4>(from); }

FUSEDRNN_DEVICE uint4 load_tiles(uint32_t row) {
  host::TileOperands mine{host::own_place(row, 16), {}};
  host::load_tiles(mine, false);
  return {mine.tiles[0], mine.tiles[1], mine.tiles[2], mine.tiles[3]};
}

FUSEDRNN_DEVICE uint4 load_tiles_transposed(uint32_t row) {
  host::TileOperands mine{host::own_place(row, 16), {}};
  host::load_tiles(mine, true);
  return {mine.tiles[0], mine.tiles[1], mine.tiles[2], mine.tiles[3]};
}

FUSEDRNN_DEVICE int warp() { return static_cast<int>(threadIdx.x) / 32; }

FUSEDRNN_DEVICE float exchange(float given, int lanes) { return host::exchange(given, lanes); }

FUSEDRNN_DEVICE void trap() { throw host::Error("gave up waiting"); }

// Global memory.

FUSEDRNN_DEVICE uint32_t load_l2(const uint32_t* from) { return *from; }

// Half of the copies happen at a random moment, the others not before they are waited for.
FUSEDRNN_DEVICE void copy_16_async(uint32_t to, const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16) throw host::Error("copies from an address that is not aligned");
  std::byte* const target = host::own_place(to, 16);
  auto& groups = host::self->copies;
  if (groups.empty()) groups.push_back(std::make_shared<host::Copies>());
  const auto group = groups.back();
  if (host::grid->chance(2)) {
    group->awaited.push_back([target, from] { std::memcpy(target, from, 16); });
  } else {
    ++group->under_way;
    host::grid->later([target, from, group, thread = host::self] {
      std::memcpy(target, from, 16);
      if (--group->under_way == 0) host::grid->open(thread->copied);
    });
  }
  host::grid->pause();
}

FUSEDRNN_DEVICE void commit_copies() {
  auto& groups = host::self->copies;
  if (groups.empty()) groups.push_back(std::make_shared<host::Copies>());
  groups.push_back(std::make_shared<host::Copies>());
}

// Of copies that follow the last group, none are waited for.
template <int latest>
void wait_for_copies_but() {
  auto& groups = host::self->copies;
  while (groups.size() > size_t(latest) + 1) {
    const auto oldest = groups.front();
    for (const auto& copy : std::exchange(oldest->awaited, {})) copy();
    if (oldest->under_way) host::grid->wait_at(host::self->copied, "their copies");
    if (!oldest->under_way) groups.pop_front();
  }
}

FUSEDRNN_DEVICE void wait_for_copies() {
  commit_copies();
  wait_for_copies_but<0>();
}

// Between CTAs of a grid.

FUSEDRNN_DEVICE void add_release_gpu(uint32_t* to, uint32_t value) {
  host::grid->release(*host::self->cta);
  *to += value;
  host::grid->changed();
  host::grid->pause();
}

FUSEDRNN_DEVICE uint32_t load_acquire_gpu(const uint32_t* from) {
  host::grid->poll();
  return *from;
}

struct alignas(16) Packet {
  uint64_t low, high;
};

FUSEDRNN_DEVICE void store_relaxed_gpu(Packet* to, Packet v) {
  if (reinterpret_cast<uintptr_t>(to) % 16) throw host::Error("stores a packet at an address that is not aligned");
  *to = v;
  host::grid->changed();
  host::grid->pause();
}

FUSEDRNN_DEVICE Packet load_relaxed_gpu(const Packet* from) {
  if (host::grid->chance(4)) host::grid->poll();  // of several in a row it does for all
  return *from;
}

// Transcendental functions, rounded and not approximated.

FUSEDRNN_DEVICE float tanh_approx(float x) { return std::tanh(x); }

template <class T, class Two, class Round>
uint32_t tanh_of_two(uint32_t x, Round round) {
  Two two;
  std::memcpy(&two, &x, 4);
  two = {round(std::tanh(static_cast<float>(two.x))), round(std::tanh(static_cast<float>(two.y)))};
  std::memcpy(&x, &two, 4);
  return x;
}

FUSEDRNN_DEVICE uint32_t tanh_approx_f16x2(uint32_t x) { return tanh_of_two<__half, __half2>(x, __float2half); }
FUSEDRNN_DEVICE uint32_t tanh_approx_bf16x2(uint32_t x) {
  return tanh_of_two<__nv_bfloat16, __nv_bfloat162>(x, __float2bfloat16);
}

FUSEDRNN_DEVICE float exp2_approx(float x) { return std::exp2(x); }
FUSEDRNN_DEVICE float reciprocal_approx(float x) { return 1 / x; }

// Matrix products of a warp.

FUSEDRNN_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::mma<16>({d, a, b}, host::a_16_by_16, host::b_16_by_8, host::bf16_element);
}

FUSEDRNN_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::mma<16>({d, a, b}, host::a_16_by_16, host::b_16_by_8, host::f16_element);
}

FUSEDRNN_DEVICE float nearest_tf32(float x) { return host::nearest_tf32(x); }

FUSEDRNN_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::mma<8>({d, a, b}, host::a_16_by_8_tf32, host::b_8_by_8_tf32, host::tf32_element);
}

}  // namespace fusedrnn::arch
