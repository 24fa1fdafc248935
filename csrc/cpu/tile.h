// The micro-kernel shared by forward, backward and the input product. Included inside the namespace of a variant.

// acc[r][slot] += sum over k of in[r][k] * w[k][a], k ascending. Slots says where each weight vector accumulates.
template <int... Slot>
struct Slots {
  static constexpr int count = sizeof...(Slot);
  static constexpr int at[sizeof...(Slot)] = {Slot...};
  static constexpr int last = at[sizeof...(Slot) - 1];
};

template <class S, class Real, int Tile, int Accumulators>
FUSEDRNN_INLINE void multiply(Vector<Real> (&acc)[Tile][Accumulators], const Real* const (&in)[Tile], int64_t K,
                              const Real* w) {
  constexpr int W = lanes_of<Real>;
#pragma GCC unroll 1
  for (int64_t k = 0; k < K; ++k, w += S::count * W) {
    Vector<Real> weights[S::count];
#pragma GCC unroll 4
    for (int a = 0; a < S::count; ++a) weights[a] = load(w + a * W);
#pragma GCC unroll 8
    for (int r = 0; r < Tile; ++r) {
      const Vector<Real> x = broadcast(in[r][k]);
#pragma GCC unroll 4
      for (int a = 0; a < S::count; ++a) acc[r][S::at[a]] = fma(x, weights[a], acc[r][S::at[a]]);
    }
  }
}

// acc -> [Tile][Accumulators][lane]
template <class Real, int Tile, int Accumulators>
FUSEDRNN_INLINE void store_tile(const Vector<Real> (&acc)[Tile][Accumulators], Real* to) {
#pragma GCC unroll 8
  for (int r = 0; r < Tile; ++r) {
#pragma GCC unroll 4
    for (int a = 0; a < Accumulators; ++a) store(to + (r * Accumulators + a) * lanes_of<Real>, acc[r][a]);
  }
}

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

// Cuts n rows into tiles of at most FUSEDRNN_TILE_ROWS, as equal as can be, and calls f(Constant<size>, first row).
template <class F, int Tile = FUSEDRNN_TILE_ROWS>
FUSEDRNN_INLINE void with_tile(int64_t size, int64_t first, F f) {
  if constexpr (Tile == 1) {
    f(Constant<1>{}, first);
  } else {
    if (size == Tile) {
      f(Constant<Tile>{}, first);
    } else {
      with_tile<F, Tile - 1>(size, first, f);
    }
  }
}

template <class F>
FUSEDRNN_INLINE void for_tiles(int64_t n, F f) {
  const int64_t tiles = ceil_div(n, FUSEDRNN_TILE_ROWS);
  for (int64_t j = 0; j < tiles; ++j) {
    const int64_t first = n * j / tiles;
    with_tile(n * (j + 1) / tiles - first, first, f);
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

// Where row (t, b) begins, and its number.
template <class Element>
FUSEDRNN_INLINE Element* row_at(const Shape& s, const Rows<Element>& rows, int64_t t, int64_t b) {
  return rows.base + (s.row_offsets ? (s.row_offsets[t] + b) * rows.batch : t * rows.step + b * rows.batch);
}

FUSEDRNN_INLINE int64_t row_number(const Shape& s, int64_t t, int64_t b) {
  return s.row_offsets ? s.row_offsets[t] + b : t * s.B + b;
}

FUSEDRNN_INLINE int64_t length_of(const Shape& s, int64_t b) { return s.lengths ? s.lengths[b] : s.T; }
FUSEDRNN_INLINE int64_t step_at(const Shape& s, int64_t position) { return s.reverse ? s.T - 1 - position : position; }

template <class Real>
FUSEDRNN_INLINE void copy(Real* to, const Real* from, int64_t count) {
  __builtin_memcpy(to, from, count * sizeof(Real));
}

template <class Real>
FUSEDRNN_INLINE void zero(Real* to, int64_t count) {
  __builtin_memset(to, 0, count * sizeof(Real));
}
