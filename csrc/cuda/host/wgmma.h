// Products of a warpgroup, after section "Asynchronous Warpgroup Level Matrix Instructions" of the PTX ISA: they run one
// after another, each at some moment after the four warps have issued it, and its sums are in the registers once those
// that were committed have been waited for. Until then the registers are NaN.
#pragma once

#include <algorithm>
#include <cstring>

#include "mbarrier.h"
#include "warps.h"

namespace fusedrnn::host {

// Bits of a descriptor: addresses and offsets in units of 16 bytes.
struct TilesInMemory {
  uint32_t start, leading, stride;

  explicit TilesInMemory(uint64_t descriptor) {
    const auto bytes = [&](unsigned from) { return static_cast<uint32_t>(descriptor >> from & 0x3fff) << 4; };
    start = bytes(0), leading = bytes(16), stride = bytes(32);
    if (descriptor >> 62 || (descriptor >> 49 & 7)) throw Error("a descriptor asks for swizzled tiles");
  }
  // K-major: core matrices of 8 rows (here columns of B) of 16 bytes along k. The leading offset leads to the next one
  // along k, the stride offset to the next one along N.
  uint32_t address_of(unsigned k, unsigned column) const {
    return start + k / 8 * leading + column / 8 * stride + column % 8 * 16 + k % 8 * 2;
  }
};

// The place of register i of D [64, N].
constexpr Element d_64_by_n(unsigned warp, unsigned lane, unsigned i) {
  return {16 * warp + (lane >> 2) + (i % 4 < 2 ? 0 : 8), i / 4 * 8 + lane % 4 * 2 + (i & 1)};
}

inline Sums* sums_in(Thread& thread, const float* registers) {
  const auto holds = [&](const Sums& sums) { return sums.registers == registers; };
  const auto found = std::find_if(thread.sums.begin(), thread.sums.end(), holds);
  return found == thread.sums.end() ? nullptr : &*found;
}

inline void run_product(Cta& cta, unsigned group_number) {
  constexpr unsigned threads = kLanes * kWarpsOfGroup;
  Warpgroup& group = cta.warpgroups[group_number];
  const Product product = std::move(group.products.front());
  group.products.pop_front();
  const TilesInMemory tiles(product.b);
  std::vector<std::array<double, 16>> a(64), b(product.columns);
  for (unsigned thread = 0; thread < threads; ++thread) {
    for (unsigned i = 0; i < 8; ++i) {
      const Element at = a_16_by_16(thread % kLanes, i);
      a[thread / kLanes * 16 + at.row][at.column] = bf16_element(product.operands[thread].a.data(), i);
    }
  }
  for (unsigned column = 0; column < product.columns; ++column) {
    for (unsigned k = 0; k < 16; ++k) {
      uint16_t bits;
      std::memcpy(&bits, cta.memory.at(tiles.address_of(k, column), 2), 2);
      b[column][k] = float_of_bits(static_cast<uint32_t>(bits) << 16);
    }
  }
  for (unsigned thread = 0; thread < threads; ++thread) {
    Sums& sums = *sums_in(cta.threads[group_number * threads + thread], product.operands[thread].registers);
    for (unsigned i = 0; i < product.columns / 2; ++i) {
      const Element at = d_64_by_n(thread / kLanes, thread % kLanes, i);
      double sum = sums.values[i];
      for (unsigned k = 0; k < 16; ++k) sum += a[at.row][k] * b[at.column][k];
      sums.values[i] = static_cast<float>(sum);
    }
  }
  ++group.done;
  grid->open(group.gate);
}

struct WgmmaOperands {
  Thread* thread;
  float* registers;
  const uint32_t* a;
  uint64_t b;
};

// Takes the sums over: their registers are nobody's until they have been waited for.
inline void hold_sums(const WgmmaOperands& lane, unsigned count, uint64_t product, bool fenced) {
  const size_t bytes = count * sizeof(float);
  const std::vector<unsigned char> poison(bytes, kPoison);
  if (Sums* const held = sums_in(*lane.thread, lane.registers)) {
    if (held->values.size() != count || std::memcmp(lane.registers, poison.data(), bytes))
      throw Error("the sums of a product under way were changed");
    held->last_product = product;
  } else {
    if (!fenced) throw Error("wgmma without a fence after its registers could be used");
    lane.thread->sums.push_back({lane.registers, {lane.registers, lane.registers + count}, product});
    std::memcpy(lane.registers, poison.data(), bytes);
  }
}

inline void wgmma(float* d, unsigned count, const uint32_t* a, uint64_t b) {
  WgmmaOperands mine{self, d, a, b};
  together("wgmma", mine, [&](const std::array<WgmmaOperands*, kLanes>& lanes) {
    const unsigned warp = self->number / kLanes % kWarpsOfGroup, number = self->number / (kLanes * kWarpsOfGroup);
    Warpgroup& group = self->warpgroup();
    Warpgroup::OfWarp& of_warp = group.warps[warp];
    const uint64_t index = of_warp.issued++ - group.done;
    if (index == group.products.size()) group.products.push_back({.columns = 2 * count, .b = b, .operands = {}});
    Product& product = group.products[index];
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      const WgmmaOperands& its = *lanes[lane];
      if (its.b != product.b || product.columns != 2 * count) throw Error("a warpgroup issues different products");
      hold_sums(its, count, of_warp.issued, of_warp.fenced);
      auto& kept = product.operands[warp * kLanes + lane];
      kept.registers = its.registers;
      std::copy_n(its.a, 4, kept.a.begin());
    }
    if (++product.warps == kWarpsOfGroup) grid->later([cta = self->cta, number] { run_product(*cta, number); });
  });
}

inline Warpgroup::OfWarp& of_this_warp() { return self->warpgroup().warps[self->number / kLanes % kWarpsOfGroup]; }

inline void wgmma_fence() {
  WgmmaOperands none{};
  together("wgmma.fence", none, [](const auto&) { of_this_warp().fenced = true; });
}

inline void wgmma_commit() {
  WgmmaOperands none{};
  together("wgmma.commit_group", none, [](const auto&) { of_this_warp().committed = of_this_warp().issued; });
}

inline void wgmma_wait() {
  WgmmaOperands none{};
  together("wgmma.wait_group", none, [](const auto&) { of_this_warp().fenced = false; });
  const uint64_t committed = of_this_warp().committed;
  while (self->warpgroup().done < committed) grid->wait_at(self->warpgroup().gate, "products of their warpgroup");
  std::erase_if(self->sums, [&](const Sums& sums) {
    if (sums.last_product > committed) return false;
    std::copy(sums.values.begin(), sums.values.end(), sums.registers);
    return true;
  });
}

}  // namespace fusedrnn::host
