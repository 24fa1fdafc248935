// The shared memory of a CTA, by pointers and by the 32-bit numbers that instructions take.
//
// A number is an offset below 2^18, which is as far as descriptors of matrices reach, and above bit 24 one more than the
// rank of the CTA in its cluster, or 0 for the CTA that uses it. Static variables come first, those of all kernels of the
// program, since each has its place in the thread_local memory of the program; dynamic shared memory follows.
#pragma once

#include <link.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "error.h"

namespace fusedrnn::host {

constexpr uint32_t kFirstOffset = 1024;  // 0 is nobody's address
constexpr uint32_t kWindow = 1 << 18, kRankShift = 24;
constexpr size_t kAlignment = 1024, kGuard = 256;
constexpr int kPoison = 0xff;  // NaN as float, half and bfloat16

// Static shared variables are aligned in the window as this lets them be in memory.
alignas(kAlignment) inline thread_local std::byte alignment_of_statics;

struct Bytes {
  std::byte* begin = nullptr;
  size_t size = 0;

  bool contain(const std::byte* p, size_t bytes) const { return p >= begin && p + bytes <= begin + size; }
};

// What the thread of the operating system that asks has for itself in the program, or the library, that this is part of:
// nothing but __shared__ variables.
inline Bytes statics_of_this_thread() {
  alignment_of_statics = {};
  Bytes found;
  const auto visit = [](dl_phdr_info* program, size_t, void* found) {
    for (int i = 0; i < program->dlpi_phnum; ++i) {
      const auto& part = program->dlpi_phdr[i];
      const Bytes statics{static_cast<std::byte*>(program->dlpi_tls_data), part.p_memsz};
      if (part.p_type == PT_TLS && statics.begin && statics.contain(&alignment_of_statics, 1)) {
        *static_cast<Bytes*>(found) = statics;
        return 1;
      }
    }
    return 0;
  };
  dl_iterate_phdr(visit, &found);
  return found;
}

inline bool has_statics() { return statics_of_this_thread().size > sizeof alignment_of_statics; }

class SharedMemory {
 public:
  // In the thread of the CTA.
  void prepare(size_t dynamic_bytes) {
    statics_ = statics_of_this_thread();
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, up(dynamic_bytes + kGuard))));
    dynamic_ = {memory_.get(), dynamic_bytes};
    if (dynamic_offset() + dynamic_bytes > kWindow)
      throw Error("the static shared memory of all kernels of this program, " + std::to_string(statics_.size) +
                  " bytes, and the dynamic one of this launch are more than 256 KB");
    std::memset(statics_.begin, kPoison, statics_.size);
    std::memset(memory_.get(), kPoison, dynamic_bytes + kGuard);
  }

  std::byte* dynamic() const { return dynamic_.begin; }

  uint32_t offset_of(const void* p) const {
    const auto at = static_cast<const std::byte*>(p);
    if (statics_.contain(at, 0)) return kFirstOffset + static_cast<uint32_t>(at - first_static());
    if (dynamic_.contain(at, 0)) return dynamic_offset() + static_cast<uint32_t>(at - dynamic_.begin);
    throw Error("takes the shared address of what is not in its shared memory");
  }

  // Where `bytes` at this offset lie.
  std::byte* at(uint32_t offset, size_t bytes) const {
    std::byte* const p = offset >= dynamic_offset() ? dynamic_.begin + (offset - dynamic_offset())
                                                    : first_static() + (offset - kFirstOffset);
    if (offset < kFirstOffset || !(statics_.contain(p, bytes) || dynamic_.contain(p, bytes)))
      throw Error("shared address " + std::to_string(offset) + " is outside of shared memory");
    return p;
  }

  void check_guard() const {
    for (size_t i = 0; i < kGuard; ++i)
      if (dynamic_.begin[dynamic_.size + i] != static_cast<std::byte>(kPoison))
        throw Error("wrote beyond the end of dynamic shared memory");
  }

 private:
  static size_t up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
  // The memory of threads begins at the same place of an aligned block in all of them.
  std::byte* first_static() const { return statics_.begin - reinterpret_cast<uintptr_t>(statics_.begin) % kAlignment; }
  uint32_t dynamic_offset() const {
    return static_cast<uint32_t>(kFirstOffset + up(statics_.begin + statics_.size - first_static()));
  }

  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };

  Bytes statics_, dynamic_;
  std::unique_ptr<std::byte[], Free> memory_;
};

}  // namespace fusedrnn::host
