// The weights on their way to the threads: rows of W_hh come into shared memory as they lie in memory, many at once, and
// from there each thread takes what it multiplies. Loaded straight into registers they would come a few at a time, for
// there is no room for more addresses beside them.
#pragma once

#include "numbers.cuh"

namespace fusedrnn::cuda {

// What a CTA has of W [G, H, width]: of each gate so many units, in whole rows.
template <class Element>
struct Matrix {
  const Element* first;  // of its units, of the first gate
  int H, width, units;
  // Of the columns, which it is multiplied with in turn: the first one, and after how many they begin anew.
  int begin, around;
};

// Of a matrix of up to `hidden` units, as many columns as some products along a row of W take; transposed, as many rows of
// up to `across` columns as products along a column take, `of_all`: of `hidden` units after another. A product takes
// `product` bytes.
template <class Kind, int gates, int hidden, int product, int threads, bool transposed, int across, bool of_all>
struct Staging {
  using Element = typename Operand<Kind>::Element;
  static constexpr int size = sizeof(Element), whole = 16 / size, of_product = product / size;

  static constexpr int rows(int products) { return transposed ? products * of_product : gates * hidden; }
  static constexpr int numbers(int products) { return transposed ? across : products * of_product; }  // of a row
  static constexpr int row_bytes(int products) { return numbers(products) * size + 16; }
  static constexpr int bytes(int products) { return rows(products) * row_bytes(products); }

  // As many products as have room.
  static constexpr int most(int room, int wanted) {
    int products = 0;
    while (products < wanted && bytes(products + 1) <= room) ++products;
    return products;
  }

  // A product's weights in shared memory; zeros beyond W.
  template <int pitch>
  struct Product {
    const unsigned char* shared;
    int along;  // columns before it

    // Of a gate and unit, the product's columns from one on.
    FUSEDRNN_DEVICE const Element* at(int unit, int gate, int column) const {
      const int bytes = transposed ? (along + column) * pitch + unit * size
                                   : (gate * hidden + unit) * pitch + (along + column) * size;
      return reinterpret_cast<const Element*>(shared + bytes);
    }

    // A tile of A as a lane has it: its upper and its lower rows are 8 units of a gate each, from units[i] of gates_of[i] on.
    FUSEDRNN_DEVICE void tile(const int (&units)[2], const int (&gates_of)[2], uint32_t (&words)[4]) const {
      constexpr int half = of_product / 2;
      const int lane = threadIdx.x % 32, row = lane % 8, column = lane / 16 * half;
      const bool lower = lane & 8;
      const int unit = lower ? units[1] : units[0], gate = lower ? gates_of[1] : gates_of[0];
      if constexpr (transposed && size == 4) {  // which the instruction does not transpose
#pragma unroll
        for (int j = 0; j < 4; ++j)
          words[j] = rounded(*at(units[j % 2] + lane / 4, gates_of[j % 2], j / 2 * half + lane % 4));
      } else if constexpr (transposed) {
        const uint4 four = arch::load_tiles_transposed(arch::shared_address(at(unit, gate, column + row)));
        words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
      } else {
        const uint4 four = arch::load_tiles(arch::shared_address(at(unit + row, gate, column)));
        words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
        if constexpr (size == 4) {
#pragma unroll
          for (int j = 0; j < 4; ++j) words[j] = rounded(__uint_as_float(words[j]));
        }
      }
    }
    FUSEDRNN_DEVICE static uint32_t rounded(float w) { return __float_as_uint(Operand<Kind>::for_product(w)); }
  };

  // Of the products along a row `parts` warps have two by turns; where there is one such warp, all.
  static constexpr int in_turn(int parts) { return parts > 1 ? 2 : 1; }

  // f(k, product) of this warp's products k from `first` to `last`. All threads of the CTA do it together.
  template <int first, int last, int room, int parts, class F>
  FUSEDRNN_DEVICE static void each(unsigned char* shared, const Matrix<Element>& w, int part, F f) {
    constexpr int whole_turns = in_turn(parts) * parts;
    constexpr int staged = most(room, (last - first) * parts) / whole_turns * whole_turns;
    constexpr int at_once = staged / parts, pitch = row_bytes(staged);
    static_assert(at_once > 0 && first % in_turn(parts) == 0 && last % in_turn(parts) == 0);
#pragma unroll
    for (int begin = first; begin < last; begin += at_once) {
      __syncthreads();
      copy<staged>(shared, w, begin * parts * of_product);
      arch::wait_for_copies();
      __syncthreads();
#pragma unroll
      for (int k = begin; k < begin + at_once && k < last; ++k) {
        const int own = k - begin, number = parts == 1 ? own : (own / 2 * parts + part) * 2 + own % 2;
        f(k, Product<pitch>{shared, number * of_product});
      }
    }
  }

  // The same of all products of P: before those with weights that stay in shared memory, the others have it all.
  template <class P, class Products, class F>
  FUSEDRNN_DEVICE static void all(unsigned char* shared, const Matrix<Element>& w, int part, F f) {
    constexpr int resident = Products::resident / Products::of_product / in_turn(P::parts) * in_turn(P::parts);
    if constexpr (resident > 0) each<0, resident, P::shared, P::parts>(shared, w, part, f);
    if constexpr (resident < Products::depth)
      each<resident, Products::depth, P::weights_at, P::parts>(shared, w, part, f);
    __syncthreads();
  }

 private:
  // `before`: columns of W before, or rows of [G, hidden], of all units of one such after another.
  template <int products>
  FUSEDRNN_DEVICE static void copy(unsigned char* shared, const Matrix<Element>& w, int before) {
    constexpr int pieces = numbers(products) / whole;
    for (int i = threadIdx.x; i < rows(products) * pieces; i += threads) {
      const int row = i / pieces, number = i % pieces * whole;
      const int of = row + (transposed ? before : 0), turn = number + (transposed ? 0 : before) + w.begin;
      const int column = turn < w.around ? turn : turn - w.around;
      const int block = of_all ? of / (gates * hidden) : 0;
      const int gate = of / hidden - block * gates, unit = block * hidden + of % hidden;
      unsigned char* const to = shared + row * row_bytes(products) + number * size;
      if (gate < gates && unit < w.units && column < w.width) {
        arch::copy_16_async(arch::shared_address(to), w.first + (gate * w.H + unit) * w.width + column);
      } else {
        *reinterpret_cast<uint4*>(to) = {0, 0, 0, 0};
      }
    }
  }
};

}  // namespace fusedrnn::cuda
