// Scratch memory, kept between calls: what the system hands out anew costs a page fault every 4 KB, which was up to a
// fourth of a small layer's time. A thread keeps at most `most_kept` bytes and gives them back when it ends.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace fusedrnn {

class Scratch {
 public:
  struct Block {
    void* at;
    size_t bytes;
  };

  ~Scratch() {
    for (const Block& block : kept_) release(block);
  }

  // The smallest kept block that fits and is not wastefully large, else a new one.
  Block take(size_t bytes) {
    const size_t unit = std::max(page, std::bit_floor(bytes) / 8);  // room for a few steps more in the next call
    bytes = (bytes + unit - 1) / unit * unit;
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block) {
      const bool fits = block->bytes >= bytes && block->bytes <= 2 * bytes;
      if (fits && (best == kept_.end() || block->bytes < best->bytes)) best = block;
    }
    if (best == kept_.end()) return {::operator new(bytes, alignment), bytes};
    const Block found = *best;
    kept_.erase(best);
    total_ -= found.bytes;
    return found;
  }

  void give(const Block& block) {
    if (block.bytes > most_kept) return release(block);
    while (total_ + block.bytes > most_kept) {  // what was given first has been of no use for the longest time
      total_ -= kept_.front().bytes;
      release(kept_.front());
      kept_.erase(kept_.begin());
    }
    kept_.push_back(block);
    total_ += block.bytes;
  }

 private:
  static constexpr size_t page = 4096, most_kept = size_t{64} << 20;
  static constexpr std::align_val_t alignment{64};

  static void release(const Block& block) { ::operator delete(block.at, alignment); }

  std::vector<Block> kept_;
  size_t total_ = 0;
};

inline thread_local Scratch scratch;

// Uninitialised room for `count` elements, null for none, for the lifetime of the object, which stays on its thread.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    if (count > 0) block_ = scratch.take(size_t(count) * sizeof(T));
  }
  ~Buffer() {
    if (block_.at) scratch.give(block_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return static_cast<T*>(block_.at); }

 private:
  Scratch::Block block_{nullptr, 0};
};

}  // namespace fusedrnn
