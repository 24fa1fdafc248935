// How the recurrent weights of a layer are cut into tiles for the products of warps, and how the state lies in shared memory.
//
// Gate rows are the rows of A, a batch tile of 8 rows is the columns of B and D, units of the state are the depth. With
// g = lane / 4, t = lane % 4 a thread has rows g and g + 8 of each tile of D and columns 2 t and 2 t + 1: rows are given to
// gates and units so that it has all gates of its units, and a step needs no exchange but that of the new state.
#pragma once

#include "../shape.h"
#include "numbers.cuh"

namespace fusedrnn::cuda {

constexpr int kColumns = 8;             // batch rows of a CTA
constexpr int most_shared = 227 << 10;  // bytes of shared memory that Hopper gives a CTA

// RNN, GRU: a tile is a gate of 16 units, and units g and g + 8 are a thread's.
template <Cell cell>
struct Tiling {
  static constexpr int gates = static_cast<int>(gates_of(cell)), units = 16, tiles = gates, of_thread = 2;

  FUSEDRNN_DEVICE static int gate(int tile, int) { return tile; }
  FUSEDRNN_DEVICE static int unit(int half, int g) { return g + 8 * half; }
  FUSEDRNN_DEVICE static float sum(const float (&d)[tiles][4], int gate, int of, int column) {
    return d[gate][2 * of + column];
  }
};

// LSTM: two tiles hold the four gates of 8 units, of which unit g is a thread's.
template <>
struct Tiling<Cell::lstm> {
  static constexpr int gates = 4, units = 8, tiles = 2, of_thread = 1;

  FUSEDRNN_DEVICE static int gate(int tile, int half) { return 2 * tile + half; }
  FUSEDRNN_DEVICE static int unit(int, int g) { return g; }
  FUSEDRNN_DEVICE static float sum(const float (&d)[tiles][4], int gate, int, int column) {
    return d[gate / 2][gate % 2 * 2 + column];
  }
};

// Bytes of a row: the least, from `bytes` on, that is 16 more than a multiple. What the lanes of a warp read at once from
// 8 rows of 128 and 16, or from 4 of each second row of 64 and 16, lies in different banks.
constexpr int apart(int bytes, int multiple) { return (bytes + multiple - 1) / multiple * multiple + 16; }

// A kernel's sizes. It serves every H up to `hidden_`: units beyond H are zeros. `in_registers` is how many of the `depth_`
// products along a row of the weights, 32 bytes each, find them in registers; the others find them in shared memory, after
// two buffers of the operand of the products, a ring of inputs, and two buffers of results. operand, input and results
// are the bytes that a row of each has.
template <Cell cell_, class Tiles_, class Element_, int hidden_, int warps_, int depth_, int in_registers, int operand,
          int input, int results>
struct Plan {
  using Element = Element_;
  using Tiles = Tiles_;
  static constexpr Cell cell = cell_;
  static constexpr int hidden = hidden_, warps = warps_, threads = 32 * warps, size = sizeof(Element);
  static constexpr int groups = hidden / (warps * Tiles::units);  // of units, a warp
  static constexpr int depth = depth_, resident = in_registers < depth ? in_registers : depth;
  static_assert(groups * warps * Tiles::units == hidden && depth % 2 == 0);

  static constexpr int inputs = 0, stages = 4;
  static constexpr int operand_row = apart(operand, 128), operand_buffer = kColumns * operand_row;
  static constexpr int ring_row = apart(input, 64), ring_stage = kColumns * ring_row;
  static constexpr int out_row = apart(results, 64), out_buffer = kColumns * out_row;
  static constexpr int ring_at = 2 * operand_buffer, out_at = ring_at + stages * ring_stage;
  static constexpr int weights_at = out_at + 2 * out_buffer;
  static constexpr int shared = weights_at + warps * groups * Tiles::tiles * (depth - resident) * 32 * 16;
  static_assert(shared <= most_shared);
};

// Input: pre-activations, or where inputs_ is not 0 up to so many numbers of x, whose weights lie in shared memory as well.
// Results: a row of y, of `saved`, of `cells`.
template <Cell cell>
constexpr int kept_blocks = is_rnn(cell) ? 0 : 4;
template <Cell cell>
constexpr int c_blocks = cell == Cell::lstm ? 1 : 0;

template <Cell cell, class Element, int hidden, int warps, int in_registers = hidden, int inputs_ = 0,
          int size = sizeof(Element)>
struct ForwardPlan : Plan<cell, Tiling<cell>, Element, hidden, warps, hidden * size / 32, in_registers, hidden * size,
                          (inputs_ ? inputs_ : Tiling<cell>::gates * hidden) * size,
                          (1 + kept_blocks<cell>)*hidden * size + c_blocks<cell> * 4 * hidden> {
  static constexpr int inputs = inputs_;
  static constexpr int kept_at = hidden * size, cells_at = kept_at + kept_blocks<cell> * hidden * size;

  // The products of W_ih and x.
  struct Inputs {
    static constexpr int depth = inputs * size / 32, resident = 0;
    static constexpr int operand_row = ForwardPlan::ring_row, weights_at = ForwardPlan::Plan::shared;
    static_assert(depth % 2 == 0);
  };
  static constexpr int shared =
      Inputs::weights_at + warps * ForwardPlan::groups * Tiling<cell>::tiles * Inputs::depth * 32 * 16;
  static_assert(shared <= most_shared);
};

// Of the products, rows are units, whose dh a thread has; the depth are the gates of all units. Input: a row of dy, of the
// state before, of `saved` or y, of c and of c before. Results: a row of dgates.
template <Cell cell, class Element, int hidden, int warps, int in_registers = 4 * hidden, int size = sizeof(Element)>
struct BackwardPlan
    : Plan<cell, Tiling<Cell::rnn_tanh>, Element, hidden, warps, gates_of(cell) * hidden * size / 32, in_registers,
           gates_of(cell) * hidden * size, (2 + blocks_of(cell)) * hidden * size + c_blocks<cell> * 8 * hidden,
           blocks_of(cell) * hidden * size> {
  static constexpr int gates = static_cast<int>(gates_of(cell)), blocks = static_cast<int>(blocks_of(cell));
  static constexpr int before_at = hidden * size, saved_at = 2 * hidden * size;
  static constexpr int c_at = saved_at + blocks * hidden * size, c_before_at = c_at + 4 * hidden;
  static_assert(BackwardPlan::stages * BackwardPlan::ring_stage >= 4 * blocks * hidden * 4);  // for sums of biases
};

// What a warp multiplies: the rows of its gates and units.
// Products says how many along the depth there are, how many of them find the weights in registers, and where the weights
// of the others lie; and the bytes from row to row of what they multiply.
template <class P, class Products = P>
class Weights {
 public:
  using T = typename P::Tiles;

