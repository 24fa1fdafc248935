// The gate formulas and their derivatives, one copy for every compiled backend. V is a scalar or a SIMD vector for which
// sigmoid(V), tanh(V), relu(V) and positive(V) (0 where <= 0, else 1) are found by argument-dependent lookup or declared
// before this header. Gate order and the place of b_hn are torch.nn's; the derivation is in fusedrnn/autograd.py.
#pragma once

#if defined(__CUDACC__)
#define FUSEDRNN_INLINE __host__ __device__ __forceinline__
#elif !defined(FUSEDRNN_INLINE)
#define FUSEDRNN_INLINE inline __attribute__((always_inline))
#endif

template <class V>
struct LstmGates {
  V i, f, g, o;
};

template <class V>
struct GruGates {
  V n, r, z, hn;  // hn = W_hn h + b_hn, which r multiplies
};

// Pre-activations in, gates out; c and h of this step.
template <class V>
FUSEDRNN_INLINE void lstm_forward(LstmGates<V>& a, V c_prev, V& c, V& h) {
  a.i = sigmoid(a.i);
  a.f = sigmoid(a.f);
  a.g = tanh(a.g);
  a.o = sigmoid(a.o);
  c = fma(a.f, c_prev, a.i * a.g);
  h = a.o * tanh(c);
}

// Gates in, dgates out. dc: through c from later steps in, for c_prev out.
template <class V>
FUSEDRNN_INLINE void lstm_backward(LstmGates<V>& a, V c_prev, V c, V dh, V& dc) {
  const V tanh_c = tanh(c);
  const V d_o = dh * tanh_c * a.o * (1 - a.o);
  const V d_c = fma(dh * a.o, 1 - tanh_c * tanh_c, dc);
  const V d_i = d_c * a.g * a.i * (1 - a.i);
  const V d_f = d_c * c_prev * a.f * (1 - a.f);
  const V d_g = d_c * a.i * (1 - a.g * a.g);
  dc = d_c * a.f;
  a = {d_i, d_f, d_g, d_o};
}

// r and z: pre-activations in, gates out; n holds x W_in + b_in on entry.
template <class V>
FUSEDRNN_INLINE void gru_forward(GruGates<V>& a, V h_prev, V& h) {
  a.r = sigmoid(a.r);
  a.z = sigmoid(a.z);
  a.n = tanh(fma(a.r, a.hn, a.n));
  h = fma(a.z, h_prev - a.n, a.n);
}

// Gates in; dgates out as (n, r, z, hn) with hn the gradient W_hn sees. Returns the part of dh_prev past the products.
template <class V>
FUSEDRNN_INLINE V gru_backward(GruGates<V>& a, V h_prev, V dh) {
  const V d_n = dh * (1 - a.z) * (1 - a.n * a.n);
  const V d_z = dh * (h_prev - a.n) * a.z * (1 - a.z);
  const V d_r = d_n * a.hn * a.r * (1 - a.r);
  const V direct = dh * a.z;
  a = {d_n, d_r, d_z, d_n * a.r};
  return direct;
}

template <bool Relu, class V>
FUSEDRNN_INLINE V rnn_forward(V a) {
  if constexpr (Relu) {
    return relu(a);
  } else {
    return tanh(a);
  }
}

template <bool Relu, class V>
FUSEDRNN_INLINE V rnn_backward(V y, V dh) {
  if constexpr (Relu) {
    return dh * positive(y);
  } else {
    return dh * (1 - y * y);
  }
}
