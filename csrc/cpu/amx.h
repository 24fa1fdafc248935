// Products of 16-bit numbers by the tile registers of AMX. Included inside the namespace of a variant.
//
// A tile is 16 rows of 64 bytes. A: rows of factors, 32 of K each. B: packed weights of 16 units, 32 of K in pairs,
// [pair][unit][2]. C: sums of 16 rows and 16 units, float. A and B take 8 cycles to load from L1, a product 16. Weights
// come from L2, once for every 16 rows, or, two tiles of rows at a time, once for every 32.

template <>
struct TileShape<bfloat16> {
  TileShape() = default;
  ~TileShape() {
    if (now) asm volatile("tilerelease");
  }
  TileShape(const TileShape&) = delete;

  // C are tiles 0 to 3, A 4 and 5, B 6 and 7.
  void set(int64_t rows) {
    if (rows == now) return;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int tile = 0; tile < 8; ++tile) {
      shape.row_bytes[tile] = 64;
      shape.rows[tile] = uint8_t(tile < 6 ? rows : spare_rows);
    }
    asm volatile("ldtilecfg %0" : : "m"(shape));
    now = rows;
  }

  int64_t now = 0;
};

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
    shape.set(rows);
  }

  TileShape<bfloat16>& shape;
  bfloat16* room;
  int64_t count = 0, tiles = 0, rows = 0, stride = 0, depth = 0;
};

// The compiler's own names for these instructions take the number of a tile as text and do not say that they read memory.
template <int Tile>
FUSEDRNN_INLINE void load_tile(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(Tile) : "memory");
}
template <int Tile>
FUSEDRNN_INLINE void store_tile(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(Tile) : "memory");
}
template <int C, int A, int B>
FUSEDRNN_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

template <int Count, class F>
FUSEDRNN_INLINE void for_constants(F f) {
  [&]<int... K>(std::integer_sequence<int, K...>)
      __attribute__((always_inline)) { (f(Constant<K>{}), ...); }(std::make_integer_sequence<int, Count>{});
}

constexpr int64_t tile_elements = 512;

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
      asm volatile("tilezero %%tmm%c0" : : "i"(c.value));
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
  int64_t tile = 0;
  for (; tile + 2 <= f.tiles; tile += 2) {
    multiply_tiles<S, 0, minimum(N, 2), 2>(f, tile * f.rows, w, fresh, out[0], out_stride);
    if constexpr (N > 2) multiply_tiles<S, 2, N - 2, 2>(f, tile * f.rows, w, fresh, out[0], out_stride);
  }
  if (tile < f.tiles) multiply_tiles<S, 0, N, 1>(f, tile * f.rows, w, fresh, out[0], out_stride);
}

// As dots() of the vectors: pairs of k at a time.
template <int N>
FUSEDRNN_INLINE void dots(const bfloat16* x, const bfloat16* const* rows, int64_t K, float* out) {
  VectorF acc[N] = {};
  const auto add = [&](int64_t k, __mmask32 mask) __attribute__((always_inline)) {
    const auto pairs = [&](const bfloat16* p)
                           __attribute__((always_inline)) { return (__m512bh)_mm512_maskz_loadu_epi16(mask, p + k); };
    const __m512bh xs = pairs(x);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[n] = (VectorF)_mm512_dpbf16_ps((__m512)acc[n], xs, pairs(rows[n]));
  };
  int64_t k = 0;
#pragma GCC unroll 1
  for (; k + 32 <= K; k += 32) add(k, ~__mmask32(0));
  if (k < K) add(k, (__mmask32(1) << (K - k)) - 1);
  for (int n = 0; n < N; ++n) out[n] = _mm512_reduce_add_ps((__m512)acc[n]);
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

// As add_outer() of the vectors: two tiles of m by two of n at a time, over as many rows as leave room in L2.
inline void add_outer(const bfloat16* const* left, int64_t at, const bfloat16* const* right, int64_t rows, int64_t m0,
                      int64_t m1, int64_t N, float* out, bool add) {
  if (rows == 0 && !add) return zero(out + m0 * N, (m1 - m0) * N);
  constexpr int W = lanes_of<bfloat16>;
  constexpr int64_t block = 512;
  const int64_t m_tiles = ceil_div(m1 - m0, W), n_tiles = ceil_div(N, W),
                depth = depth_of<bfloat16>(minimum(rows, block));
  auto* a = new bfloat16[(m_tiles + n_tiles + 2) * W * depth];
  bfloat16* b = a + (m_tiles + 1) * W * depth;
  TileShape<bfloat16> shape;
  shape.set(W);
  alignas(64) float sums[2 * W][2 * W];
  for (int64_t k = 0; k < rows; k += block, add = true) {
    const int64_t count = minimum(block, rows - k), deep = ceil_div(count, 32), column = deep * tile_elements;
    pack_rows<true>(left + k, count, at + m0, at + m1, a);
    pack_rows<false>(right + k, count, 0, N, b);
    for (int64_t n = 0; n < n_tiles; n += 2) {
      for (int64_t m = 0; m < m_tiles; m += 2) {
        const bfloat16 *in_a = a + m * column, *in_b = b + n * column;
        for_constants<4>([&](auto c) { asm volatile("tilezero %%tmm%c0" : : "i"(c.value)); });
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
