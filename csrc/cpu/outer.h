// Sums over rows: out[m][n] (+)= sum over k of left[k][m] * right[k][n], as gradients of weights are. Included inside the
// namespace of a variant.
//
// Columns of `right` are the vectors, a panel of four at a time; those of `left` are broadcast. Rows are cut into blocks so
// that a panel's part of `right` stays in L1 until every column of `left` has used it, and blocks gathered until their part
// of `left` fills half of a small L2. Each block is summed from zero and then added, so that rounding grows with the block and
// with their number. What a thread does is a range of m: how m is cut changes no bit.

template <int Tile, int Count, class Real, class Lanes>
FUSEDRNN_INLINE void add_outer_tile(const Real* const* left, const Real* const* right, int64_t rows, int64_t at,
                                    int64_t n, Lanes last, Real* out, int64_t stride, bool add) {
  constexpr int W = lanes_of<Real>;
  Vector<Real> acc[Tile][Count] = {};
#pragma GCC unroll 1
  for (int64_t k = 0; k < rows; ++k) {
    const Real *l = left[k] + at, *r = right[k] + n;
    __builtin_prefetch(l + line_of<Real>, 0, 3);
    Vector<Real> weights[Count];
#pragma GCC unroll 4
    for (int a = 0; a < Count - 1; ++a) {
      weights[a] = load(r + a * W);
      if constexpr ((Tile + 1) * Count < vector_registers) keep_in_register(weights[a]);
    }
    weights[Count - 1] = load(r + (Count - 1) * W, last);
    keep_in_register(weights[Count - 1]);
#pragma GCC unroll 12
    for (int t = 0; t < Tile; ++t) {
      const Vector<Real> x = broadcast(l[t]);
#pragma GCC unroll 4
      for (int a = 0; a < Count; ++a) acc[t][a] = fma(x, weights[a], acc[t][a]);
    }
  }
#pragma GCC unroll 12
  for (int t = 0; t < Tile; ++t) {
    Real* to = out + t * stride + n;
#pragma GCC unroll 4
    for (int a = 0; a < Count; ++a) {
      const auto put = [&](auto lanes) __attribute__((always_inline)) {
        store(to + a * W, add ? load(to + a * W, lanes) + acc[t][a] : acc[t][a], lanes);
      };
      if (a < Count - 1) {
        put(Constant<W>{});
      } else {
        put(last);
      }
    }
  }
}

template <class Real>
__attribute__((noinline)) void add_outer(const Real* const* left, int64_t at, const Real* const* right, int64_t rows,
                                         int64_t m0, int64_t m1, int64_t N, Real* out, bool add) {
  if (rows == 0 && !add) return zero(out + m0 * N, (m1 - m0) * N);
  constexpr int W = lanes_of<Real>;
  constexpr int64_t block = (16 << 10) / (vectors_per_panel * FUSEDRNN_VECTOR_BYTES);
  const int64_t blocks = maximum(1, (256 << 10) / (block * (m1 - m0) * int64_t(sizeof(Real)) + 1)),
                group = blocks * block;
  for (int64_t g = 0; g < rows; g += group) {
    for (int64_t n = 0; n < N; n += vectors_per_panel * W) {
      const int vectors = int(minimum(vectors_per_panel, ceil_div(N - n, W)));
      for (int64_t k = g; k < minimum(rows, g + group); k += block) {
        with_vectors(vectors, [&](auto slots) {
          constexpr int Count = decltype(slots)::count;
          with_lanes<Real>(N - n - (Count - 1) * W, [&](auto last) {
            constexpr int most = (Count < 3 ? 2 : 1) * FUSEDRNN_TILE_ROWS;
            for_tiles<most>(m1 - m0, [&](auto tile, int64_t m) {
              add_outer_tile<decltype(tile)::value, Count>(left + k, right + k, minimum(block, rows - k), at + m0 + m,
                                                           n, last, out + (m0 + m) * N, N, add || k > 0);
            });
          });
        });
      }
    }
  }
}

template <class Real>
void multiply_rows(const Real* const* in, int64_t rows, int64_t K, const Real* packed, int64_t N, Real* const* out,
                   bool add) {
  constexpr int64_t W = lanes_of<Real>, room = vectors_per_panel * W, at_once = 256;
  TileShape<Real> shape;
  Factors<Real> factors(shape, minimum(rows, at_once), K);
  auto* sums = new Wide<Real>[(minimum(rows, at_once) + spare_rows) * room];
  Wide<Real>* sum_of[at_once];
  for (int64_t r = 0; r < at_once; ++r) sum_of[r] = sums + r * room;
  for (int64_t r0 = 0; r0 < rows; r0 += at_once) {
    const int64_t count = minimum(at_once, rows - r0);
    factors.set(count, in + r0, K);
    for (int64_t panel = 0; panel < backward_panels<Real>(N); ++panel) {
      const int vectors = vectors_in<Real>(panel, N);
      const Real* w = packed + depth_of<Real>(K) * panel * room;
      with_vectors(vectors, [&](auto slots) { accumulate<decltype(slots)>(factors, w, vectors * W, true, sum_of); });
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t n = 0; n < minimum(room, N - panel * room); n += W) {
          with_lanes<Real>(N - panel * room - n, [&](auto lanes) {
            Real* to = out[r0 + r] + panel * room + n;
            const Vector<Real> sum = load(sum_of[r] + n);
            store(to, add ? load(to, lanes) + sum : sum, lanes);
          });
        }
      }
    }
  }
  delete[] sums;
}
