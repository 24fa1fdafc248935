// Products of 16-bit numbers, two of k at a time. Included inside the namespace of a variant, before the file with its
// products: by the tiles of AMX (amx.h), or by vectors (dots.h).
//
// Factors are rows of K numbers, weights tiles of 16 units and 32 of K in pairs, [pair][unit][2].

// Gathered: `tiles` tiles of `rows` rows; the last rows may be spare.
template <>
struct Factors<bfloat16> {
  Factors(TileShape<bfloat16>& shape, int64_t most_rows, int64_t most_K)
      : shape(shape), room(new bfloat16[(most_rows + spare_rows) * padded_row<bfloat16>(most_K)]) {}
  ~Factors() { delete[] room; }
  Factors(const Factors&) = delete;

  void set(int64_t rows_given, const bfloat16* const* in, int64_t K) {
    count = rows_given;
    tiles = ceil_div(count, spare_rows);
    rows = ceil_div(count, tiles);
    stride = padded_row<bfloat16>(K);
    depth = depth_of<bfloat16>(K);
    for (int64_t r = 0; r < count; ++r) {
      bfloat16* to = room + r * stride;
      if (in[r]) {
        copy(to, in[r], K);
        zero(to + K, depth - K);
      } else {
        zero(to, depth);
      }
    }
  }

  TileShape<bfloat16>& shape;
  bfloat16* room;
  int64_t count = 0, tiles = 0, rows = 0, stride = 0, depth = 0;
};

constexpr int64_t tile_elements = 512;

// As dots() of the vectors: pairs of k at a time.
template <int N, int Units>
FUSEDRNN_INLINE void dots(const bfloat16* x, const bfloat16* const* rows, int64_t K, float* out) {
  constexpr int W = lanes_of<bfloat16>, all = (N * Units + W - 1) / W * W;
  VectorF acc[all] = {};
  const auto add = [&](int64_t k, __mmask32 mask) __attribute__((always_inline)) {
    const auto pairs = [&](const bfloat16* p)
                           __attribute__((always_inline)) { return (__m512bh)_mm512_maskz_loadu_epi16(mask, p + k); };
    const __m512bh xs = pairs(x);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
      for (int u = 0; u < Units; ++u)
        acc[n * Units + u] = (VectorF)_mm512_dpbf16_ps((__m512)acc[n * Units + u], xs, pairs(rows[n] + u * K));
    }
  };
  int64_t k = 0;
#pragma GCC unroll 1
  for (; k + 32 <= K; k += 32) add(k, ~__mmask32(0));
  if (k < K) add(k, (__mmask32(1) << (K - k)) - 1);
#pragma GCC unroll 4
  for (int a = 0; a < all; a += W) store(out + a, sums_of_lanes<bfloat16>(acc + a));
}

// A pair of k as one number: w [G*H, K] -> panels of [k / 32][gate][pair][unit][2].
inline void pack_forward(Cell cell, const bfloat16* w, int64_t H, int64_t K, bfloat16* packed, int64_t first,
                         int64_t last) {
  constexpr int W = lanes_of<bfloat16>;
  const int64_t depth = depth_of<bfloat16>(K);
  for (int64_t panel = first; panel < last; ++panel) {
    bfloat16* out = packed + depth * panel_offset<bfloat16>(cell, panel);
    const int64_t slots = slots_of<bfloat16>(cell, H, panel);
    for (int64_t k = 0; k < K; k += 32) {
      const __mmask32 mask = K - k >= 32 ? ~__mmask32(0) : (__mmask32(1) << (K - k)) - 1;
      for_slots<bfloat16>(cell, H, panel, [&](int slot, int64_t row, int lanes) {
        VectorF square[W];
        for (int u = 0; u < W; ++u) {
          square[u] = u < lanes ? (VectorF)_mm512_maskz_loadu_epi16(mask, w + (row + u) * K + k) : VectorF{};
        }
        transpose<float>(square);
        bfloat16* to = out + (k / 32 * slots + slot) * tile_elements;
#pragma GCC unroll 16
        for (int u = 0; u < W; ++u) __builtin_memcpy(to + 32 * u, &square[u], sizeof square[u]);
      });
    }
  }
}

