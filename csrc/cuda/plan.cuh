// The sizes of a kernel, and what lies where in its shared memory.
#pragma once

#include "lanes.cuh"
#include "staging.cuh"
#include "tiles.cuh"

namespace fusedrnn::cuda {

constexpr int most_shared = 227 << 10;  // bytes of shared memory that Hopper gives a CTA

// Bytes of a row: the least, from `bytes` on, that is 16 more than a multiple. What the lanes of a warp read at once from
// 8 rows of 128 and 16, or from 4 of each second row of 64 and 16, lies in different banks.
constexpr int apart(int bytes, int multiple) { return (bytes + multiple - 1) / multiple * multiple + 16; }

// It serves every H up to `hidden_`: units beyond H are zeros. `in_registers` is how many of the products along a row of
// the weights find them in registers; the others find them in shared memory, after two buffers of the operand of the
// products, a ring of inputs, and two buffers of results. operand, input and results are the bytes that a row of each has.
template <Cell cell_, class Kind_, class Tiles_, bool transposed, int hidden_, int warps_, int in_registers,
          int operand, int input, int results>
struct Plan {
  using Kind = Kind_;
  using Operand = cuda::Operand<Kind>;
  using Element = typename Operand::Element;
  using Tiles = Tiles_;
  static constexpr Cell cell = cell_;
  static constexpr int hidden = hidden_, warps = warps_, threads = 32 * warps, size = sizeof(Element);
  static constexpr int gates = static_cast<int>(gates_of(cell)), columns = Tiles::columns;
  static constexpr int groups = hidden / (warps * Tiles::units);  // of units, a warp
  static constexpr int depth = operand / Tiles::bytes, resident = in_registers < depth ? in_registers : depth;
  static_assert(groups * warps * Tiles::units == hidden && depth * Tiles::bytes == operand);

  using Staging = cuda::Staging<Kind, gates, hidden, Tiles::bytes, threads, transposed>;
  static constexpr int inputs = 0;
  static constexpr int operand_row = apart(operand, 128), operand_buffer = Tiles::rows * operand_row;
  static constexpr int ring_row = apart(input, 64), ring_stage = Tiles::rows * ring_row;
  static constexpr int out_row = apart(results, 64), out_buffer = Tiles::rows * out_row;
  static constexpr int ring_at = 2 * operand_buffer,
                       weights = Tiles::in_memory * (depth - resident) * groups * threads * 16;
  static constexpr int stages = ring_at + 4 * ring_stage + 2 * out_buffer + weights > most_shared ? 3 : 4;
  static constexpr int out_at = ring_at + stages * ring_stage, out_end = out_at + 2 * out_buffer;
  static constexpr int weights_at = out_end > Staging::bytes(1) ? out_end : Staging::bytes(1);
  static constexpr int shared = weights_at + weights;
  static_assert(shared <= most_shared);
};

template <Cell cell>
constexpr int kept_blocks = is_rnn(cell) ? 0 : 4;
template <Cell cell>
constexpr int c_blocks = cell == Cell::lstm ? 1 : 0;

// How the rows of W_hh, or of W_hh transposed, are dealt out to `warps` warps.
template <class Kind, Cell cell, int hidden, int warps>
struct Dealt {
  using Forward = Tiling<cell>;
  using Backward = Tiling<Cell::rnn_tanh>;
};
template <int columns, Cell cell, int hidden, int warps>
struct Dealt<Ieee<columns>, cell, hidden, warps> {
  static constexpr int gates = static_cast<int>(gates_of(cell)), units = is_rnn(cell) ? 4 : 1;
  using Forward = Lanes<gates, units, units * 32 * warps / hidden, columns>;
  using Backward = Lanes<1, 4, 4 * 32 * warps / hidden, columns>;
};

// Input: pre-activations, or where inputs_ is not 0 up to so many numbers of x, whose weights lie in shared memory as well.
// Results: a row of y, of `saved`, of `cells`.
template <Cell cell, class Kind, int hidden, int warps, int in_registers = hidden, int inputs_ = 0,
          int size = sizeof(typename Operand<Kind>::Element)>
struct ForwardPlan
    : Plan<cell, Kind, typename Dealt<Kind, cell, hidden, warps>::Forward, false, hidden, warps, in_registers,
           hidden * size, (inputs_ ? inputs_ : static_cast<int>(gates_of(cell)) * hidden) * size,
           (1 + kept_blocks<cell>)*hidden * size + c_blocks<cell> * 4 * hidden> {
  static constexpr int inputs = inputs_;
  static constexpr int kept_at = hidden * size, cells_at = kept_at + kept_blocks<cell> * hidden * size;

  // The products of W_ih and x.
  struct Inputs {
    static constexpr int depth = inputs * size / ForwardPlan::Tiles::bytes, resident = 0;
    static constexpr int operand_row = ForwardPlan::ring_row, weights_at = ForwardPlan::Plan::shared;
  };
  static constexpr int shared = Inputs::weights_at + ForwardPlan::Tiles::in_memory * Inputs::depth *
                                                         ForwardPlan::groups * ForwardPlan::threads * 16;
  static_assert(shared <= most_shared);
};

// Of the products, rows are units, whose dh a thread has; the depth are the gates of all units. Input: a row of dy, of the
// state before, of `saved` or y, of c and of c before. Results: a row of dgates.
template <Cell cell, class Kind, int hidden, int warps, int in_registers = 4 * hidden,
          int size = sizeof(typename Operand<Kind>::Element)>
struct BackwardPlan
    : Plan<cell, Kind, typename Dealt<Kind, cell, hidden, warps>::Backward, true, hidden, warps, in_registers,
           gates_of(cell) * hidden * size, (2 + blocks_of(cell)) * hidden * size + c_blocks<cell> * 8 * hidden,
           blocks_of(cell) * hidden * size> {
  static constexpr int blocks = static_cast<int>(blocks_of(cell));
  static constexpr int before_at = hidden * size, saved_at = 2 * hidden * size;
  static constexpr int c_at = saved_at + blocks * hidden * size, c_before_at = c_at + 4 * hidden;

  // Of the columns of a unit, so many are another thread's each.
  static constexpr int shares = BackwardPlan::Tiles::rows / BackwardPlan::Tiles::sides;
  static_assert(BackwardPlan::stages * BackwardPlan::ring_stage >= shares * blocks * hidden * 4);  // for sums of biases
};

}  // namespace fusedrnn::cuda
