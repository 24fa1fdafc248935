// What the bindings hand to a variant: raw pointers, sizes and strides, counted in elements. No policy, no torch. Legend:
// ../shape.h.
#pragma once

#include <time.h>

#include <cstdint>

#include "../shape.h"

namespace fusedrnn {

// As torch.bfloat16: the upper half of a float.
struct bfloat16 {
  uint16_t bits;
};

// What gates, accumulators and states between steps are computed in.
template <class Real>
struct WideOf {
  using type = Real;
};
template <>
struct WideOf<bfloat16> {
  using type = float;
};
template <class Real>
using Wide = typename WideOf<Real>::type;

// Rows that a kernel may compute beyond the last one.
static constexpr int64_t spare_rows = 16;

// Elements of a cache line.
template <class Real>
static constexpr int64_t line_of = 64 / int64_t(sizeof(Real));

// Elements from row to row of a matrix for GEMMs: an odd number of cache lines, or rows a power of two apart would share
// the same sets of the cache.
template <class Real>
static constexpr int64_t padded_row(int64_t width) {
  return ((width + line_of<Real> - 1) / line_of<Real> | 1) * line_of<Real>;
}

// save="lean" keeps c before every so many steps only, as LEAN_CHUNK in fusedrnn/cells.py.
static constexpr int64_t lean_chunk = 32;
static constexpr int64_t lean_chunks(int64_t T) { return (T + lean_chunk - 1) / lean_chunk; }

template <class Real>
struct Forward {
  Shape shape;
  bool concat;         // one product over [x, h] a step; else x W_ih of a chunk of steps first
  Rows<const Real> x;  // null base: tokens
  Rows<const int64_t> tokens;
  const Real* w_ih;           // [G*H, I], read for tokens without a table, and where nothing is packed
  const Real* w_hh;           // [G*H, H], read where nothing is packed
  const Real* packed_ih;      // pack_forward(w_ih), or null: so few rows that packing does not pay
  const Real* packed_hh;      // pack_forward(w_hh), or null, as packed_ih
  const Wide<Real>* bias;     // pack_bias: b_ih, plus b_hh where the two simply add
  const Wide<Real>* bias_hn;  // GRU: b_hn, same packing, one gate
  const Wide<Real>* table;    // tokens: [I, packed_width], row v is the packed column v of w_ih plus bias; or null
  const Real* h0;             // [B, H]
  const Wide<Real>* c0;       // [B, H], LSTM
  const void* zeros;          // H of Wide<Real>, the state after a reset; null without resets
  Rows<Real> y;
  Real* h_n;          // [B, H]; of a single step it may be y itself
  Wide<Real>* c_n;    // [B, H], LSTM
  Wide<Real>* h;      // [B, H], GRU of 16 bits: h0, and between steps h as it was before it was rounded; else null
  Real* saved;        // [R, saved blocks, H], or null
  Wide<Real>* cells;  // [R, H], or null
  Wide<Real>* chunk_cells;  // lean: [chunks, B, H], c before each chunk, or null
};

template <class Real>
struct Backward {
  Shape shape;
  const Real* w_hh;  // [G*H, H] as it is, or pack_backward(w_hh)
  bool packed;       // which of the two
  const Real* h0;
  const Wide<Real>* c0;
  const void* zeros;  // blocks * H of Wide<Real>: the dgates of no step, and the state after a reset
  Rows<const Real> y;
  Rows<const Real> dy;  // null base: zero
  // Lean: rebuild() makes, for the rows of the chunk, what forward did not keep: `saved` where dgates will lie, and cells.
  bool lean;
  const Real* saved;          // [R, blocks, H], or null
  Wide<Real>* cells;          // [R, H], lean: [rows of the chunk, H]; or null
  const Wide<Real>* chunk_c;  // lean: [B, H], c before the chunk
  Wide<Real>* dh;             // [B, H]: dh_n on entry of the first chunk; between chunks, what reaches h past W_hh
  Wide<Real>* dc;             // [B, H], LSTM: dc_n on entry of the first chunk, dc0 after the last
  Real* dgates;               // [rows of the chunk, blocks * H]: LSTM i f g o, RNN h, GRU r z n and n r (seen by W_hn)
  const Real** h_prev;        // [rows of the chunk]: the state each row started from; stays as it is for inactive rows
  int64_t dgates_stride;
  Real* carried;      // [B, blocks * H]: dgates of the step processed last, between chunks
  const Real** next;  // [B]: dgates of the step processed before this one, null before the first
};

// Since some time.
static inline int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

// Where threads that share rows wait for each other.
struct alignas(64) Meeting {
  int64_t arrived;  // pieces that are through a step, over all steps
  int64_t waited;   // nanoseconds past the patience of meet(), over all threads
};

// What one thread does: all steps of batch rows [first, last), and of their hidden units pieces [piece, end) of `pieces`.
// The thread with piece 0 leads: it also does what there is to do once a row.
struct Share {
  int64_t first, last, piece, end, pieces;
  Meeting* meeting;

