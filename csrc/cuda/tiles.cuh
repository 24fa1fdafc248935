// How the rows of the weights are cut into tiles for the tensor cores, and their products.
//
// Gate rows are the rows of A, a batch tile of 8 rows is the columns of B and D, units of the state are the depth. With
// g = lane / 4, t = lane % 4 a thread has rows g and g + 8 of each tile of D and columns 2 t and 2 t + 1: rows are given to
// gates and units so that it has all gates of its units, and a step needs no exchange but that of the new state.
#pragma once

#include "../shape.h"
#include "numbers.cuh"

namespace fusedrnn::cuda {

// A unit of a row of the batch that is a thread's: the number `at` of the thread's places, and the numbers `own` and
// `side` that the unit and the column have among those of the thread. Numbers are known when it is compiled.
struct Place {
  int b;
  int column, unit, at, own, side;  // column: b in its batch tile
};

template <class P, class Products>
class TileWeights;

// Of every way to deal out rows: `columns` rows of the batch, `rows` of them in shared memory; `units` of a group of a
// warp's, of which `of_thread` are a thread's, with `sides` of the columns each. A product takes `bytes` of the operand,
// and so many 16 bytes of a thread's weights as `in_memory` says.
struct OfTiles {
  static constexpr int columns = 8, rows = 8, sides = 2, bytes = 32;
  template <class P, class Products>
  using Weights = TileWeights<P, Products>;
};

// RNN, GRU: a tile is a gate of 16 units, and units g and g + 8 are a thread's.
template <Cell cell>
struct Tiling : OfTiles {
  static constexpr int gates = static_cast<int>(gates_of(cell)), units = 16, tiles = gates, of_thread = 2;
  static constexpr int in_memory = tiles;

  FUSEDRNN_DEVICE static int gate(int tile, int) { return tile; }
  FUSEDRNN_DEVICE static int unit(int half, int g) { return g + 8 * half; }
  FUSEDRNN_DEVICE static float sum(const float (&d)[tiles][4], int gate, int of, int column) {
    return d[gate][2 * of + column];
  }
};

// LSTM: two tiles hold the four gates of 8 units, of which unit g is a thread's.
template <>
struct Tiling<Cell::lstm> : OfTiles {
  static constexpr int gates = 4, units = 8, tiles = 2, of_thread = 1;
  static constexpr int in_memory = tiles;

  FUSEDRNN_DEVICE static int gate(int tile, int half) { return 2 * tile + half; }
  FUSEDRNN_DEVICE static int unit(int, int g) { return g; }
  FUSEDRNN_DEVICE static float sum(const float (&d)[tiles][4], int gate, int, int column) {
    return d[gate / 2][gate % 2 * 2 + column];
  }
};

// What a warp multiplies: the rows of its gates and units.
// Products says how many along the depth there are, how many of them find the weights in registers, and where the weights
// of the others lie; and the bytes from row to row of what they multiply.
template <class P, class Products>
class TileWeights {
 public:
  using T = typename P::Tiles;
  using Element = typename P::Element;
  using Sums = float[P::groups][T::tiles][4];

  FUSEDRNN_DEVICE static float sum(const Sums& sums, const Place& p, int gate) {
    return T::sum(sums[p.own / T::of_thread], gate, p.own % T::of_thread, p.side);
  }

