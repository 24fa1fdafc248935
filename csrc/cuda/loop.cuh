// What the time loops forward and backward have in common: which rows and units are whose, and rows on their way between
// memory and shared memory.
#pragma once

#include "tiles.cuh"

namespace fusedrnn::cuda {

#include "../cells.h"

// A unit of a row that is a thread's: the place of its sums in registers.
struct Place {
  int64_t b;
  int column, unit, group, of, side;  // column: b in its batch tile; side: column % 2
};

template <class P>
class Loop {
 public:
  using Element = typename P::Element;
  using T = typename P::Tiles;
  using Value = Number<typename Operand<Element>::Math>;

 protected:
  // A CTA for each batch tile of the first direction, then for each of the second, which is the reverse.
  FUSEDRNN_DEVICE Loop(const Shape& shape, unsigned char* shared)
      : s_(shape), H_(static_cast<int>(shape.H)), shared_(shared) {
    const int tiles = static_cast<int>((s_.B + kColumns - 1) / kColumns);
    direction_ = blockIdx.x / tiles;
    first_ = static_cast<int64_t>(blockIdx.x % tiles) * kColumns;
    s_.reverse = s_.reverse || direction_ > 0;
    own_row_ = first_ + threadIdx.x % kColumns;
    own_length_ = own_row_ < s_.B ? length_of(s_, own_row_) : 0;
  }

  // f(place) of every place of this thread, also of those beyond B and H.
  template <class F>
  FUSEDRNN_DEVICE void each_place(F f) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int group = 0; group < P::groups; ++group) {
#pragma unroll
      for (int of = 0; of < T::of_thread; ++of) {
        const int unit = Weights<P>::first_unit(group) + T::unit(of, lane / 4);
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int column = lane % 4 * 2 + side;
          f(Place{first_ + column, column, unit, group, of, side});
        }
      }
    }
  }

  template <class F>
  FUSEDRNN_DEVICE void each(F f) {
    each_place([&](const Place& p) {
      if (p.b < s_.B && p.unit < H_) f(p);
    });
  }

  FUSEDRNN_DEVICE int64_t state_at(const Place& p) const { return (direction_ * s_.B + p.b) * H_ + p.unit; }

  // Threads of the same row copy it together, 16 bytes at a time.
  template <class F>
  FUSEDRNN_DEVICE void each_part(int bytes, F f) {
    for (int k = threadIdx.x / kColumns * 16; k < bytes; k += P::threads / kColumns * 16) f(k);
  }
  FUSEDRNN_DEVICE void begin_copy(uint32_t to, const void* from, int bytes) {
    each_part(bytes, [&](int k) { arch::copy_16_async(to + k, static_cast<const unsigned char*>(from) + k); });
  }
  FUSEDRNN_DEVICE void store(void* to, uint32_t from, int bytes) {
    each_part(bytes, [&](int k) {
      *reinterpret_cast<uint4*>(static_cast<unsigned char*>(to) + k) = arch::load_shared_16(from + k);
    });
  }

  // Of the column whose rows this thread copies.
  FUSEDRNN_DEVICE uint32_t own_column(int at, int row_bytes) const {
    return arch::shared_address(shared_ + at + threadIdx.x % kColumns * row_bytes);
  }

  Shape s_;
  int H_;
  unsigned char* shared_;
  int64_t direction_, first_;
  int64_t own_row_, own_length_;  // of the column whose rows this thread copies
  Weights<P> weights_;
};

}  // namespace fusedrnn::cuda
