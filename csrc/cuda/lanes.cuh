// How the rows of the weights are dealt out to lanes for plain multiplications and additions, and their products.
//
// A thread has all gates of `units_of_thread` units, and of each row those columns that are its own among `lanes` lanes: 4
// of each 4 * lanes. What the lanes have summed they exchange and add, by halves, until each has the sums of as many
// places as are its own: it keeps the half that is on its side, of units, then of columns. Where there are more lanes than
// places, several have the same one: one of them counts, the others take it for a row that is not there.
#pragma once

#include "tiles.cuh"

namespace fusedrnn::cuda {

template <class P, class Products>
class LaneWeights;

template <int gates_, int units_of_thread, int lanes_, int columns_>
struct Lanes {
  static constexpr int gates = gates_, multiplied = units_of_thread, lanes = lanes_, columns = columns_;
  static constexpr int sums = multiplied * columns;               // of a gate, before they are exchanged
  static constexpr int places = sums < lanes ? 1 : sums / lanes;  // after it
  static constexpr int copies = lanes * places / sums, rows = columns * copies;
  static constexpr int sides = places < columns ? places : columns, of_thread = places / sides;
  static constexpr int units = 32 / lanes * multiplied, bytes = 16 * lanes, in_memory = gates * multiplied;
  static constexpr int parts = 1, shared_sums = 0;
  static_assert(units * lanes == 32 * multiplied && places * lanes == sums * copies);
  template <class P, class Products>
  using Weights = LaneWeights<P, Products>;
};

template <class P, class Products>
class LaneWeights {
 public:
  using T = typename P::Tiles;
  using Sums = float[T::gates][T::sums];  // unit after unit; the first T::places of them are the thread's in the end
  using Chains = Sums;                    // before the lanes have exchanged them
  using Whole = Sums;

  FUSEDRNN_DEVICE static float sum(const Sums& sums, const Place& p, int gate) { return sums[gate][p.at]; }

  template <class F>
  FUSEDRNN_DEVICE static void each_place(int first, const F& f) {
    const int lane = threadIdx.x % T::lanes, begin = lane / T::copies * T::places;
#pragma unroll
    for (int at = 0; at < T::places; ++at) {
      const int column = (begin + at) % T::columns + lane % T::copies * T::columns;
      const int b = lane % T::copies ? INT32_MAX : first + column;
      f(Place{b, column, first_unit() + (begin + at) / T::columns, at, at / T::sides, at % T::sides});
    }
  }

