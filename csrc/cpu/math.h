// exp, sigmoid and tanh on SIMD vectors, included inside the namespace of a variant.
//
// Write x = n ln2 + r with |r| <= ln2 / 2. Then exp(x) = 2^n (1 + p), p = expm1(r) by its Taylor polynomial, cut where the
// first term left out is below a quarter ulp of p, and expm1(x) = 2^n p + (2^n - 1) keeps its relative accuracy near zero.
// tanh|x| = e / (e + 2) = 1 - 2 / (e + 2), e = expm1(2 |x|): the first form near zero; the second, whose rounding errors
// shrink with 2 / (e + 2), beyond. In float the first gives way to x + x^3 q(x^2), q minimax in relative error on
// |x| <= 0.625 (4.4e-9, by Remez' algorithm), which halves the mean error of tanh to 0.19 ulp.
// sigmoid is 0 where it would be below the smallest normal number, which is what sigmoid_limit says.
// Comparisons are written so that NaN falls through to the result.

template <class Real>
struct Exponent;

template <>
struct Exponent<float> {
  using Int = int;
  static constexpr float log2e = 1.44269504f, ln2_hi = 0.693145752f, ln2_lo = 1.42860677e-6f;
  static constexpr float round =
      12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits
  static constexpr int bias = 127, mantissa = 23, terms = 7;
  static constexpr float sigmoid_limit = 87.3365402f, tanh_limit = 10.0f;
};

template <>
struct Exponent<double> {
  using Int = long long;
  static constexpr double log2e = 1.4426950408889634, ln2_hi = 0.693147180369123816490,
                          ln2_lo = 1.90821492927058770002e-10;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int bias = 1023, mantissa = 52, terms = 13;
  static constexpr double sigmoid_limit = 708.39641853226408, tanh_limit = 20.0;
};

template <class Real>
struct ExpParts {
  Vector<Real> scale, p;  // exp(x) = scale * (1 + p)
};

// 1 / k!
template <class Real>
constexpr Real inverse_factorial(int k) {
  double f = 1;
  for (int j = 2; j <= k; ++j) f *= j;
  return Real(1 / f);
}

template <class Real>
FUSEDRNN_INLINE ExpParts<Real> exp_parts(Vector<Real> x) {
  using E = Exponent<Real>;
  using Int = typename E::Int;
  typedef Int IntVector __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  const Vector<Real> shifted = fma(x, broadcast(E::log2e), broadcast(E::round));
  const Vector<Real> n = shifted - E::round;
  const Vector<Real> r = fma(n, broadcast(-E::ln2_lo), fma(n, broadcast(-E::ln2_hi), x));
  Vector<Real> q = broadcast(inverse_factorial<Real>(E::terms));
#pragma GCC unroll 16
  for (int k = E::terms - 1; k >= 2; --k) q = fma(q, r, broadcast(inverse_factorial<Real>(k)));
  const IntVector bits = ((IntVector)shifted + E::bias) << E::mantissa;
  return {(Vector<Real>)bits, fma(q, r * r, r)};
}

template <class Real>
FUSEDRNN_INLINE Vector<Real> sigmoid_of(Vector<Real> x) {
  const Vector<Real> limit = broadcast(Exponent<Real>::sigmoid_limit);
  const Vector<Real> a = x > limit ? -limit : -x;
  const ExpParts<Real> e = exp_parts<Real>(a);
  return a > limit ? Vector<Real>{} : reciprocal(e.scale + fma(e.scale, e.p, broadcast(Real(1))));
}

template <class Real>
FUSEDRNN_INLINE Vector<Real> tanh_of(Vector<Real> x) {
  using Int = typename Exponent<Real>::Int;
  typedef Int IntVector __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  const IntVector sign_bit = (IntVector)broadcast(Real(-0.0));
  const Vector<Real> limit = broadcast(Exponent<Real>::tanh_limit);
  const IntVector sign = (IntVector)x & sign_bit;
  Vector<Real> a = (Vector<Real>)((IntVector)x & ~sign_bit);
  a = a > limit ? limit : a;
  const auto small = a < Real(0.625);
  const ExpParts<Real> e = exp_parts<Real>(a + a);
  Vector<Real> t;
  if constexpr (sizeof(Real) == 4) {
    const Vector<Real> u = a * a;
    Vector<Real> q = fma(broadcast(-0.005704987f), u, broadcast(0.020639087f));
    q = fma(q, u, broadcast(-0.053739715f));
    q = fma(q, u, broadcast(0.13331442f));
    q = fma(q, u, broadcast(-0.33333282f));
    t = small ? fma(a * u, q, a) : 1 - 2 * reciprocal(fma(e.scale, e.p, e.scale) + 1);
  } else {
    const Vector<Real> em1 = fma(e.scale, e.p, e.scale - 1);
    const Vector<Real> ratio = (small ? em1 : broadcast(Real(2))) / (em1 + 2);
    t = small ? ratio : 1 - ratio;
  }
  return (Vector<Real>)((IntVector)t | sign);
}

template <class Real>
FUSEDRNN_INLINE Vector<Real> relu_of(Vector<Real> x) {
  return x < 0 ? Vector<Real>{} : x;
}

template <class Real>
FUSEDRNN_INLINE Vector<Real> positive_of(Vector<Real> x) {
  return x <= 0 ? Vector<Real>{} : broadcast(Real(1));
}

FUSEDRNN_INLINE VectorF sigmoid(VectorF x) { return sigmoid_of<float>(x); }
FUSEDRNN_INLINE VectorD sigmoid(VectorD x) { return sigmoid_of<double>(x); }
FUSEDRNN_INLINE VectorF tanh(VectorF x) { return tanh_of<float>(x); }
FUSEDRNN_INLINE VectorD tanh(VectorD x) { return tanh_of<double>(x); }
FUSEDRNN_INLINE VectorF relu(VectorF x) { return relu_of<float>(x); }
FUSEDRNN_INLINE VectorD relu(VectorD x) { return relu_of<double>(x); }
FUSEDRNN_INLINE VectorF positive(VectorF x) { return positive_of<float>(x); }
FUSEDRNN_INLINE VectorD positive(VectorD x) { return positive_of<double>(x); }
