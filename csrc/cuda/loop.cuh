// What the time loops forward and backward have in common: which rows and units are whose, and rows on their way between
// memory and shared memory.
#pragma once

#include "plan.cuh"

namespace fusedrnn::cuda {

#include "../cells.h"

// Over rows of one column in the order of the loop: where the next one lies, and how far apart they are. Packed ones lie
// where their offsets, from `at`, say.
template <class Element>
struct Walk {
  Element* at = nullptr;
  int64_t apart = 0, batch = 0;
};

// `plain`: dense rows, all of them active, no resets.
template <class P, bool plain>
class Loop {
 public:
  using Element = typename P::Element;
  using T = typename P::Tiles;
  using Weights = typename T::template Weights<P, P>;
  using Sums = typename Weights::Sums;
  using Operand = typename P::Operand;
  using Value = Number<typename Operand::Math>;
  static constexpr int units = P::groups * T::of_thread, places = units * T::sides;  // of a thread

 protected:
  // A CTA, or as many as hold the weights, for each batch tile of the first direction, then for each of the second, which
  // is the reverse. rank: of the CTA among those. Of all steps those from `first` up to `last`, which are counted from 0;
  // of a grid, the tiles from `first_tile` on.
  FUSEDRNN_DEVICE Loop(const Shape& shape, bool backward, unsigned char* shared, int rank, int64_t first, int64_t last,
                       int64_t first_tile)
      : s_(shape),
        T_(static_cast<int>(last - first)),
        B_(static_cast<int>(shape.B)),
        H_(static_cast<int>(shape.H)),
        first_unit_(rank * P::hidden),
        units_(P::ctas == 1 ? H_ : within(H_ - first_unit_, P::hidden)),
        shared_(shared) {
    if constexpr (plain) s_.row_offsets = s_.lengths = nullptr, s_.resets = nullptr;
    const int tiles = static_cast<int>((B_ + P::columns - 1) / P::columns);
    direction_ = tile(first_tile) / tiles;
    first_ = static_cast<int>(tile(first_tile) % tiles) * P::columns;
    s_.reverse = s_.reverse || direction_ > 0;
    descending_ = s_.reverse != backward;
    first_time_ = static_cast<int>(descending_ ? s_.T - 1 - first : first);
    own_row_ = first_ + threadIdx.x % P::columns;
    own_length_ = length(own_row_);
  }

  // Of all directions.
  FUSEDRNN_DEVICE static uint32_t tile(int64_t first_tile) {
    return blockIdx.x / P::ctas + (P::of_grid ? static_cast<uint32_t>(first_tile) : 0);
  }

  FUSEDRNN_DEVICE static int within(int count, int most) { return count < 0 ? 0 : count < most ? count : most; }

  // Of row b; 0 beyond the batch.
  FUSEDRNN_DEVICE int length(int b) const { return b < B_ ? static_cast<int>(length_of(s_, b)) : 0; }

  // Whether the row that this thread copies has step t.
  FUSEDRNN_DEVICE bool copies(int t) const { return plain ? own_row_ < B_ : t < own_length_; }

  // What a step of the loop is in time.
  FUSEDRNN_DEVICE int t_of(int step) const { return descending_ ? first_time_ - step : first_time_ + step; }

  // f(place) of every place of this thread, also of those beyond B and H.
  template <class F>
  FUSEDRNN_DEVICE void each_place(const F& f) {
    Weights::each_place(first_, f);
  }

  // The same of those that there are.
  template <class F>
  FUSEDRNN_DEVICE void each(F f) {
    each_place([&](const Place& p) {
      if (p.b < B_ && p.unit < units_) f(p);
    });
  }

