// The sizes of a kernel, and what lies where in its shared memory.
#pragma once

#include <algorithm>

#include "lanes.cuh"
#include "tiles.cuh"

namespace fusedrnn::cuda {

// Bytes of shared memory that a CTA may have on Hopper, and on every GPU from Ampere on.
constexpr int most_shared = 227 << 10, least_shared = 99 << 10;

constexpr int over(int count, int divisor) { return (count + divisor - 1) / divisor; }

// Bytes of a row: the least, from `bytes` on, that is 16 more than a multiple. What the lanes of a warp read at once from
// 8 rows of 128 and 16, or from 4 of each second row of 64 and 16, lies in different banks.
constexpr int whole(int bytes, int multiple) { return over(bytes, multiple) * multiple; }
constexpr int apart(int bytes, int multiple) { return whole(bytes, multiple) + 16; }

// `ctas_` CTAs have `hidden_` units each, and serve every H up to as many as that is together: units beyond H are zeros.
// They are a cluster, or in clusters of `cluster_`, which exchange the operand by way of L2.
// `in_registers` is how many registers of a thread hold weights, of the first products along a row; the others find them
// in shared memory, after two buffers of the operand of the products, a ring of inputs, two buffers of results, and what
// the CTAs of a cluster need to exchange the operand. operand, input and results are the bytes that a row of each has.
template <Cell cell_, class Kind_, class Tiles_, bool transposed, int hidden_, int warps_, int in_registers,
          int operand, int input, int results, int ctas_ = 1, int cluster_ = ctas_>
struct Plan {
  using Kind = Kind_;
  using Operand = cuda::Operand<Kind>;
  using Element = typename Operand::Element;
  using Tiles = Tiles_;
  static constexpr Cell cell = cell_;
  static constexpr int hidden = hidden_, warps = warps_, threads = 32 * warps, size = sizeof(Element);
  static constexpr int gates = static_cast<int>(gates_of(cell)), columns = Tiles::columns;
  static constexpr int ctas = ctas_, cluster = cluster_, units = ctas * hidden, parts = Tiles::parts;
  static constexpr bool backward = transposed, of_grid = ctas > cluster;
  static constexpr int groups = over(hidden * parts, warps* Tiles::units);  // of units, a warp
  static constexpr int depth = over(operand, Tiles::bytes* parts);          // products of a warp along a row
  static constexpr int busy = hidden * parts / (groups * Tiles::units);     // warps that have units

  // Backward each CTA of a cluster sums over the gates of its own units what reaches all of them.
  // Forward the columns of the weights begin with those of its own units. Of a grid each CTA sums all of what reaches its
  // own units, and the columns are in their order.
  static constexpr bool partial = transposed && cluster > 1 && !of_grid, rotated = !transposed && ctas > 1 && !of_grid;
  static constexpr bool gathers = transposed && of_grid;
  static_assert(groups * busy * Tiles::units == hidden * parts && (busy == warps || partial));
  static constexpr int weight_groups = [] {
    if constexpr (partial) return units / (warps * Tiles::Of::units);
    return groups;
  }();

  // 16 bytes of a thread's weights, along a row product after product: of one; of all; of those, in registers.
  static constexpr int of_product = Tiles::in_memory * weight_groups, of_row = of_product * depth;
  static constexpr int resident = std::min(in_registers / 4, of_row);

  using Staging =
      cuda::Staging<Kind, gates, hidden, Tiles::bytes, threads, transposed, gathers ? hidden : units, gathers>;
  static constexpr int inputs = 0;
  static constexpr int operand_row = apart(operand, 128), operand_buffer = Tiles::rows * operand_row;
  static constexpr int ring_row = apart(input, 64), ring_stage = Tiles::rows * ring_row;
  static constexpr int out_row = apart(results, 64), out_buffer = Tiles::rows * out_row;
  static constexpr int ring_at = 2 * operand_buffer, weights = (of_row - resident) * threads * 16;
  static constexpr int slice = operand / ctas, slice_row = apart(slice, 64);  // of a grid's operand, a CTA's
  static constexpr int slices = of_grid ? Tiles::rows * slice_row : 0;
  static constexpr int waves = of_grid ? 1 : ctas > 1 ? 2 : 0, barriers = 2 * waves * 8;
  static constexpr int sums = (partial ? 2 * units * columns : Tiles::shared_sums * groups * threads) * 4;
  static constexpr int rest = 2 * out_buffer + sums + slices + barriers;
  static constexpr int stages = std::clamp((most_shared - ring_at - rest - weights) / ring_stage, 2, 4);
  static constexpr int out_at = ring_at + stages * ring_stage, sums_at = out_at + 2 * out_buffer;
  static constexpr int slice_at = sums_at + sums, barriers_at = slice_at + slices, end = barriers_at + barriers;
  static constexpr int weights_at = std::max(end, Staging::bytes(Staging::in_turn(parts) * parts));
  static constexpr int shared =
      std::max(weights_at + weights, std::min(least_shared, Staging::bytes(resident / of_product * parts)));
  static_assert(shared <= most_shared);

