// Sums over the rows of a matrix where there is no GEMM, or where it costs more to launch than to do. Included inside the
// namespace of a variant; where they name no vectors, the compiler makes them of these loops.

// to[k] (+)= sum over n of scale[n] * from[n][k], k in [first, last): four rows at a time, each read once.
template <class Real>
void add_scaled_rows(const Real* scale, const Real* from, int64_t rows, int64_t columns, int64_t first, int64_t last,
                     Real* __restrict to, bool add) {
  int64_t n = 0;
  if (!add) {
    for (int64_t k = first; k < last; ++k) to[k] = scale[0] * from[k];
    n = 1;
  }
  for (; n + 4 <= rows; n += 4) {
    const Real *r0 = from + n * columns, *r1 = r0 + columns, *r2 = r1 + columns, *r3 = r2 + columns, *s = scale + n;
    for (int64_t k = first; k < last; ++k) to[k] += (s[0] * r0[k] + s[1] * r1[k]) + (s[2] * r2[k] + s[3] * r3[k]);
  }
  for (; n < rows; ++n) {
    const Real *row = from + n * columns, s = scale[n];
    for (int64_t k = first; k < last; ++k) to[k] += s * row[k];
  }
}

// to[k] += the sum of column k over all rows, in order, 32 rows at a time: rounding grows with the 32 and with the number
// of groups, not with their product.
template <class Real>
void add_columns(const Real* const* from, int64_t rows, int64_t first, int64_t last, Wide<Real>* __restrict to) {
  constexpr int64_t group = 32, W = lanes_of<Real>;
  for (int64_t r0 = 0; r0 < rows; r0 += group) {
    const int64_t r1 = minimum(rows, r0 + group);
    for (int64_t k = first; k < last; k += vectors_per_panel * W) {
      with_vectors(int(minimum(vectors_per_panel, ceil_div(last - k, W))), [&](auto slots) {
        constexpr int Count = decltype(slots)::count;
        with_lanes<Real>(last - k - (Count - 1) * W, [&](auto lanes) {
          Vector<Real> sums[Count] = {};
#pragma GCC unroll 1
          for (int64_t r = r0; r < r1; ++r) {
#pragma GCC unroll 4
            for (int a = 0; a < Count - 1; ++a) sums[a] += load(from[r] + k + a * W);
            sums[Count - 1] += load(from[r] + k + (Count - 1) * W, lanes);
          }
          for (int a = 0; a < Count; ++a) {
            Wide<Real>* at = to + k + a * W;
            const int valid = a < Count - 1 ? W : int(lanes);
            store(at, load(at, valid) + sums[a], valid);
          }
        });
      });
    }
  }
}

// to += row
template <class Real>
void add_row(const Real* row, int64_t columns, Wide<Real>* __restrict to) {
  for (int64_t k = 0; k < columns; ++k) to[k] += widened(row[k]);
}
