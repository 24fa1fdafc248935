// Products of 16-bit numbers by the tile registers of AMX. Included inside the namespace of a variant.
//
// A tile is 16 rows of 64 bytes. A: rows of factors, 32 of K each. B: packed weights of 16 units, 32 of K in pairs,
// [pair][unit][2]. C: sums of 16 rows and 16 units, float. A and B take 8 cycles to load from L1, a product 16. Weights
// come from L2, once for every 16 rows, or, two tiles of rows at a time, once for every 32.

struct alignas(64) TileSizes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

#if defined(FUSEDRNN_AMX_INSTRUCTIONS)  // others in their place, as a processor without them needs
#include FUSEDRNN_AMX_INSTRUCTIONS
#else
#include "amx_instructions.h"
#endif

template <>
constexpr int64_t rate_of<bfloat16> = 512;

template <>
struct TileShape<bfloat16> {
  TileShape() = default;
  ~TileShape() {
    if (now) release_tiles();
  }
  TileShape(const TileShape&) = delete;

  // C are tiles 0 to 3, A 4 and 5, B 6 and 7.
  void set(int64_t rows) {
    if (rows == now) return;
    TileSizes sizes;
    for (int tile = 0; tile < 8; ++tile) {
      sizes.row_bytes[tile] = 64;
      sizes.rows[tile] = uint8_t(tile < 6 ? rows : spare_rows);
    }
    set_tiles(sizes);
    now = rows;
  }

  int64_t now = 0;
};

template <int Count, class F>
FUSEDRNN_INLINE void for_constants(F f) {
  [&]<int... K>(std::integer_sequence<int, K...>)
      __attribute__((always_inline)) { (f(Constant<K>{}), ...); }(std::make_integer_sequence<int, Count>{});
}

// Slots [First, First + Count) of Tiles tiles of rows, at most four products in all.
template <class S, int First, int Count, int Tiles>
FUSEDRNN_INLINE void multiply_tiles(const Factors<bfloat16>& f, int64_t row, const bfloat16* w, bool fresh, float* out,
                                    int64_t out_stride) {
  const int64_t in_bytes = f.stride * 2, out_bytes = out_stride * 4;
  const bfloat16* in = f.room + row * f.stride;
  const auto each_sum = [&](auto g) __attribute__((always_inline)) {
    for_constants<Tiles>([&](auto tile) __attribute__((always_inline)) {
      for_constants<Count>([&](auto slot) __attribute__((always_inline)) {
        float* sums = out + (row + tile * f.rows) * out_stride + S::at[First + slot] * lanes_of<bfloat16>;
        g(Constant<tile.value * Count + slot.value>{}, sums);
      });
    });
  };
  each_sum([&](auto c, float* sums) __attribute__((always_inline)) {
    if (fresh) {
      zero_tile<c.value>();
    } else {
      load_tile<c.value>(sums, out_bytes);
    }
  });
  w += First * tile_elements;
#pragma GCC unroll 1
  for (int64_t k = 0; k < f.depth; k += 32, w += S::count * tile_elements) {
    for_constants<Count>([&](auto slot) __attribute__((always_inline)) {
      constexpr int B = 6 + slot.value % 2;
      load_tile<B>(w + slot * tile_elements, 64);
      for_constants<Tiles>([&](auto tile) __attribute__((always_inline)) {
        constexpr int A = 4 + tile.value;
        if constexpr (slot.value == 0) load_tile<A>(in + tile * f.rows * f.stride + k, in_bytes);
        multiply_tiles<tile.value * Count + slot.value, A, B>();
      });
    });
  }
  each_sum([&](auto c, float* sums) __attribute__((always_inline)) { store_tile<c.value>(sums, out_bytes); });
}

// As accumulate() of the vectors. The rows of `out` lie evenly spaced, with room for the spare ones behind them.
template <class S>
__attribute__((noinline)) void accumulate(const Factors<bfloat16>& f, const bfloat16* w, int64_t, bool fresh,
                                          float* const* out) {
  constexpr int N = S::count;
  const int64_t out_stride = f.count > 1 ? out[1] - out[0] : N * lanes_of<bfloat16>;
  f.shape.set(f.rows);
  int64_t tile = 0;
  for (; tile + 2 <= f.tiles; tile += 2) {
    multiply_tiles<S, 0, minimum(N, 2), 2>(f, tile * f.rows, w, fresh, out[0], out_stride);
    if constexpr (N > 2) multiply_tiles<S, 2, N - 2, 2>(f, tile * f.rows, w, fresh, out[0], out_stride);
  }
  if (tile < f.tiles) multiply_tiles<S, 0, N, 1>(f, tile * f.rows, w, fresh, out[0], out_stride);
}

// Two tiles of A by two of B, each followed by the other after `column` numbers.
struct Squares {
  static constexpr int64_t rows_at_once = 512;
  static constexpr int W = lanes_of<bfloat16>;

  Squares() { shape.set(W); }

  FUSEDRNN_INLINE void multiply(const bfloat16* in_a, const bfloat16* in_b, int64_t column,
                                float (&sums)[2 * W][2 * W]) {
    for_constants<4>([&](auto c) { zero_tile<c.value>(); });
#pragma GCC unroll 1
    for (int64_t d = 0; d < column; d += tile_elements) {
      load_tile<4>(in_a + d, 64);
      load_tile<6>(in_b + d, 64);
      multiply_tiles<0, 4, 6>();
      load_tile<5>(in_a + column + d, 64);
      multiply_tiles<2, 5, 6>();
      load_tile<7>(in_b + column + d, 64);
      multiply_tiles<1, 4, 7>();
      multiply_tiles<3, 5, 7>();
    }
    for_constants<4>([&](auto c) { store_tile<c.value>(&sums[c / 2 * W][c % 2 * W], sizeof sums[0]); });
  }

  TileShape<bfloat16> shape;
};

inline void add_outer(const bfloat16* const* left, int64_t at, const bfloat16* const* right, int64_t rows, int64_t m0,
                      int64_t m1, int64_t N, float* out, bool add) {
  add_outer_by_squares<Squares>(left, at, right, rows, m0, m1, N, out, add);
}
