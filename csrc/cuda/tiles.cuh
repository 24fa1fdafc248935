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

// A kernel's sizes. It serves every H up to `hidden_`: units beyond H are zeros. `in_registers_` is how many of the products
// along the depth find their weights in registers; those of the others lie in shared memory.
template <Cell cell_, class Element_, int hidden_, int warps_, int in_registers_ = hidden_>
struct ForwardPlan {
  using Element = Element_;
  using Tiles = Tiling<cell_>;
  static constexpr Cell cell = cell_;
  static constexpr int hidden = hidden_, warps = warps_, threads = 32 * warps, size = sizeof(Element);
  static constexpr int groups = hidden / (warps * Tiles::units);  // of units, a warp
  static constexpr int depth = hidden * size / 32;                // products of 32 bytes of a row of the weights
  static constexpr int resident = in_registers_ < depth ? in_registers_ : depth;
  static constexpr int stages = 4;  // of the ring
  static_assert(groups * warps * Tiles::units == hidden && depth % 2 == 0);

  // Bytes of shared memory: two buffers of h, the ring of inputs, two buffers of results (a row of y, of `saved`, of
  // `cells`), and weights.
  static constexpr int operand_row = apart(hidden * size, 128), operand_buffer = kColumns * operand_row;
  static constexpr int ring_row = apart(Tiles::gates * hidden * size, 64), ring_stage = kColumns * ring_row;
  static constexpr int kept = is_rnn(cell) ? 0 : 4 * hidden * size, cells = cell == Cell::lstm ? 4 * hidden : 0;
  static constexpr int kept_at = hidden * size, cells_at = kept_at + kept;
  static constexpr int out_row = apart(cells_at + cells, 64), out_buffer = kColumns * out_row;
  static constexpr int ring_at = 2 * operand_buffer, out_at = ring_at + stages * ring_stage;
  static constexpr int weights_at = out_at + 2 * out_buffer;
  static constexpr int shared = weights_at + warps * groups * Tiles::tiles * (depth - resident) * 32 * 16;
  static_assert(shared <= most_shared);
};

// The same of backward. Rows are units, whose dh a thread has; the depth are the gates of all units.
template <Cell cell_, class Element_, int hidden_, int warps_, int in_registers_ = 4 * hidden_>
struct BackwardPlan {
  using Element = Element_;
  using Tiles = Tiling<Cell::rnn_tanh>;
  static constexpr Cell cell = cell_;
  static constexpr int hidden = hidden_, warps = warps_, threads = 32 * warps, size = sizeof(Element);
  static constexpr int gates = static_cast<int>(gates_of(cell)), blocks = static_cast<int>(blocks_of(cell));
  static constexpr int groups = hidden / (warps * Tiles::units);
  static constexpr int depth = gates * hidden * size / 32;
  static constexpr int resident = in_registers_ < depth ? in_registers_ : depth;
  static constexpr int stages = 3;
  static_assert(groups * warps * Tiles::units == hidden && depth % 2 == 0);

  // Two buffers of dgates, the ring (a row of dy, of the state before, of `saved` or y, of c and of c before), two buffers
  // of results (a row of dgates), and weights.
  static constexpr int operand_row = apart(gates * hidden * size, 128), operand_buffer = kColumns * operand_row;
  static constexpr int before_at = hidden * size, saved_at = 2 * hidden * size,
                       c_at = saved_at + blocks * hidden * size;
  static constexpr int c_before_at = c_at + 4 * hidden;
  static constexpr int ring_row = apart(c_at + (cell == Cell::lstm ? 8 * hidden : 0), 64);
  static constexpr int ring_stage = kColumns * ring_row;
  static constexpr int out_row = apart(blocks * hidden * size, 64), out_buffer = kColumns * out_row;
  static constexpr int ring_at = 2 * operand_buffer, out_at = ring_at + stages * ring_stage;
  static constexpr int weights_at = out_at + 2 * out_buffer;
  static constexpr int shared = weights_at + warps * groups * (depth - resident) * 32 * 16;
  static_assert(shared <= most_shared);
  static_assert(stages * ring_stage >= 4 * blocks * hidden * 4);  // for sums of biases
};

// What a warp multiplies: the rows of its gates and units.
template <class P>
class Weights {
 public:
  using T = typename P::Tiles;

  // element(unit, tile, half, k): what row `half` of a unit's in a tile has in column k. A lane reads no words but those it
  // wrote.
  template <class F>
  FUSEDRNN_DEVICE void load(unsigned char* shared, F element) {
    using Element = typename P::Element;
    constexpr int of_word = elements_of_word<Element>;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    own_ =
        shared + P::weights_at + (threadIdx.x / 32 * P::groups * T::tiles * (P::depth - P::resident) * 32 + lane) * 16;
#pragma unroll
    for (int group = 0; group < P::groups; ++group) {
#pragma unroll
      for (int tile = 0; tile < T::tiles; ++tile) {
#pragma unroll
        for (int k = 0; k < P::depth; ++k) {
          uint32_t words[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int unit = first_unit(group) + T::unit(j % 2, g), at = (8 * k + 4 * (j / 2) + t) * of_word;
            Element elements[of_word];
#pragma unroll
            for (int i = 0; i < of_word; ++i) elements[i] = for_product(element(unit, tile, j % 2, at + i));
            words[j] = word_of(elements);
          }
          if (k < P::resident) {
#pragma unroll
            for (int j = 0; j < 4; ++j) registers_[group][tile][k][j] = words[j];
          } else {
            *reinterpret_cast<uint4*>(place(group, tile, k)) = {words[0], words[1], words[2], words[3]};
          }
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
    const uint32_t row = h + lane % 8 * P::operand_row + lane / 8 * 16;
#pragma unroll
    for (int first = 0; first < P::depth; first += at_once) {
      constexpr int most = at_once < P::depth ? at_once : P::depth;
      uint4 b[most / 2];
#pragma unroll
      for (int k = 0; k < most && first + k < P::depth; k += 2) b[k / 2] = arch::load_tiles(row + (first + k) * 32);
#pragma unroll
      for (int k = 0; k < most && first + k < P::depth; ++k) {
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
    return own_ + ((group * T::tiles + tile) * (P::depth - P::resident) + k - P::resident) * 32 * 16;
  }

  FUSEDRNN_DEVICE void multiply(int group, int tile, int k, const uint32_t (&b)[2], float (&sums)[4]) const {
    if (k < P::resident) {
      Operand<typename P::Element>::mma(sums, registers_[group][tile][k < P::resident ? k : 0], b);
    } else {
      const uint4 a = arch::load_shared_16(arch::shared_address(place(group, tile, k)));
      Operand<typename P::Element>::mma(sums, {a.x, a.y, a.z, a.w}, b);
    }
  }

  uint32_t registers_[P::groups][T::tiles][P::resident > 0 ? P::resident : 1][4];
  unsigned char* own_;
};

}  // namespace fusedrnn::cuda