  // f(place) of every place of this thread; first: the first row of the batch tile.
  template <class F>
  FUSEDRNN_DEVICE static void each_place(int first, const F& f) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int own = 0; own < P::groups * T::of_thread; ++own) {
      const int unit = first_unit(own / T::of_thread) + T::unit(own % T::of_thread, lane / 4);
#pragma unroll
      for (int side = 0; side < T::sides; ++side) {
        const int column = lane % 4 * T::sides + side;
        f(Place{first + column, column, unit, own * T::sides + side, own, side});
      }
    }
  }

  // w: [gates, H, width] in memory. A lane reads no words from shared memory but those it wrote.
  FUSEDRNN_DEVICE void load(unsigned char* shared, const Element* w, int H, int width) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int own = Products::weights_at + (threadIdx.x / 32 * P::groups * T::tiles * in_shared * 32 + lane) * 16;
    own_ = arch::shared_address(shared) + own;
    P::Staging::template all<P, Products>(shared, w, H, width, [&](int k, auto word) {
#pragma unroll
      for (int group = 0; group < P::groups; ++group) {
#pragma unroll
        for (int tile = 0; tile < T::tiles; ++tile) {
          uint32_t words[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int unit = first_unit(group) + T::unit(j % 2, g);
            words[j] = word(unit, T::gate(tile, j % 2), (4 * (j / 2) + t) * elements_of_word<typename P::Kind>);
          }
          if (k < Products::resident) {
#pragma unroll
            for (int j = 0; j < 4; ++j) registers_[group][tile][k < Products::resident ? k : 0][j] = words[j];
          } else {
            *reinterpret_cast<uint4*>(shared + own + place(group, tile, k)) = {words[0], words[1], words[2], words[3]};
          }
        }
      }
    });
  }

  // The rows times the state at `h`. A few loads go out before the products that need them; products in a chain wait for
  // each other, so that there are at least three chains.
  FUSEDRNN_DEVICE void multiply(uint32_t h, Sums& sums) const {
    constexpr int products = P::groups * T::tiles, chains = products < 4 ? 4 / products : 1, at_once = 8;
    static_assert(Products::depth % 2 == 0);
    float parts[chains][P::groups][T::tiles][4] = {};
    const int lane = threadIdx.x % 32;
    const uint32_t row = h + lane % 8 * Products::operand_row + lane / 8 * 16;
#pragma unroll
    for (int first = 0; first < Products::depth; first += at_once) {
      constexpr int most = at_once < Products::depth ? at_once : Products::depth;
      uint4 b[most / 2];
#pragma unroll
      for (int k = 0; k < most && first + k < Products::depth; k += 2)
        b[k / 2] = arch::load_tiles(row + (first + k) * T::bytes);
#pragma unroll
      for (int k = 0; k < most && first + k < Products::depth; ++k) {
        const uint4 two = b[k / 2];
        const uint32_t one[2] = {k % 2 ? two.z : two.x, k % 2 ? two.w : two.y};
#pragma unroll
        for (int group = 0; group < P::groups; ++group) {
#pragma unroll
          for (int tile = 0; tile < T::tiles; ++tile)
            multiply(group, tile, first + k, one, parts[k % chains][group][tile]);
        }
      }
    }
#pragma unroll
    for (int group = 0; group < P::groups; ++group) {
#pragma unroll
      for (int tile = 0; tile < T::tiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float sum = parts[0][group][tile][i];
#pragma unroll
          for (int chain = 1; chain < chains; ++chain) sum += parts[chain][group][tile][i];
          sums[group][tile][i] = sum;
        }
      }
    }
  }

 private:
  static constexpr int in_shared = Products::depth - Products::resident;

  // Of the layer, that is the first of a group of this warp.
  FUSEDRNN_DEVICE static int first_unit(int group) {
    return (static_cast<int>(threadIdx.x) / 32 * P::groups + group) * T::units;
  }

  // From own_ on, of weights that are not in registers.
  FUSEDRNN_DEVICE static int place(int group, int tile, int k) {
    return ((group * T::tiles + tile) * in_shared + k - Products::resident) * 32 * 16;
  }

  FUSEDRNN_DEVICE void multiply(int group, int tile, int k, const uint32_t (&b)[2], float (&sums)[4]) const {
    if (k < Products::resident) {
      P::Operand::mma(sums, registers_[group][tile][k < Products::resident ? k : 0], b);
    } else {
      const uint4 a = arch::load_shared_16(own_ + place(group, tile, k));
      P::Operand::mma(sums, {a.x, a.y, a.z, a.w}, b);
    }
  }

  uint32_t registers_[P::groups][T::tiles][Products::resident > 0 ? Products::resident : 1][4];
  uint32_t own_;
};

}  // namespace fusedrnn::cuda