  bool leads() const { return piece == 0; }
};

// Everything one instruction set offers. Panels are blocks of hidden units whose weights lie together.
template <class Real>
struct Kernels {
  int64_t rate;                              // multiply-adds a cycle
  int64_t (*packed_width)(Cell, int64_t H);  // elements a row of packed pre-activations or biases takes
  int64_t (*forward_panels)(Cell, int64_t H);
  int64_t (*backward_panels)(int64_t H);
  int64_t (*padded_units)(int64_t H);  // H rounded up to whole vectors
  int64_t (*depth)(int64_t K);         // elements of K that a packed column takes
  int64_t (*backward_depth)(Cell, int64_t H);
  // w [G*H, K] -> panels [first, last) of [panel][K][gate][lane]
  void (*pack_forward)(Cell, const Real* w, int64_t H, int64_t K, Real* packed, int64_t first, int64_t last);
  // w [K[0] + K[1], N], each part of which may be padded -> panels [first, last) of [panel][K][vector][lane]
  void (*pack_backward)(const Real* w, const int64_t (&K)[2], int64_t N, Real* packed, int64_t first, int64_t last);
  void (*pack_bias)(Cell, const Real* b_ih, const Real* b_hh, int64_t H, Wide<Real>* bias, Wide<Real>* bias_hn);
  void (*token_rows)(const Forward<Real>&, Wide<Real>* table, int64_t first, int64_t last);
  // All steps. workspace holds x W_ih + b of steps_per_chunk steps of the rows, and of spare_rows more rows.
  void (*forward)(const Forward<Real>&, const Share&, int64_t steps_per_chunk, Wide<Real>* workspace);
  // Lean: `saved` and `cells` of steps [begin, end), as forward computes them. All steps at once: every h is known.
  void (*rebuild)(const Forward<Real>&, const Backward<Real>&, const Share&, int64_t begin, int64_t end,
                  int64_t steps_at_once, Wide<Real>* workspace);
  // Steps [begin, end) in order of processing (counted as forward walks them), last to first.
  void (*backward)(const Backward<Real>&, const Share&, int64_t begin, int64_t end);
  // After the last chunk: dh0 [B, H].
  void (*backward_finish)(const Backward<Real>&, const Share&, Real* dh0);
  // to[k] (+)= sum over n of scale[n] * from[n][k], from [rows, columns], k in [first, last); null in 16 bits
  void (*add_scaled_rows)(const Real* scale, const Real* from, int64_t rows, int64_t columns, int64_t first,
                          int64_t last, Real* to, bool add);
  // out[m][n] (+)= sum over rows of left[row][at + m] * right[row][n], m in [m0, m1), n in [0, N)
  void (*add_outer)(const Real* const* left, int64_t at, const Real* const* right, int64_t rows, int64_t m0, int64_t m1,
                    int64_t N, Wide<Real>* out, bool add);
  // out[row] (+)= in[row] w, w [K, N] packed by pack_backward
  void (*multiply_rows)(const Real* const* in, int64_t rows, int64_t K, const Real* packed, int64_t N, Real* const* out,
                        bool add);
  // to[k] += sum over rows of row[k], k in [first, last)
  void (*add_columns)(const Real* const* from, int64_t rows, int64_t first, int64_t last, Wide<Real>* to);
  void (*add_row)(const Real* row, int64_t columns, Wide<Real>* to);  // to += row
  void (*widen)(const Real* from, int64_t count, Wide<Real>* to);
  void (*narrow)(const Wide<Real>* from, int64_t count, Real* to);
};

template <class Real>
const Kernels<Real>* portable_kernels();
template <class Real>
const Kernels<Real>* avx2_kernels();  // null where not compiled
template <class Real>
const Kernels<Real>* avx512_kernels();
template <class Real>
const Kernels<Real>* avx512_bf16_kernels();  // bfloat16 alone
template <class Real>
const Kernels<Real>* amx_kernels();  // bfloat16 alone

}  // namespace fusedrnn
