// How the rows of the weights are cut into tiles for the tensor cores, and their products.
//
// Gate rows are the rows of A, a batch tile of 8 rows is the columns of B and D, units of the state are the depth. With
// g = lane / 4, t = lane % 4 a thread has rows g and g + 8 of each tile of D and columns 2 t and 2 t + 1: rows are given to
// gates and units so that it has all gates of its units, and a step needs no exchange but that of the new state.
#pragma once

#include <type_traits>

#include "../shape.h"
#include "staging.cuh"

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
// and so many 16 bytes of a thread's weights as `in_memory` says. `parts` warps have the same rows, and a part of the depth
// each; `owners` of them have the places: to add what all have summed a thread has `shared_sums` floats of shared memory
// for each group.
struct OfTiles {
  static constexpr int columns = 8, rows = 8, sides = 2, bytes = 32, parts = 1, owners = 1, shared_sums = 0;
  template <class P, class Products>
  using Weights = TileWeights<P, Products>;
};

// RNN, GRU: a tile is a gate of 16 units, and units g and g + 8 are a thread's.
template <Cell cell>
struct Tiling : OfTiles {
  using One = Tiling;
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
  using One = Tiling;
  static constexpr int gates = 4, units = 8, tiles = 2, of_thread = 1;
  static constexpr int in_memory = tiles;

  FUSEDRNN_DEVICE static int gate(int tile, int half) { return 2 * tile + half; }
  FUSEDRNN_DEVICE static int unit(int, int g) { return g; }
  FUSEDRNN_DEVICE static float sum(const float (&d)[tiles][4], int gate, int, int column) {
    return d[gate / 2][gate % 2 * 2 + column];
  }
};

// The same where `parts_` warps share their rows. Each of them, or of as many as there are places, has a share of the
// places that one would have.
template <Cell cell, int parts_>
struct SplitTiling : Tiling<cell> {
  using typename Tiling<cell>::One;
  static constexpr int of_one = One::of_thread * One::sides, parts = parts_, owners = parts < of_one ? parts : of_one;
  static constexpr int places = of_one / owners;  // of a thread, in a group
  static constexpr int sides = places < One::sides ? places : One::sides, of_thread = places / sides;
  static constexpr int sums = (places * One::gates + 1) / 2 * 2, shared_sums = owners * sums;
  static_assert(places * owners == of_one);
};

// Units dealt out to threads as they come, a column to each, so that some warps may have none: for what the products `Of`
// do not sum. `copies` threads have the same place: one of them counts, the others take it for a row that is not there.
template <class P, class Products>
class PartialWeights;

template <class Of_, int copies>
struct Spread {
  using Of = Of_;
  static constexpr int gates = 1, columns = Of::columns, rows = columns * copies, units = 32 / rows;
  static constexpr int of_thread = 1, sides = 1, bytes = Of::bytes, in_memory = Of::in_memory, parts = 1,
                       shared_sums = 0;
  template <class P, class Products>
  using Weights = PartialWeights<P, Products>;
};

// f(number, which) of `all` numbers, each of one lane of a warp, `count` times over.
template <int count, int all, class F>
FUSEDRNN_DEVICE void each_of_warp(const F& f) {
#pragma unroll
  for (int k = 0; k < count * all; k += 32) {
    const int number = k + threadIdx.x % 32;
    if (count * all % 32 && number >= count * all) break;
    f(number % all, number / all);
  }
}

// What a warp multiplies: the rows of its gates and units, or a part of them: of each `parts` pairs of products one.
// Products says how many along the depth there are, how many of them find the weights in registers, and where the weights
// of the others lie; and the bytes from row to row of what they multiply.
template <class P, class Products>
class TileWeights {
 public:
  using T = typename P::Tiles;
  using One = typename T::One;
  using Element = typename P::Element;
  static constexpr int parts = T::parts, places = T::of_thread * T::sides;  // of a thread, in a group
  static constexpr int chains = P::groups * T::tiles < 4 ? 4 / (P::groups * T::tiles) : 1;
  using Whole = float[P::groups][T::tiles][4];
  using Chains = Whole[chains];  // products in a chain wait for each other, so that there are at least three
  using Sums = std::conditional_t<parts == 1, Whole, float[P::groups][places][T::gates]>;

  FUSEDRNN_DEVICE static float sum(const Sums& sums, const Place& p, int gate) {
    if constexpr (parts == 1) {
      return T::sum(sums[p.own / T::of_thread], gate, p.own % T::of_thread, p.side);
    } else {
      return sums[p.at / places][p.at % places][gate];
    }
  }

  // f(place) of every place of this thread; first: the first row of the batch tile.
  template <class F>
  FUSEDRNN_DEVICE static void each_place(int first, const F& f) {
    const int lane = threadIdx.x % 32;
    if (owns_none()) return;
#pragma unroll
    for (int at = 0; at < P::groups * places; ++at) {
      const int among = part() * places + at % places;  // those of a group
      const int unit = first_unit(at / places) + T::unit(among / One::sides, lane / 4);
      const int column = lane % 4 * One::sides + among % One::sides;
      f(Place{first + column, column, unit, at, at / T::sides, at % T::sides});
    }
  }