  // Where a step finds the operand of its products and its input, and leaves its results. Where a CTA writes its own part
  // of the operand, whose rows are so far apart.
  FUSEDRNN_DEVICE static int operand_of(int step) { return step % 2 * operand_buffer; }
  FUSEDRNN_DEVICE static int own_operand_of(int step) { return of_grid ? slice_at : operand_of(step); }
  static constexpr int own_operand_row = of_grid ? slice_row : operand_row;
  FUSEDRNN_DEVICE static int input_of(int step) { return ring_at + step % stages * ring_stage; }
  FUSEDRNN_DEVICE static int results_of(int step) { return out_at + step % 2 * out_buffer; }
};

template <Cell cell>
constexpr int kept_blocks = is_rnn(cell) ? 0 : 4;
template <Cell cell>
constexpr int c_blocks = cell == Cell::lstm ? 1 : 0;

// How the rows of W_hh, or of W_hh transposed, are dealt out to `warps` warps: where there are too few for them, several
// warps share rows.
template <Cell cell, int parts>
using InParts = std::conditional_t<parts == 1, Tiling<cell>, SplitTiling<cell, parts>>;
template <Cell cell, int hidden, int warps>
constexpr int parts_of = std::max(1, warps* Tiling<cell>::units / hidden);

template <class Kind, Cell cell, int hidden, int warps>
struct Dealt {
  using Forward = InParts<cell, parts_of<cell, hidden, warps>>;
  static constexpr Cell transposed = Cell::rnn_tanh;
  template <int ctas, bool partial>
  using Backward = std::conditional_t<partial, Spread<Tiling<transposed>, 1>,
                                      InParts<transposed, parts_of<transposed, hidden, warps>>>;
};
template <int columns, Cell cell, int hidden, int warps>
struct Dealt<Ieee<columns>, cell, hidden, warps> {
  static constexpr int gates = static_cast<int>(gates_of(cell)), units = is_rnn(cell) ? 4 : 1;
  using Forward = Lanes<gates, units, units * 32 * warps / hidden, columns>;
  // So many rows of weights to a thread, that so many lanes share.
  template <int ctas, int threads = 32 * warps, int lanes = std::min(4, 8 * threads / (ctas * hidden))>
  using OfAll = Lanes<1, ctas * hidden * lanes / threads, lanes, columns>;
  template <int ctas, bool partial>
  using Backward = std::conditional_t<partial, Spread<OfAll<ctas>, std::max(1, 32 * warps / (hidden * columns))>,
                                      Lanes<1, 4, 4 * 32 * warps / hidden, columns>>;
};

// Input: pre-activations, or where inputs_ is not 0 up to so many numbers of x, whose weights lie in shared memory as well.
// Results: a row of y, of `saved`, of `cells`.
template <Cell cell, class Kind, int hidden, int warps, int in_registers = 255, int inputs_ = 0, int ctas_ = 1,
          int cluster_ = ctas_, int size = sizeof(typename Operand<Kind>::Element)>
struct ForwardPlan
    : Plan<cell, Kind, typename Dealt<Kind, cell, hidden, warps>::Forward, false, hidden, warps, in_registers,
           ctas_ * hidden * size, (inputs_ ? inputs_ : static_cast<int>(gates_of(cell)) * hidden) * size,
           (1 + kept_blocks<cell>)*hidden * size + c_blocks<cell> * 4 * hidden, ctas_, cluster_> {
  static constexpr int inputs = inputs_;
  static constexpr int kept_at = hidden * size, cells_at = kept_at + kept_blocks<cell> * hidden * size;

  // The products of W_ih and x.
  struct Inputs {
    static constexpr int depth = inputs * size / ForwardPlan::Tiles::bytes, resident = 0;
    static constexpr int of_product = ForwardPlan::of_product;
    static constexpr int operand_row = ForwardPlan::ring_row,
                         weights_at = ForwardPlan::weights_at + ForwardPlan::weights;
  };
  static constexpr int shared = std::max(
      ForwardPlan::Plan::shared, Inputs::weights_at + Inputs::of_product * Inputs::depth * ForwardPlan::threads * 16);
  static_assert(shared <= most_shared);
};

// Of the products, rows are units, whose dh a thread has; the depth are the gates of all units. Input: a row of dy, of the
// state before, of `saved` or y, of c and of c before. Results: a row of dgates.
template <Cell cell, class Kind, int hidden, int warps, int in_registers = 255, int ctas = 1, int cluster = ctas,
          int size = sizeof(typename Operand<Kind>::Element)>
struct BackwardPlan
    : Plan<cell, Kind,
           typename Dealt<Kind, cell, hidden, warps>::template Backward<ctas, (ctas == cluster && ctas > 1)>, true,
           hidden, warps, in_registers, static_cast<int>(gates_of(cell)) * hidden * size*(cluster < ctas ? ctas : 1),
           (2 + blocks_of(cell)) * hidden * size + c_blocks<cell> * 8 * hidden, blocks_of(cell) * hidden * size, ctas,
           cluster> {
  static constexpr int blocks = static_cast<int>(blocks_of(cell));
  static constexpr int before_at = hidden * size, saved_at = 2 * hidden * size;
  static constexpr int c_at = saved_at + blocks * hidden * size, c_before_at = c_at + 4 * hidden;

  // Of the columns of a unit, so many are another thread's each.
  static constexpr int shares = BackwardPlan::Tiles::rows / BackwardPlan::Tiles::sides;
  static_assert(BackwardPlan::stages * BackwardPlan::ring_stage >= shares * blocks * hidden * 4);  // for sums of biases
};

}  // namespace fusedrnn::cuda
