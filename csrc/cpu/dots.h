// Products of 16-bit numbers by vectors: an instruction multiplies 16 pairs and adds both products to 16 sums (vdpbf16ps,
// which rounds to nearest and takes numbers below the smallest normal one for zero). Included inside the namespace of a
// variant.

// acc[r][a] += sum over the pairs of one k / 32 of in[r][k] * w[a][k]. Where it asks, then for `ahead`, a line each pair.
template <bool Asks, int Tile, int Count>
FUSEDRNN_INLINE void multiply_pairs(VectorF (&acc)[Tile][Count], const bfloat16* in, int64_t stride, const bfloat16* w,
                                    int64_t apart, const bfloat16* ahead, int64_t ahead_stride) {
#pragma GCC unroll 4
  for (int pair = 0; pair < 16; ++pair) {
    if constexpr (Asks) __builtin_prefetch(ahead + pair * ahead_stride, 0, 2);
    __m512bh weights[Count];
#pragma GCC unroll 4
    for (int a = 0; a < Count; ++a) weights[a] = (__m512bh)_mm512_loadu_si512(w + a * apart + pair * 32);
#pragma GCC unroll 8
    for (int r = 0; r < Tile; ++r) {
      int32_t two;
      __builtin_memcpy(&two, in + r * stride + 2 * pair, sizeof two);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 4
      for (int a = 0; a < Count; ++a) acc[r][a] = (VectorF)_mm512_dpbf16_ps((__m512)acc[r][a], x, weights[a]);
    }
  }
}

// As accumulate() of the vectors, with blocks of k that stay in L1 until every row has used them.
template <class S>
__attribute__((noinline)) void accumulate(const Factors<bfloat16>& f, const bfloat16* w, int64_t, bool fresh,
                                          float* const* out) {
  constexpr int N = S::count, W = lanes_of<bfloat16>;
  constexpr int64_t block = (16 << 10) / (N * 64 * 16) * 32;
  const bool asks = f.count > 2 * S::tile_rows;
  for (int64_t begin = 0; begin < f.depth; begin += block) {
    const int64_t end = minimum(begin + block, f.depth);
    for_tiles<S::tile_rows>(f.count, [&](auto tile, int64_t first) {
      constexpr int Tile = decltype(tile)::value;
      VectorF acc[Tile][N] = {};
      const bfloat16* in = f.room + first * f.stride;
      const auto multiply = [&](auto asks) __attribute__((always_inline)) {
        const bfloat16* ahead = w + N * 16 * (end + (end - begin) * first / f.count);
        const int64_t ahead_stride = N * 32 * Tile / f.count;
#pragma GCC unroll 1
        for (int64_t k = begin; k < end; k += 32, ahead += 16 * ahead_stride)
          multiply_pairs<asks>(acc, in + k, f.stride, w + k / 32 * N * tile_elements, tile_elements, ahead,
                               ahead_stride);
      };
      if (asks) {
        multiply(Constant<true>{});
      } else {
        multiply(Constant<false>{});
      }
      const bool add = !fresh || begin > 0;
#pragma GCC unroll 8
      for (int r = 0; r < Tile; ++r) {
#pragma GCC unroll 4
        for (int a = 0; a < N; ++a) {
          float* to = out[first + r] + S::at[a] * W;
          store(to, add ? load(to) + acc[r][a] : acc[r][a]);
        }
      }
    });
  }
}

// Two tiles of A by two of B, each followed by the other after `column` numbers.
struct Squares {
  static constexpr int W = lanes_of<bfloat16>, rows = 8;
  static constexpr int64_t rows_at_once = 256;

  FUSEDRNN_INLINE void multiply(const bfloat16* in_a, const bfloat16* in_b, int64_t column,
                                float (&sums)[2 * W][2 * W]) {
    for (int first = 0; first < 2 * W; first += rows) {
      VectorF acc[rows][2] = {};
      const bfloat16* in = in_a + first / W * column + first % W * 32;
#pragma GCC unroll 1
      for (int64_t d = 0; d < column; d += tile_elements)
        multiply_pairs<false>(acc, in + d, 32, in_b + d, column, in_b, 0);
      for (int r = 0; r < rows; ++r) {
        store(&sums[first + r][0], acc[r][0]);
        store(&sums[first + r][W], acc[r][1]);
      }
    }
  }
};

inline void add_outer(const bfloat16* const* left, int64_t at, const bfloat16* const* right, int64_t rows, int64_t m0,
                      int64_t m1, int64_t N, float* out, bool add) {
  add_outer_by_squares<Squares>(left, at, right, rows, m0, m1, N, out, add);
}