  // A lane reads no words from shared memory but those it wrote.
  FUSEDRNN_DEVICE void load(unsigned char* shared, const Matrix<Element>& w) {
    const int lane = threadIdx.x % 32;
    const int own = Products::weights_at + (threadIdx.x / 32 * in_shared * 32 + lane) * 16;
    own_ = arch::shared_address(shared) + own;
    P::Staging::template all<P, Products>(shared, w, part(), [&](int k, const auto& staged) {
#pragma unroll
      for (int group = 0; group < P::groups; ++group) {
#pragma unroll
        for (int tile = 0; tile < T::tiles; ++tile) {
          uint32_t words[4];
          staged.tile({first_unit(group) + T::unit(0, 0), first_unit(group) + T::unit(1, 0)},
                      {T::gate(tile, 0), T::gate(tile, 1)}, words);
          const int number = number_of(group, tile, k);
          if (number < Products::resident) {
#pragma unroll
            for (int j = 0; j < 4; ++j) registers_[number < Products::resident ? number : 0][j] = words[j];
          } else {
            *reinterpret_cast<uint4*>(shared + own + place(number)) = {words[0], words[1], words[2], words[3]};
          }
        }
      }
    });
  }

  // The rows times the state at `h`.
  FUSEDRNN_DEVICE void multiply(uint32_t h, Sums& sums) const {
    Chains found = {};
    add<0, Products::depth>(h, found);
    total(found, sums);
  }

  // The products of this warp from `from` to `to`. A few loads go out before the products that need them.
  template <int from, int to>
  FUSEDRNN_DEVICE void add(uint32_t h, Chains& found) const {
    constexpr int at_once = P::groups * T::tiles < 4 ? 8 : 4;
    static_assert(from % 2 == 0);
    const int lane = threadIdx.x % 32;
    const uint32_t row = h + lane % 8 * Products::operand_row + lane / 8 * 16 + part() * 2 * T::bytes;
#pragma unroll
    for (int first = from; first < to; first += at_once) {
      constexpr int most = at_once < to - from ? at_once : to - from;
      uint4 b[most / 2];
#pragma unroll
      for (int k = 0; k < most && first + k < to; k += 2)
        b[k / 2] = arch::load_tiles(row + (first + k) * parts * T::bytes);
#pragma unroll
      for (int k = 0; k < most && first + k < to; ++k) {
        const uint4 two = b[k / 2];
        const uint32_t one[2] = {k % 2 ? two.z : two.x, k % 2 ? two.w : two.y};
#pragma unroll
        for (int group = 0; group < P::groups; ++group) {
#pragma unroll
          for (int tile = 0; tile < T::tiles; ++tile)
            multiply(group, tile, first + k, one, found[k % chains][group][tile]);
        }
      }
    }
  }