  // word(unit, tile, half, k): what row `half` of a unit's in a tile has in column k and, of 16 bits, the one after it. A
  // lane reads no words but those it wrote. The warp meets lest the compiler loads more ahead than there are registers.
  template <class F>
  FUSEDRNN_DEVICE void load(unsigned char* shared, F word) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    own_ = shared + Products::weights_at + (threadIdx.x / 32 * P::groups * T::tiles * in_shared * 32 + lane) * 16;
#pragma unroll
    for (int group = 0; group < P::groups; ++group) {
#pragma unroll
      for (int tile = 0; tile < T::tiles; ++tile) {
#pragma unroll
        for (int k = 0; k < Products::depth; ++k) {
          uint32_t words[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int unit = first_unit(group) + T::unit(j % 2, g), at = 8 * k + 4 * (j / 2) + t;
            words[j] = word(unit, tile, j % 2, at * elements_of_word<typename P::Element>);
          }
          if (k < Products::resident) {
#pragma unroll
            for (int j = 0; j < 4; ++j) registers_[group][tile][k][j] = words[j];
          } else {
            *reinterpret_cast<uint4*>(place(group, tile, k)) = {words[0], words[1], words[2], words[3]};
          }
          __syncwarp();
        }
      }
    }
  }

  // The rows times the state at `h`. A few loads go out before the products that need them; products in a chain wait for
  // each other, so that there are at least three chains.
  FUSEDRNN_DEVICE void multiply(uint32_t h, float (&sums)[P::groups][T::tiles][4]) const {
    constexpr int products = P::groups * T::tiles, chains = products < 4 ? 4 / products : 1, at_once = 8;
    float parts[chains][P::groups][T::tiles][4] = {};
    const int lane = threadIdx.x % 32;
    const uint32_t row = h + lane % 8 * Products::operand_row + lane / 8 * 16;
#pragma unroll
    for (int first = 0; first < Products::depth; first += at_once) {
      constexpr int most = at_once < Products::depth ? at_once : Products::depth;
      uint4 b[most / 2];
#pragma unroll
      for (int k = 0; k < most && first + k < Products::depth; k += 2)
        b[k / 2] = arch::load_tiles(row + (first + k) * 32);
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

  // Of the layer, that is the first of a group of this warp.
  FUSEDRNN_DEVICE static int first_unit(int group) {
    return (static_cast<int>(threadIdx.x) / 32 * P::groups + group) * T::units;
  }

 private:
  FUSEDRNN_DEVICE unsigned char* place(int group, int tile, int k) const {
    return own_ + ((group * T::tiles + tile) * in_shared + k - Products::resident) * 32 * 16;
  }

  FUSEDRNN_DEVICE void multiply(int group, int tile, int k, const uint32_t (&b)[2], float (&sums)[4]) const {
    if (k < Products::resident) {
      Operand<typename P::Element>::mma(sums, registers_[group][tile][k < Products::resident ? k : 0], b);
    } else {
      const uint4 a = arch::load_shared_16(arch::shared_address(place(group, tile, k)));
      Operand<typename P::Element>::mma(sums, {a.x, a.y, a.z, a.w}, b);
    }
  }

  static constexpr int in_shared = Products::depth - Products::resident;

  uint32_t registers_[P::groups][T::tiles][Products::resident > 0 ? Products::resident : 1][4];
  unsigned char* own_;
};

}  // namespace fusedrnn::cuda