  FUSEDRNN_DEVICE void load(unsigned char* shared, const Matrix<float>& w) {
    const int own = Products::weights_at + threadIdx.x * 16, lane = threadIdx.x % T::lanes;
    own_ = arch::shared_address(shared) + own;
    P::Staging::template all<P, Products>(shared, w, 0, [&](int k, const auto& staged) {
#pragma unroll
      for (int row = 0; row < rows; ++row) {
        float weights[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          weights[i] = *staged.at(first_unit() + row % T::multiplied, row / T::multiplied, 4 * lane + i);
        const int number = k * rows + row;
        if (number < Products::resident) {
#pragma unroll
          for (int i = 0; i < 4; ++i) registers_[number < Products::resident ? number : 0][i] = weights[i];
        } else {
          *reinterpret_cast<float4*>(shared + own + place(number)) = {weights[0], weights[1], weights[2], weights[3]};
        }
      }
    });
  }

  FUSEDRNN_DEVICE void multiply(uint32_t h, Sums& sums) const {
    Chains found = {};
    add<0, Products::depth>(h, found);
    total(found, sums);
  }

  template <int from, int to>
  FUSEDRNN_DEVICE void add(uint32_t h, Chains& found) const {
    constexpr int at_once = 4;
    const uint32_t own = h + threadIdx.x % T::lanes * 16;
#pragma unroll
    for (int first = from; first < to; first += at_once) {
      float4 states[at_once][T::columns];
#pragma unroll
      for (int k = 0; k < at_once && first + k < to; ++k) {
#pragma unroll
        for (int column = 0; column < T::columns; ++column)
          states[k][column] = arch::load_shared_floats(own + column * Products::operand_row + (first + k) * T::bytes);
      }
#pragma unroll
      for (int k = 0; k < at_once && first + k < to; ++k) {
#pragma unroll
        for (int row = 0; row < rows; ++row) {
          const float4 w = weights(row, first + k);
#pragma unroll
          for (int column = 0; column < T::columns; ++column) {
            const float4& s = states[k][column];
            float& sum = found[row / T::multiplied][row % T::multiplied * T::columns + column];
            sum = fmaf(w.w, s.w, fmaf(w.z, s.z, fmaf(w.y, s.y, fmaf(w.x, s.x, sum))));
          }
        }
      }
    }
  }

  FUSEDRNN_DEVICE static void total(const Chains& found, Sums& sums) {
#pragma unroll
    for (int gate = 0; gate < T::gates; ++gate) {
#pragma unroll
      for (int k = 0; k < T::sums; ++k) sums[gate][k] = found[gate][k];
      exchange(sums[gate]);
    }
  }

  // As those of TileWeights.
  template <int count, class F>
  FUSEDRNN_DEVICE static void each_packet(const F& f) {
    constexpr int pieces = T::units * P::size / 16;
    static_assert(pieces * 16 == T::units * P::size);
    each_of_warp<count, pieces * T::columns>([&](int packet, int which) {
      f(static_cast<int>(threadIdx.x) / 32 * T::units * P::size + packet % pieces * 16, packet / pieces, which);
    });
  }

  static constexpr int run = T::places == 1 ? 1 : 2;
  template <int stretch, class F>
  FUSEDRNN_DEVICE static void each_run(int warp, const Sums& sums, const F& f) {
    static_assert(T::copies == 1 && T::gates == 1 && stretch % T::multiplied == 0);
    const int begin = static_cast<int>(threadIdx.x) % T::lanes * T::places;
#pragma unroll
    for (int at = 0; at < T::places; at += run) f(first_unit(warp), begin + at, sums[0][at], sums[0][at + run - 1]);
  }

 private:
  static constexpr int rows = T::gates * T::multiplied;
  static_assert(P::groups == 1);

  FUSEDRNN_DEVICE static int first_unit(int warp = threadIdx.x / 32) {
    return warp * T::units + static_cast<int>(threadIdx.x) % 32 / T::lanes * T::multiplied;
  }

  FUSEDRNN_DEVICE static int place(int number) { return (number - Products::resident) * P::threads * 16; }

  FUSEDRNN_DEVICE float4 weights(int row, int k) const {
    const int number = k * rows + row;
    if (number >= Products::resident) return arch::load_shared_floats(own_ + place(number));
    const float (&w)[4] = registers_[number < Products::resident ? number : 0];
    return {w[0], w[1], w[2], w[3]};
  }

  // Of `count` sums, with the lane so many away, and so on with half of them and half as many.
  template <int lanes = T::lanes / 2, int count = T::sums>
  FUSEDRNN_DEVICE static void exchange(float (&sums)[T::sums]) {
    if constexpr (lanes > 0) {
      constexpr int half = count / 2;
      const bool upper = threadIdx.x & lanes;
      if constexpr (count == 1) sums[0] += arch::exchange(sums[0], lanes);
#pragma unroll
      for (int k = 0; k < half; ++k) {
        const float mine = upper ? sums[half + k] : sums[k], other = upper ? sums[k] : sums[half + k];
        sums[k] = mine + arch::exchange(other, lanes);
      }
      exchange<lanes / 2, count == 1 ? 1 : half>(sums);
    }
  }

  float registers_[Products::resident > 0 ? Products::resident : 1][4];
  uint32_t own_;
};

}  // namespace fusedrnn::cuda