  FUSEDRNN_DEVICE static void total(const Chains& found, Whole& sums) {
#pragma unroll
    for (int group = 0; group < P::groups; ++group) {
#pragma unroll
      for (int tile = 0; tile < T::tiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float sum = found[0][group][tile][i];
#pragma unroll
          for (int chain = 1; chain < chains; ++chain) sum += found[chain][group][tile][i];
          sums[group][tile][i] = sum;
        }
      }
    }
  }

  // What each of several parts has summed, to those whose places it is of; after a barrier each adds its own.
  FUSEDRNN_DEVICE static void share(unsigned char* shared, const Whole& sums) {
#pragma unroll
    for (int group = 0; group < P::groups; ++group) {
#pragma unroll
      for (int to = 0; to < T::owners; ++to) {
        float values[T::sums] = {};
#pragma unroll
        for (int i = 0; i < places * T::gates; ++i) {
          const int among = to * places + i / T::gates;
          values[i] = One::sum(sums[group], i % T::gates, among / One::sides, among % One::sides);
        }
        each_vector(shared_sums(shared, group, to, part()),
                    [&](int first, auto* of_lane) { memcpy(of_lane, values + first, sizeof *of_lane); });
      }
    }
  }

  FUSEDRNN_DEVICE static void collect(unsigned char* shared, Sums& sums) {
    if (owns_none()) return;
#pragma unroll
    for (int group = 0; group < P::groups; ++group) {
      float values[T::sums] = {};
#pragma unroll
      for (int from = 0; from < parts; ++from) {
        each_vector(shared_sums(shared, group, part(), from), [&](int first, auto* of_lane) {
          const auto vector = *of_lane;
          float found[sizeof vector / 4];
          memcpy(found, &vector, sizeof vector);
#pragma unroll
          for (int i = 0; i < static_cast<int>(sizeof vector / 4); ++i) values[first + i] += found[i];
        });
      }
#pragma unroll
      for (int i = 0; i < places * T::gates; ++i) sums[group][i / T::gates][i % T::gates] = values[i];
    }
  }

  // f(at, column) of every 16 bytes that the units of a row take which are this warp's, each of one lane: where they are
  // in the row. `count` times as many are dealt out: the last argument says which.
  template <int count, class F>
  FUSEDRNN_DEVICE static void each_packet(const F& f) {
    constexpr int pieces = 8 * P::size / 16, columns = 4 * T::sides;
    if (owns_none()) return;
    each_of_warp<count, P::groups * T::of_thread * columns * pieces>([&](int packet, int which) {
      const int piece = packet % pieces, column = packet / pieces % columns, own = packet / (pieces * columns);
      const int among = part() * places + own % T::of_thread * T::sides + column % T::sides;
      f((first_unit(own / T::of_thread) + T::unit(among / One::sides, 0)) * P::size + piece * 16,
        column / T::sides * One::sides + among % One::sides, which);
    });
  }

  // f(unit, at, a, b) of what this thread has summed of every `run` columns of a unit: of [unit][column] those that are `at`
  // after the first of `unit`, where it and the unit they are of are in one stretch of `stretch` units.
  static constexpr int run = 2;
  template <int stretch, class F>
  FUSEDRNN_DEVICE static void each_run(int warp, const Sums& sums, const F& f) {
    static_assert(parts == 1 && stretch % 8 == 0);
    const int g = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int own = 0; own < P::groups * T::of_thread; ++own) {
      const int group = own / T::of_thread, of = own % T::of_thread;
      const int before = stretch % T::units == 0 ? 0 : T::unit(of, 0);
      const auto sum = [&](int side) { return T::sum(sums[group], 0, of, side); };
      f(first_unit(group, warp) + before, (T::unit(of, g) - before) * T::columns + column, sum(0), sum(1));
    }
  }

 private:
  static constexpr int in_shared = Products::of_product * Products::depth - Products::resident;

  FUSEDRNN_DEVICE static int part() { return parts == 1 ? 0 : static_cast<int>(threadIdx.x) / 32 % parts; }
  FUSEDRNN_DEVICE static bool owns_none() { return T::owners < parts && part() >= T::owners; }

  // Of the CTA, that is the first of a group of this warp.
  FUSEDRNN_DEVICE static int first_unit(int group, int warp = threadIdx.x / 32) {
    return (warp / parts * P::groups + group) * T::units;
  }

  // What the warp of part `from` has for that of part `to`, of all with the same rows.
  FUSEDRNN_DEVICE static float* shared_sums(unsigned char* shared, int group, int to, int from) {
    const int rows = threadIdx.x / (32 * parts);
    const int at = (((rows * P::groups + group) * T::owners + to) * parts + from) * T::sums * 32;
    return reinterpret_cast<float*>(shared + P::sums_at) + at;
  }

  // f(first, of_lane) of all numbers that a lane has there: so many float4, and a float2.
  template <class F>
  FUSEDRNN_DEVICE static void each_vector(float* sums, const F& f) {
    const int lane = threadIdx.x % 32;
    constexpr int fours = T::sums / 4 * 4;
#pragma unroll
    for (int first = 0; first < fours; first += 4) f(first, reinterpret_cast<float4*>(sums + first * 32) + lane);
    if constexpr (T::sums > fours) f(fours, reinterpret_cast<float2*>(sums + fours * 32) + lane);
  }

  // Of the 16 bytes that a thread has for a product.
  FUSEDRNN_DEVICE static int number_of(int group, int tile, int k) { return (k * P::groups + group) * T::tiles + tile; }

  // From own_ on, of weights that are not in registers.
  FUSEDRNN_DEVICE static int place(int number) { return (number - Products::resident) * 32 * 16; }

  FUSEDRNN_DEVICE void multiply(int group, int tile, int k, const uint32_t (&b)[2], float (&sums)[4]) const {
    const int number = number_of(group, tile, k);
    if (number < Products::resident) {
      P::Operand::mma(sums, registers_[number < Products::resident ? number : 0], b);
    } else {
      const uint4 a = arch::load_shared_16(own_ + place(number));
      P::Operand::mma(sums, {a.x, a.y, a.z, a.w}, b);
    }
  }

  uint32_t registers_[Products::resident > 0 ? Products::resident : 1][4];
  uint32_t own_;
};

// What the CTAs of a cluster multiply backward: each the gates of its own units, with what they are of all units.
template <class P>
struct OfAllUnits : P {
  using Tiles = typename P::Tiles::Of;
  static constexpr int groups = P::weight_groups;
};

template <class P, class Products>
class PartialWeights : public P::Tiles::Of::template Weights<OfAllUnits<P>, OfAllUnits<P>> {
  using T = typename P::Tiles;

 public:
  // Of the CTA's own units.
  template <class F>
  FUSEDRNN_DEVICE static void each_place(int first, const F& f) {
    const int row = threadIdx.x % T::rows;
    if (threadIdx.x >= 32 * P::busy) return;
#pragma unroll
    for (int at = 0; at < P::groups; ++at) {
      const int unit = static_cast<int>(threadIdx.x) / T::rows + at * (P::hidden / P::groups);
      f(Place{row < T::columns ? first + row : INT32_MAX, row, unit, at, at, 0});
    }
  }
};

}  // namespace fusedrnn::cuda
