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
// up to `across` columns as products along a column take. A product takes `product` bytes.
template <class Kind, int gates, int hidden, int product, int threads, bool transposed, int across>
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

  // f(k, word) of the products k from `first` to `last`: word(unit, gate, column) are as many elements as fill a word, from
  // that column of the k-th product on, of a row of a gate and unit; zeros beyond W. All threads of the CTA do it together.
  template <int first, int last, int room, class F>
  FUSEDRNN_DEVICE static void each(unsigned char* shared, const Matrix<Element>& w, F f) {
    constexpr int at_once = most(room, last - first), pitch = row_bytes(at_once);
    static_assert(at_once > 0);
#pragma unroll
    for (int begin = first; begin < last; begin += at_once) {
      __syncthreads();
      copy<at_once>(shared, w, begin * of_product);
      arch::wait_for_copies();
      __syncthreads();
#pragma unroll
      for (int k = begin; k < begin + at_once && k < last; ++k) {
        f(k, [&](int unit, int gate, int column) {
          const int along = (k - begin) * of_product + column;
          const int at = transposed ? along * pitch + unit * size : (gate * hidden + unit) * pitch + along * size;
          return word_of<Kind>(shared + at, transposed ? pitch : size);
        });
      }
    }
  }

  // The same of all products of P: before those whose weights stay in shared memory, the others have it all.
  template <class P, class Products, class F>
  FUSEDRNN_DEVICE static void all(unsigned char* shared, const Matrix<Element>& w, F f) {
    constexpr int resident = Products::resident * P::parts, depth = Products::depth * P::parts;
    if constexpr (resident > 0) each<0, resident, P::shared>(shared, w, f);
    if constexpr (resident < depth) each<resident, depth, P::weights_at>(shared, w, f);
    __syncthreads();
  }

 private:
  // `before`: columns of W before, or rows of [G, hidden].
  template <int products>
  FUSEDRNN_DEVICE static void copy(unsigned char* shared, const Matrix<Element>& w, int before) {
    constexpr int pieces = numbers(products) / whole;
    for (int i = threadIdx.x; i < rows(products) * pieces; i += threads) {
      const int row = i / pieces, number = i % pieces * whole;
      const int of = row + (transposed ? before : 0), turn = number + (transposed ? 0 : before) + w.begin;
      const int column = turn < w.around ? turn : turn - w.around;
      const int gate = of / hidden, unit = of % hidden;
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
