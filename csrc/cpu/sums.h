// Sums over the rows of a matrix where there is no GEMM, or where it costs more to launch than to do. Included inside the
// namespace of a variant; the compiler makes vectors of these loops.

// to (+)= sum over n of scale[n] * row n of `from`: four rows at a time, each read once.
template <class Real>
void add_scaled_rows(const Real* scale, const Real* from, int64_t rows, int64_t columns, Real* __restrict to,
                     bool add) {
  int64_t n = 0;
  if (!add) {
    for (int64_t k = 0; k < columns; ++k) to[k] = scale[0] * from[k];
    n = 1;
  }
  for (; n + 4 <= rows; n += 4) {
    const Real *r0 = from + n * columns, *r1 = r0 + columns, *r2 = r1 + columns, *r3 = r2 + columns, *s = scale + n;
    for (int64_t k = 0; k < columns; ++k) to[k] += (s[0] * r0[k] + s[1] * r1[k]) + (s[2] * r2[k] + s[3] * r3[k]);
  }
  for (; n < rows; ++n) {
    const Real *row = from + n * columns, s = scale[n];
    for (int64_t k = 0; k < columns; ++k) to[k] += s * row[k];
  }
}

// to[k] += the sum of column k over all rows, in order, 32 rows at a time: rounding grows with the 32 and with the number
// of groups, not with their product.
template <class Real>
void add_columns(const Real* const* from, int64_t rows, int64_t first, int64_t last, Wide<Real>* __restrict to) {
  constexpr int64_t group = 32, strip = 64;
  for (int64_t r0 = 0; r0 < rows; r0 += group) {
    const int64_t r1 = minimum(rows, r0 + group);
    for (int64_t k0 = first; k0 < last; k0 += strip) {
      const int64_t width = minimum(strip, last - k0);
      Wide<Real> sums[strip] = {};
      for (int64_t r = r0; r < r1; ++r) {
        const Real* row = from[r] + k0;
        for (int64_t k = 0; k < width; ++k) sums[k] += widened(row[k]);
      }
      for (int64_t k = 0; k < width; ++k) to[k0 + k] += sums[k];
    }
  }
}

// to += row
template <class Real>
void add_row(const Real* row, int64_t columns, Wide<Real>* __restrict to) {
  for (int64_t k = 0; k < columns; ++k) to[k] += widened(row[k]);
}
