// The micro-kernel shared by forward, backward and the input product. Included inside the namespace of a variant.

// The rows of a product. In 16 bits the processor's tiles need them gathered, and know of their number.
template <class Real>
struct TileShape {};

template <class Real>
struct Factors {
  Factors(TileShape<Real>&, int64_t, int64_t) {}

  void set(int64_t rows, const Real* const* rows_at, int64_t elements) {
    count = rows;
    in = rows_at;
    K = elements;
  }

  int64_t count = 0, K = 0;
  const Real* const* in = nullptr;
};

// Multiply-adds a cycle.
template <class Real>
constexpr int64_t rate_of = 2 * lanes_of<Real>;

// Where the vectors of a row of weights accumulate.
template <int... Slot>
struct Slots {
  static constexpr int count = sizeof...(Slot);
  static constexpr int at[sizeof...(Slot)] = {Slot...};
  // Rows of a tile: as many as leave registers for the weights and one broadcast.
  static constexpr int tile_rows = count == 3 ? FUSEDRNN_TILE_ROWS * 4 / 3 : FUSEDRNN_TILE_ROWS;
};

// acc[r][a] += sum over k of in[r][k] * w[k][a], k ascending. Where it asks, then for `ahead`, a line each k.
template <bool Asks, class Real, int Tile, int Count>
FUSEDRNN_INLINE void multiply(Vector<Real> (&acc)[Tile][Count], const Real* const (&in)[Tile], int64_t K, const Real* w,
                              int64_t stride, const Real* ahead, int64_t ahead_stride) {
  constexpr int W = lanes_of<Real>;
#pragma GCC unroll 1
  for (int64_t k = 0; k < K; ++k, w += stride, ahead += ahead_stride) {
    if constexpr (Asks) __builtin_prefetch(ahead, 0, 2);
    Vector<Real> weights[Count];
#pragma GCC unroll 4
    for (int a = 0; a < Count; ++a) {
      weights[a] = load(w + a * W);
      if constexpr (Tile > 1 && (Tile + 1) * Count < vector_registers) keep_in_register(weights[a]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Tile; ++r) {
      const Vector<Real> x = broadcast(in[r][k]);
#pragma GCC unroll 4
      for (int a = 0; a < Count; ++a) acc[r][a] = fma(x, weights[a], acc[r][a]);
    }
  }
}

// Cuts n rows into tiles of at most Most, as equal as can be, and calls f(Constant<size>, first row). The first is one of
// the larger: a block's first tile waits for its weights, and its rows share the wait.
template <int Most, class F>
FUSEDRNN_INLINE void with_tile(int64_t size, int64_t first, F f) {
  if constexpr (Most == 1) {
    f(Constant<1>{}, first);
  } else {
    if (size == Most) {
      f(Constant<Most>{}, first);
    } else {
      with_tile<Most - 1>(size, first, f);
    }
  }
}

template <int Most, class F>
FUSEDRNN_INLINE void for_tiles(int64_t n, F f) {
  const int64_t tiles = ceil_div(n, Most);
  for (int64_t j = 0; j < tiles; ++j) {
    const int64_t first = ceil_div(n * j, tiles);
    with_tile<Most>(ceil_div(n * (j + 1), tiles) - first, first, f);
  }
}

// One product of rows with a panel of weights w [K, at `stride`][S::count][lane]: the slots of S in out[r]
// [slot][lane] receive, or where not `fresh` have added, the sums over k of in[r][k] * w[k]. k is cut into blocks that
// stay in L1 until every row has used them; each is summed from zero, so that rounding grows with the block and with
// their number, not with K. How the rows are cut changes no bit.
template <class S, class Real>
__attribute__((noinline)) void accumulate(const Factors<Real>& factors, const Real* w, int64_t stride, bool fresh,
                                          Real* const* out) {
  constexpr int W = lanes_of<Real>;
  const int64_t count = factors.count, K = factors.K;
  constexpr int64_t block = (16 << 10) / (S::count * FUSEDRNN_VECTOR_BYTES);
  // While tiles use a block, the processor sees no reason to fetch the next one: each tile asks for its part of it. One or
  // two tiles are through before it could come.
  const bool asks = count > 2 * S::tile_rows;
  for (int64_t k = 0; k < K; k += block) {
    for_tiles<S::tile_rows>(count, [&](auto tile, int64_t first) {
      constexpr int Tile = decltype(tile)::value;
      Vector<Real> acc[Tile][S::count] = {};
      const Real* x[Tile];
#pragma GCC unroll 8
      for (int r = 0; r < Tile; ++r) x[r] = factors.in[first + r] + k;
      const int64_t now = minimum(block, K - k);
      const Real* here = w + k * stride;
      if (asks) {
        const Real* ahead = here + now * (stride + stride * first / count);
        multiply<true, Real>(acc, x, now, here, stride, ahead, stride * Tile / count);
      } else {
        multiply<false, Real>(acc, x, now, here, stride, here, 0);
      }
      const bool add = !fresh || k > 0;
#pragma GCC unroll 8
      for (int r = 0; r < Tile; ++r) {
#pragma GCC unroll 4
        for (int a = 0; a < S::count; ++a) {
          Real* to = out[first + r] + S::at[a] * W;
          store(to, add ? load(to) + acc[r][a] : acc[r][a]);
        }
      }
    });
  }
}

// Calls f(Slots<0, ..., count - 1>) for a run-time count of 1 to 4.
template <class F>
FUSEDRNN_INLINE void with_vectors(int count, F f) {
  if (count == 4) return f(Slots<0, 1, 2, 3>{});
  if (count == 3) return f(Slots<0, 1, 2>{});
  if (count == 2) return f(Slots<0, 1>{});
  f(Slots<0>{});
}

// Sum of the lanes of each of lanes_of<Real> vectors: lane a of the result is that of sums[a].
template <class Real, int Half = lanes_of<Real> / 2>
FUSEDRNN_INLINE Vector<Real> sums_of_lanes(Vector<Real>* sums) {
  constexpr auto lanes = std::make_integer_sequence<int, lanes_of<Real>>{};
#pragma GCC unroll 8
  for (int u = 0; u < Half; ++u) {
    const Vector<Real> a = sums[u], b = sums[u + Half];
    sums[u] = exchanged<Half, false>(a, b, lanes) + exchanged<Half, true>(a, b, lanes);
  }
  if constexpr (Half > 1) sums_of_lanes<Real, Half / 2>(sums);
  return sums[0];
}

// out[n * Units + u] = sum over k of x[k] * rows[n][u * K + k], for N times Units rows.
template <int N, int Units, class Real>
FUSEDRNN_INLINE void dots(const Real* x, const Real* const* rows, int64_t K, Wide<Real>* out) {
  constexpr int W = lanes_of<Real>, all = (N * Units + W - 1) / W * W;
  Vector<Real> acc[all] = {};
  const auto add = [&](int64_t k, auto lanes) __attribute__((always_inline)) {
    const Vector<Real> xs = load(x + k, lanes);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
      for (int u = 0; u < Units; ++u)
        acc[n * Units + u] = fma(xs, load(rows[n] + u * K + k, lanes), acc[n * Units + u]);
    }
  };
  int64_t k = 0;
#pragma GCC unroll 1
  for (; k + W <= K; k += W) add(k, Constant<W>{});
  if (k < K) add(k, int(K - k));
#pragma GCC unroll 4
  for (int a = 0; a < all; a += W) store(out + a, sums_of_lanes<Real>(acc + a));
}

template <class Real>
void widen(const Real* from, int64_t count, Wide<Real>* to) {
  constexpr int64_t W = lanes_of<Real>;
  for (int64_t k = 0; k < count; k += W)
    store(to + k, load(from + k, int(minimum(W, count - k))), int(minimum(W, count - k)));
}

template <class Real>
void narrow(const Wide<Real>* from, int64_t count, Real* to) {
  constexpr int64_t W = lanes_of<Real>;
  for (int64_t k = 0; k < count; k += W)
    store(to + k, load(from + k, int(minimum(W, count - k))), int(minimum(W, count - k)));
}

template <class Real>
FUSEDRNN_INLINE void copy(Real* to, const Real* from, int64_t count) {
  __builtin_memcpy(to, from, count * sizeof(Real));
}

template <class Real>
FUSEDRNN_INLINE void zero(Real* to, int64_t count) {
  __builtin_memset(to, 0, count * sizeof(Real));
}
