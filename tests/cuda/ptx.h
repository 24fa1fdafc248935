// What the instructions of PTX do, one thread at a time, as far as tests/ptx.py meets them: those that threads do together,
// and asynchronous ones, are the host's functions of csrc/cuda/host.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "arch90.cuh"
#include "races.h"

namespace ptx {

namespace arch = fusedrnn::arch;
namespace host = fusedrnn::host;
using host::Error;

template <size_t bytes>
struct alignas(8) Arguments {
  std::byte at[bytes];
};

// The bits of a register or of a number in the instruction, as an instruction of type T takes them.
template <class T, class From>
T as(From from) {
  if constexpr (sizeof(T) == sizeof(From)) {
    return std::bit_cast<T>(from);
  } else {
    static_assert(std::is_integral_v<From> && std::is_integral_v<T>);
    return static_cast<T>(from);
  }
}

// A register may be wider than what is put there, which is extended by its sign.
template <class To, class T>
void set(To& to, T value) {
  if constexpr (sizeof(To) == sizeof(T)) {
    to = std::bit_cast<To>(value);
  } else {
    static_assert(sizeof(To) > sizeof(T) && std::is_integral_v<T>);
    to = static_cast<To>(static_cast<std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>(value));
  }
}

// Registers hold this before they are written.
template <class T, size_t count>
void poison(T (&registers)[count]) {
  std::memset(registers, host::kPoison, sizeof registers);
}

// Several registers, or numbers, as one, the first lowest, and the other way.
template <class To, class Low, class High>
void pack(To& to, Low low, High high) {
  if constexpr (sizeof(To) == 16) {
    to = {low, high};
  } else {
    constexpr int bits = 4 * sizeof(To);
    set(to, static_cast<std::conditional_t<bits == 16, uint32_t, uint64_t>>(
                (static_cast<uint64_t>(high) << bits) | (static_cast<uint64_t>(low) & ((uint64_t{1} << bits) - 1))));
  }
}
template <class From, class Half>
void unpack(From from, Half& low, Half& high) {
  if constexpr (sizeof(From) == 16) {
    low = from.low, high = from.high;
  } else {
    low = static_cast<Half>(from), high = static_cast<Half>(from >> 8 * sizeof(Half));
  }
}

// Memory. An access is aligned to its size.

inline std::byte* global_memory(uint64_t address, size_t bytes, bool) {
  const auto p = reinterpret_cast<std::byte*>(address);
  if (address % bytes) throw Error("an address of global memory is not aligned to " + std::to_string(bytes) + " bytes");
  if (!host::is_allocated(p, bytes)) throw Error("reaches outside of what was allocated");
  return p;
}
inline std::byte* shared_memory(uint64_t address, size_t bytes, bool writes) {
  if (address >> 32) throw Error("a shared address of more than 32 bits");
  std::byte* const place = host::own_place(static_cast<uint32_t>(address), bytes);
  writes ? races::write(place, bytes) : races::read(place, bytes);
  return place;
}
inline std::byte* param_memory(uint64_t address, size_t bytes, bool) {
  if (address % bytes) throw Error("an address of parameters is not aligned");
  return reinterpret_cast<std::byte*>(address);
}

template <class T, class... To>
void load(const std::byte* from, To&... to) {
  const auto one = [&](auto& to) {
    T value;
    std::memcpy(&value, from, sizeof value);
    set(to, value);
    from += sizeof value;
  };
  (one(to), ...);
}
template <class T, class... From>
void store(std::byte* at, From... from) {
  const T values[]{as<T>(from)...};
  std::memcpy(at, values, sizeof values);
}

// Arithmetic. Of integers it wraps: -fwrapv.

// The lowest `count` of `bits` in place of those from `first` on.
inline uint32_t bfi(uint32_t bits, uint32_t into, uint32_t first, uint32_t count) {
  first = std::min(first, 32u), count = std::min(count, 32u - first);
  const auto mask = static_cast<uint32_t>(((uint64_t{1} << count) - 1) << first);
  return (into & ~mask) | ((bits << first % 32) & mask);
}
// Byte i is that of `high` and `low` whose number stands in the i-th four bits of `which`, or all of its sign.
inline uint32_t prmt(uint32_t low, uint32_t high, uint32_t which) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t found = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t place = which >> 4 * i & 15;
    const auto byte = static_cast<uint8_t>(bytes >> place % 8 * 8);
    found |= static_cast<uint32_t>(place < 8 ? byte : byte >> 7 ? 0xff : 0) << 8 * i;
  }
  return found;
}
// Shifts by no less than the width leave nothing but the sign.
template <class T>
T shl(T value, uint32_t by) {
  return by < 8 * sizeof(T) ? value << by : 0;
}
template <class T>
T shr(T value, uint32_t by) {
  return value >> std::min<uint32_t>(by, 8 * sizeof(T) - 1) >> (std::is_unsigned_v<T> && by >= 8 * sizeof(T));
}
inline float fma(float a, float b, float c, int rounding) {
  const int before = std::fegetround();
  std::fesetround(rounding);
  volatile const float x = a, y = b, z = c;
  volatile const float sum = std::fma(x, y, z);
  std::fesetround(before);
  return sum;
}
inline float saturated(float x) { return x > 0 ? std::min(x, 1.f) : 0; }  // 0 of NaN

