// One SIMD vector of the instruction set this translation unit is compiled for, on the compiler's vector extensions.
// Included inside the namespace of a variant (variant.h): every variant owns its own instantiations, so that the linker
// can never merge code of two instruction sets.
//
// Contraction is off (-ffp-contract=off): a multiply-add is fused exactly where fma() is written. The rounding of a row
// therefore does not depend on which tile size computed it.

template <class Real>
struct VectorOf {
  typedef Wide<Real> type __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
};

template <class Real>
using Vector = typename VectorOf<Real>::type;

template <class Real>
constexpr int lanes_of = FUSEDRNN_VECTOR_BYTES / int(sizeof(Wide<Real>));

using VectorF = Vector<float>;
using VectorD = Vector<double>;

template <class Real>
FUSEDRNN_INLINE Vector<Real> load(const Real* p) {
  Vector<Real> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class Real>
FUSEDRNN_INLINE void store(Real* p, Vector<Real> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

template <int Value>
struct Constant {
  static constexpr int value = Value;
  constexpr operator int() const { return Value; }
};

// Calls f with the lanes that a vector has where `left` elements are left: a constant where it is full.
template <class Real, class F>
FUSEDRNN_INLINE void with_lanes(int64_t left, F f) {
  if (left >= lanes_of<Real>) {
    f(Constant<lanes_of<Real>>{});
  } else {
    f(int(left));
  }
}

#if defined(__AVX512F__)
FUSEDRNN_INLINE __mmask16 first_lanes(int lanes) { return __mmask16((1u << lanes) - 1); }
FUSEDRNN_INLINE VectorF load(const float* p, int lanes) { return _mm512_maskz_loadu_ps(first_lanes(lanes), p); }
FUSEDRNN_INLINE VectorD load(const double* p, int lanes) {
  return _mm512_maskz_loadu_pd(__mmask8(first_lanes(lanes)), p);
}
FUSEDRNN_INLINE void store(float* p, VectorF v, int lanes) { _mm512_mask_storeu_ps(p, first_lanes(lanes), v); }
FUSEDRNN_INLINE void store(double* p, VectorD v, int lanes) {
  _mm512_mask_storeu_pd(p, __mmask8(first_lanes(lanes)), v);
}
#elif defined(__AVX2__)
FUSEDRNN_INLINE __m256i first_floats(int lanes) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FUSEDRNN_INLINE __m256i first_doubles(int lanes) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(lanes), _mm256_setr_epi64x(0, 1, 2, 3));
}
FUSEDRNN_INLINE VectorF load(const float* p, int lanes) { return _mm256_maskload_ps(p, first_floats(lanes)); }
FUSEDRNN_INLINE VectorD load(const double* p, int lanes) { return _mm256_maskload_pd(p, first_doubles(lanes)); }
FUSEDRNN_INLINE void store(float* p, VectorF v, int lanes) { _mm256_maskstore_ps(p, first_floats(lanes), v); }
FUSEDRNN_INLINE void store(double* p, VectorD v, int lanes) { _mm256_maskstore_pd(p, first_doubles(lanes), v); }
#else
template <class Real>
FUSEDRNN_INLINE Vector<Real> load(const Real* p, int lanes) {
  if (lanes == lanes_of<Real>) return load(p);
  Vector<Real> v{};
  for (int k = 0; k < lanes; ++k) v[k] = p[k];
  return v;
}

template <class Real>
FUSEDRNN_INLINE void store(Real* p, Vector<Real> v, int lanes) {
  if (lanes == lanes_of<Real>) return store(p, v);
  for (int k = 0; k < lanes; ++k) p[k] = v[k];
}
#endif

template <class Real>
FUSEDRNN_INLINE Real widened(Real a) {
  return a;
}

#if defined(__AVX512BF16__)
FUSEDRNN_INLINE float widened(bfloat16 a) { return __builtin_bit_cast(float, uint32_t(a.bits) << 16); }

FUSEDRNN_INLINE VectorF widened(__m256i v) { return (VectorF)_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16); }

FUSEDRNN_INLINE VectorF load(const bfloat16* p) { return widened(_mm256_loadu_si256((const __m256i*)p)); }

FUSEDRNN_INLINE VectorF load(const bfloat16* p, int lanes) {
  return widened(_mm256_maskz_loadu_epi16(first_lanes(lanes), p));
}

FUSEDRNN_INLINE void store(bfloat16* p, VectorF v) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}