  // In [D, B, H], and in a gate of [D, gates, H].
  FUSEDRNN_DEVICE int64_t state_at(const Place& p) const {
    return (direction_ * s_.B + p.b) * H_ + first_unit_ + p.unit;
  }
  FUSEDRNN_DEVICE int64_t bias_at(const Place& p, int gates, int gate) const {
    return (direction_ * gates + gate) * H_ + first_unit_ + p.unit;
  }
  // Of W [D, gates, H, width].
  FUSEDRNN_DEVICE Matrix<Element> matrix(const Element* w, int gates, int width) const {
    if constexpr (P::gathers) return {w + direction_ * gates * H_ * width, H_, width, H_, first_unit_, INT32_MAX};
    return {w + (direction_ * gates * H_ + first_unit_) * width,
            H_,
            width,
            units_,
            P::rotated ? first_unit_ : 0,
            P::rotated ? P::units : INT32_MAX};
  }

  // The rows of the direction in an array of `width` elements each, in the order of their numbers, from this CTA's units on.
  template <class E>
  FUSEDRNN_DEVICE Rows<E> dense(E* base, int64_t R, int64_t width) const {
    return {base + direction_ * R * width + first_unit_, s_.B * width, width};
  }
  // Its part of each row of both directions.
  template <class E>
  FUSEDRNN_DEVICE Rows<E> part(const Rows<E>& rows, int64_t width) const {
    return {rows.base + direction_ * width + first_unit_, rows.step, rows.batch};
  }

  // Over the rows of the column whose rows this thread copies, from that of step 0 of the loop on.
  template <class E>
  FUSEDRNN_DEVICE Walk<E> walk(const Rows<E>& rows) const {
    E* const column = rows.base + own_row_ * rows.batch;
    if (s_.row_offsets) return {column, 0, rows.batch};
    return {column + t_of(0) * rows.step, descending_ ? -rows.step : rows.step, rows.batch};
  }
  // The next of a walk, that of step t; the one that follows it.
  template <class E>
  FUSEDRNN_DEVICE E* next(Walk<E>& walk, int t) const {
    E* const row = walk.at;
    walk.at += walk.apart;
    return s_.row_offsets ? row + s_.row_offsets[t] * walk.batch : row;
  }
  template <class E>
  FUSEDRNN_DEVICE E* following(const Walk<E>& walk, int t) const {
    return s_.row_offsets ? walk.at + s_.row_offsets[descending_ ? t - 1 : t + 1] * walk.batch : walk.at;
  }

  // f(here, there) of those parts of a row, of 16 bytes each, that are this thread's: threads of the same row share it.
  // In shared memory a row has `blocks` of `width` numbers, of which the first `count` are in memory, where H follow.
  template <class E, int blocks, int width = P::hidden, class F>
  FUSEDRNN_DEVICE void each_part(int count, F f) {
    constexpr int size = sizeof(E), block = width * size, at_once = P::threads / P::columns * 16;
    const int first = threadIdx.x / P::columns * 16;
#pragma unroll
    for (int k = 0; k < block * blocks; k += at_once) {
      const int here = k + first, within = here % block;
      if (within < count * size && here < block * blocks) f(here, here / block * H_ * size + within);
    }
  }
  template <int blocks, int width = P::hidden, class E>
  FUSEDRNN_DEVICE void begin_copy(uint32_t to, const E* from, int count) {
    each_part<E, blocks, width>(count, [&](int here, int there) {
      arch::copy_16_async(to + here, reinterpret_cast<const unsigned char*>(from) + there);
    });
  }
  template <int blocks, class E>
  FUSEDRNN_DEVICE void store(E* to, uint32_t from) {
    each_part<E, blocks>(units_, [&](int here, int there) {
      *reinterpret_cast<uint4*>(reinterpret_cast<unsigned char*>(to) + there) = arch::load_shared_16(from + here);
    });
  }

  // Of the column whose rows this thread copies.
  FUSEDRNN_DEVICE uint32_t own_column(int at, int row_bytes) const {
    return arch::shared_address(shared_ + at + threadIdx.x % P::columns * row_bytes);
  }

  Shape s_;
  int T_, B_, H_;           // T_: steps of this loop
  int first_unit_, units_;  // of H, those of this CTA
  unsigned char* shared_;
  int direction_;
  int first_;
  bool descending_;
  int first_time_;
  int own_row_;  // of the column whose rows this thread copies
  int own_length_;
  Weights weights_;
};

}  // namespace fusedrnn::cuda