// Of floats what is not a number is passed over.
template <class T>
T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
  return std::min(a, b);
}
template <class T>
T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
  return std::max(a, b);
}

inline uint16_t bf16_of(float x) { return std::bit_cast<uint16_t>(__float2bfloat16(x)); }
inline float of_bf16(uint16_t bits) { return static_cast<float>(std::bit_cast<__nv_bfloat16>(bits)); }
inline uint16_t f16_of(float x) { return std::bit_cast<uint16_t>(__float2half(x)); }
inline float of_f16(uint16_t bits) { return static_cast<float>(std::bit_cast<__half>(bits)); }

// Barriers and copies.

inline void barrier() {
  races::arrive(host::self->cta);
  __syncthreads();
  races::wait(host::self->cta);
}
inline void warp_barrier() {
  races::arrive(&host::self->warp());
  __syncwarp();
  races::wait(&host::self->warp());
}
inline void cluster_arrive() {
  races::arrive(host::self->cta->cluster);
  host::grid->release(*host::self->cta);
}
inline void cluster_wait() {
  arch::cluster_barrier_without_release();
  races::wait(host::self->cta->cluster);
}
inline void arrive(uint32_t barrier, uint32_t bytes = 0) {
  races::arrive_at(barrier);
  arch::arrive_expecting(barrier, bytes);
}
inline bool try_wait(uint32_t barrier, uint32_t parity) {
  if (!arch::try_wait(barrier, parity)) return false;
  races::seen_to_end(barrier);
  return true;
}
template <class Value>
void store_async(uint32_t to, Value value, uint32_t barrier) {
  races::store_async(to, sizeof value, barrier);
  host::store_later(to, value, barrier);
}
inline void store_packet(uint64_t to, arch::Packet packet) {
  auto* const at = reinterpret_cast<arch::Packet*>(global_memory(to, 16, true));
  races::released(at);
  arch::store_relaxed_gpu(at, packet);
}
inline arch::Packet load_packet(uint64_t from) {
  auto* const at = reinterpret_cast<arch::Packet*>(global_memory(from, 16, false));
  const arch::Packet packet = arch::load_relaxed_gpu(at);
  races::acquired(at);
  return packet;
}
inline void copy_async(uint32_t to, uint64_t from) {
  races::begin_copy(host::own_place(to, 16));
  arch::copy_16_async(to, global_memory(from, 16, false));
}
inline void commit_copies() {
  arch::commit_copies();
  races::commit_copies();
}
template <int groups>
void wait_for_copies_but() {
  arch::wait_for_copies_but<groups>();
  races::end_copies(groups);
}
inline void wait_for_copies() {
  commit_copies();
  wait_for_copies_but<0>();
}

// What warps do together.

template <bool transposed>
uint4 load_tiles(uint32_t row) {
  races::read(host::own_place(row, 16), 16);
  return transposed ? arch::load_tiles_transposed(row) : arch::load_tiles(row);
}

template <void product(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]), class Sum>
void mma(Sum& d0, Sum& d1, Sum& d2, Sum& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
         uint32_t b1, Sum c0, Sum c1, Sum c2, Sum c3) {
  float d[]{as<float>(c0), as<float>(c1), as<float>(c2), as<float>(c3)};
  const uint32_t a[]{a0, a1, a2, a3}, b[]{b0, b1};
  product(d, a, b);
  set(d0, d[0]), set(d1, d[1]), set(d2, d[2]), set(d3, d[3]);
}
inline void set_four(uint4 from, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  a = from.x, b = from.y, c = from.z, d = from.w;
}
inline uint32_t of_lane_0(uint32_t given, uint32_t lane, uint32_t clamp, uint32_t lanes) {
  if (lane != 0 || clamp != 31 || lanes != 0xffffffff) throw Error("shfl.idx of other than lane 0 to all");
  struct Given {
    uint32_t own, taken;
  } mine{given, 0};
  host::together("shfl", mine, [](const auto& all) {
    for (auto* const one : all) one->taken = all[0]->own;
  });
  return mine.taken;
}

}  // namespace ptx