FUSEDRNN_INLINE void store(bfloat16* p, VectorF v, int lanes) {
  _mm256_mask_storeu_epi16(p, first_lanes(lanes), (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
#endif

// A constant number of lanes is all of them.
template <class Real>
FUSEDRNN_INLINE Vector<Real> load(const Real* p, Constant<lanes_of<Real>>) {
  return load(p);
}
template <class Real>
FUSEDRNN_INLINE void store(Real* p, Vector<Real> v, Constant<lanes_of<Real>>) {
  store(p, v);
}

// Asks for the cache lines at some addresses. All that calls it must be inlined: GCC drops calls of functions that do
// nothing but ask.
template <class... Real>
FUSEDRNN_INLINE void ask_for(const Real*... at) {
  (__builtin_prefetch(at), ...);
}

// Calls f(unit) with a unit of every cache line that units [first, first + count) of a row of H may touch.
template <class Real, class F>
FUSEDRNN_INLINE void for_lines(int64_t first, int64_t count, int64_t H, F f) {
  for (int64_t unit = first; unit < first + count + line_of<Real> - 1; unit += line_of<Real>) {
    f(unit < H ? unit : H - 1);
  }
}

// One vector of each of four blocks of H values.
template <class Gates, class Real>
FUSEDRNN_INLINE Gates load_blocks(const Real* p, int64_t H, int lanes) {
  return {load(p, lanes), load(p + H, lanes), load(p + 2 * H, lanes), load(p + 3 * H, lanes)};
}

template <class Real>
FUSEDRNN_INLINE void ask_for_blocks(const Real* p, int64_t H) {
  ask_for(p, p + H, p + 2 * H, p + 3 * H);
}

template <class Real>
FUSEDRNN_INLINE void store_blocks(Real* p, int64_t H, int lanes, const Vector<Real> (&blocks)[4]) {
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) store(p + k * H, blocks[k], lanes);
}

template <class Real>
FUSEDRNN_INLINE Vector<Real> broadcast(Real a) {
  return a - Vector<Real>{};  // a - 0 is a, also for -0, so that nothing is left of it but the broadcast
}

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int vector_registers = 32;
#else
constexpr int vector_registers = 16;
#endif

// Left to itself GCC loads an operand of few uses again for every use.
template <class V>
FUSEDRNN_INLINE void keep_in_register([[maybe_unused]] V& v) {
#if defined(__AVX2__)
  asm("" : "+v"(v));
#endif
}

// Of two vectors, the lanes whose number has bit Half clear (Upper: set) in the first's place, the second's beside them.
template <int Half, bool Upper, class V, int... Lane>
FUSEDRNN_INLINE V exchanged(V a, V b, std::integer_sequence<int, Lane...>) {
  constexpr int W = sizeof...(Lane);
  return __builtin_shufflevector(a, b, (Lane & Half ? W + Lane - (Upper ? 0 : Half) : Lane + (Upper ? Half : 0))...);
}

// A square of vectors: element k of row u becomes element u of row k.
template <class Real, int Half = lanes_of<Real> / 2>
FUSEDRNN_INLINE void transpose(Vector<Real> (&rows)[lanes_of<Real>]) {
  constexpr int W = lanes_of<Real>;
  constexpr auto lanes = std::make_integer_sequence<int, W>{};
#pragma GCC unroll 16
  for (int u = 0; u < W; ++u) {
    if (u & Half) continue;
    const Vector<Real> a = rows[u], b = rows[u + Half];
    rows[u] = exchanged<Half, false>(a, b, lanes);
    rows[u + Half] = exchanged<Half, true>(a, b, lanes);
  }
  if constexpr (Half > 1) transpose<Real, Half / 2>(rows);
}

FUSEDRNN_INLINE void spin_hint() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#if defined(__AVX512F__)
FUSEDRNN_INLINE VectorF fma(VectorF a, VectorF b, VectorF c) { return _mm512_fmadd_ps(a, b, c); }
FUSEDRNN_INLINE VectorD fma(VectorD a, VectorD b, VectorD c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__FMA__)
FUSEDRNN_INLINE VectorF fma(VectorF a, VectorF b, VectorF c) { return _mm256_fmadd_ps(a, b, c); }
FUSEDRNN_INLINE VectorD fma(VectorD a, VectorD b, VectorD c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(__aarch64__)
FUSEDRNN_INLINE VectorF fma(VectorF a, VectorF b, VectorF c) { return vfmaq_f32(c, a, b); }
FUSEDRNN_INLINE VectorD fma(VectorD a, VectorD b, VectorD c) { return vfmaq_f64(c, a, b); }
#else
FUSEDRNN_INLINE VectorF fma(VectorF a, VectorF b, VectorF c) { return a * b + c; }
FUSEDRNN_INLINE VectorD fma(VectorD a, VectorD b, VectorD c) { return a * b + c; }
#endif

// 1 / x to within an ulp, for positive x below 2^126.
template <class V>
FUSEDRNN_INLINE V reciprocal(V x) {
  return 1 / x;
}
#if defined(__AVX512F__)
// A division takes 16 cycles: an estimate of 14 bits and one step of Newton's method take 5.
template <>
FUSEDRNN_INLINE VectorF reciprocal(VectorF x) {
  const VectorF estimate = _mm512_rcp14_ps(x);
  return fma(fma(-x, estimate, broadcast(1.0f)), estimate, estimate);
}
#endif