// w [K[0] + K[1], N] -> panels of [k / 32][vector][pair of k][column][2], first of the one part, then of the other.
inline void pack_backward(const bfloat16* w, const int64_t (&K)[2], int64_t N, bfloat16* packed, int64_t first,
                          int64_t last) {
  constexpr int W = lanes_of<bfloat16>;
  const int64_t depth = depth_of<bfloat16>(K[0]) + depth_of<bfloat16>(K[1]);
  for (int64_t panel = first; panel < last; ++panel) {
    bfloat16* out = packed + depth * panel * vectors_per_panel * W;
    const int vectors = vectors_in<bfloat16>(panel, N);
    const bfloat16* from = w + panel * vectors_per_panel * W;
    for (const int64_t rows : K) {
      for (int64_t k = 0; k < depth_of<bfloat16>(rows); k += 2) {
        for (int v = 0; v < vectors; ++v) {
          const int64_t column = (panel * vectors_per_panel + v) * W;
          const __mmask16 mask = first_lanes(int(minimum(W, N - column)));
          const auto row = [&](int64_t number) {
            const __mmask16 some = number < rows ? mask : __mmask16(0);
            return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from + number * N + v * W));
          };
          const __m512i both = _mm512_or_si512(row(k), _mm512_slli_epi32(row(k + 1), 16));
          _mm512_storeu_si512(out + ((k / 32 * vectors + v) * 16 + k % 32 / 2) * 32, both);
        }
      }
      out += depth_of<bfloat16>(rows) * vectors * W;
      from += rows * N;
    }
  }
}

// Rows k and k + 1, those beyond the last zeros, as pairs: [column][2] of 16 columns.
FUSEDRNN_INLINE __m512i pair_of_rows(const bfloat16* const* rows, int64_t count, int64_t k, int64_t column,
                                     __mmask16 some) {
  const auto row = [&](int64_t number) __attribute__((always_inline)) {
    if (number >= count) return __m512i{};
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, rows[number] + column));
  };
  return _mm512_or_si512(row(k), _mm512_slli_epi32(row(k + 1), 16));
}

// Columns [first, last) of `count` rows as tiles [column / 16][row / 32]: of B, or, transposed, of A.
template <bool Transposed>
void pack_rows(const bfloat16* const* rows, int64_t count, int64_t first, int64_t last, bfloat16* to) {
  constexpr int W = lanes_of<bfloat16>;
  for (int64_t column = first; column < last; column += W) {
    const __mmask16 some = first_lanes(int(minimum(W, last - column)));
    for (int64_t k = 0; k < count; k += 32, to += tile_elements) {
      VectorF square[W];
#pragma GCC unroll 16
      for (int pair = 0; pair < W; ++pair) {
        square[pair] = (VectorF)pair_of_rows(rows, count, k + 2 * pair, column, some);
      }
      if constexpr (Transposed) transpose<float>(square);
#pragma GCC unroll 16
      for (int u = 0; u < W; ++u) __builtin_memcpy(to + 32 * u, &square[u], sizeof square[u]);
    }
  }
}

// As add_outer() of the vectors: two tiles of m by two of n at a time, over as many rows as leave room in L2. Squares
// multiplies them.
template <class Squares>
void add_outer_by_squares(const bfloat16* const* left, int64_t at, const bfloat16* const* right, int64_t rows,
                          int64_t m0, int64_t m1, int64_t N, float* out, bool add) {
  if (rows == 0 && !add) return zero(out + m0 * N, (m1 - m0) * N);
  constexpr int W = lanes_of<bfloat16>;
  constexpr int64_t block = Squares::rows_at_once;
  const int64_t m_tiles = ceil_div(m1 - m0, W), n_tiles = ceil_div(N, W),
                depth = depth_of<bfloat16>(minimum(rows, block));
  auto* a = new bfloat16[(m_tiles + n_tiles + 2) * W * depth];
  bfloat16* b = a + (m_tiles + 1) * W * depth;
  Squares squares;
  alignas(64) float sums[2 * W][2 * W];
  for (int64_t k = 0; k < rows; k += block, add = true) {
    const int64_t count = minimum(block, rows - k), deep = ceil_div(count, 32), column = deep * tile_elements;
    pack_rows<true>(left + k, count, at + m0, at + m1, a);
    pack_rows<false>(right + k, count, 0, N, b);
    for (int64_t n = 0; n < n_tiles; n += 2) {
      for (int64_t m = 0; m < m_tiles; m += 2) {
        squares.multiply(a + m * column, b + n * column, column, sums);
        const int64_t left_over = N - n * W;
        for (int64_t r = 0; r < minimum(2 * W, m1 - m0 - m * W); ++r) {
          float* to = out + (m0 + m * W + r) * N + n * W;
          for (int v = 0; v < 2 && v * W < left_over; ++v) {
            with_lanes<float>(left_over - v * W, [&](auto lanes) {
              const VectorF sum = load(&sums[r][v * W]);
              store(to + v * W, add ? load(to + v * W, lanes) + sum : sum, lanes);
            });
          }
        }
      }
    }
  }
  delete[] a;
}
