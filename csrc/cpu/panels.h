// How hidden units are cut into panels, and packing. Included inside the namespace of a variant.
//
// LSTM and GRU: a panel is one vector of units with all their gates side by side, [K][gate][lane], so the gates of a unit
// meet in the registers of one row. RNN, and every cell's backward: up to four vectors of units, [K][vector][lane], for
// enough independent chains of multiply-adds. Units beyond H are zeros.

constexpr int vectors_per_panel = 4;

FUSEDRNN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FUSEDRNN_INLINE constexpr int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
FUSEDRNN_INLINE int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

// Elements of K that a packed column takes: those beyond K are zeros.
template <class Real>
int64_t depth_of(int64_t K) {
  constexpr int64_t at_once = sizeof(Real) == 2 ? 32 : 1;
  return ceil_div(K, at_once) * at_once;
}

// Calls f(first block, elements) for the windows of dgates that W_hh sees, in order of its rows.
template <class F>
FUSEDRNN_INLINE void for_windows(Cell cell, int64_t H, F f) {
  if (cell != Cell::gru) return f(0, gates_of(cell) * H);
  f(0, 2 * H);  // r z
  f(3, H);      // n r
}

template <class Real>
int64_t backward_depth(Cell cell, int64_t H) {
  int64_t depth = 0;
  for_windows(cell, H, [&](int64_t, int64_t K) { depth += depth_of<Real>(K); });
  return depth;
}

template <class Real>
FUSEDRNN_INLINE int64_t vectors_of(int64_t H) {
  return ceil_div(H, lanes_of<Real>);
}

// Vectors a row of panel `panel` holds when H is cut into groups of four vectors.
template <class Real>
FUSEDRNN_INLINE int vectors_in(int64_t panel, int64_t H) {
  return int(minimum(vectors_per_panel, vectors_of<Real>(H) - panel * vectors_per_panel));
}

template <class Real>
int64_t padded_units(int64_t H) {
  return vectors_of<Real>(H) * lanes_of<Real>;
}

template <class Real>
int64_t packed_width(Cell cell, int64_t H) {
  return gates_of(cell) * padded_units<Real>(H);
}

struct Panels {
  int64_t first, last;
};

FUSEDRNN_INLINE Panels panels_of(const Share& share, int64_t panels) {
  return {panels * share.piece / share.pieces, panels * share.end / share.pieces};
}

// Waits until every piece is through `steps` steps. Whoever is late may be waiting for this processor.
FUSEDRNN_INLINE void meet(const Share& share, int64_t steps) {
  constexpr int patience = 512;
  if (share.end - share.piece == share.pieces) return;
  const auto missing = [&] {
    return __atomic_load_n(&share.meeting->arrived, __ATOMIC_ACQUIRE) < steps * share.pieces;
  };
  __atomic_fetch_add(&share.meeting->arrived, share.end - share.piece, __ATOMIC_ACQ_REL);
  for (int spins = 0; spins < patience && missing(); ++spins) spin_hint();
  if (!missing()) return;
  const int64_t since = nanoseconds();
  while (missing()) sched_yield();
  __atomic_fetch_add(&share.meeting->waited, nanoseconds() - since, __ATOMIC_RELAXED);
}

template <class Real>
int64_t backward_panels(int64_t H) {
  return ceil_div(vectors_of<Real>(H), vectors_per_panel);
}

template <class Real>
int64_t forward_panels(Cell cell, int64_t H) {
  return is_rnn(cell) ? backward_panels<Real>(H) : vectors_of<Real>(H);
}

// First packed element of a row in a panel: all panels before it are full.
template <class Real>
FUSEDRNN_INLINE int64_t panel_offset(Cell cell, int64_t panel) {
  return panel * lanes_of<Real> * (is_rnn(cell) ? vectors_per_panel : gates_of(cell));
}

// Calls f(slot, source row of w, lanes) for each vector of weights that a row of the panel holds.
template <class Real, class F>
FUSEDRNN_INLINE void for_slots(Cell cell, int64_t H, int64_t panel, F f) {
  constexpr int W = lanes_of<Real>;
  if (is_rnn(cell)) {
    const int vectors = vectors_in<Real>(panel, H);
    for (int j = 0; j < vectors; ++j) {
      const int64_t unit = (panel * vectors_per_panel + j) * W;
      f(j, unit, int(minimum(W, H - unit)));
    }
  } else {
    const int64_t unit = panel * W;
    for (int g = 0; g < int(gates_of(cell)); ++g) f(g, g * H + unit, int(minimum(W, H - unit)));
  }
}

template <class Real>
FUSEDRNN_INLINE int slots_of(Cell cell, int64_t H, int64_t panel) {
  return is_rnn(cell) ? vectors_in<Real>(panel, H) : int(gates_of(cell));
}

template <class Real>
void pack_forward(Cell cell, const Real* w, int64_t H, int64_t K, Real* packed, int64_t first, int64_t last) {
  constexpr int W = lanes_of<Real>;
  constexpr int64_t block = line_of<Real>;  // k's of one cache line of each source row
  for (int64_t panel = first; panel < last; ++panel) {
    Real* out = packed + K * panel_offset<Real>(cell, panel);
    const int64_t width = slots_of<Real>(cell, H, panel) * W;
    for (int64_t k0 = 0; k0 < K; k0 += block) {
      const int64_t k1 = minimum(K, k0 + block);
      for_slots<Real>(cell, H, panel, [&](int slot, int64_t row, int lanes) {
        int64_t k = k0;
        for (; lanes == W && k + W <= k1; k += W) {
          Vector<Real> square[W];
#pragma GCC unroll 16
          for (int u = 0; u < W; ++u) square[u] = load(w + (row + u) * K + k);
          transpose<Real>(square);
#pragma GCC unroll 16
          for (int u = 0; u < W; ++u) store(out + (k + u) * width + slot * W, square[u]);
        }
        for (; k < k1; ++k) {
          Real* to = out + k * width + slot * W;
          for (int u = 0; u < lanes; ++u) to[u] = w[(row + u) * K + k];
          for (int u = lanes; u < W; ++u) to[u] = 0;
        }
      });
    }
  }
}

template <class Real>
void pack_backward(const Real* w, const int64_t (&parts)[2], int64_t H, Real* packed, int64_t first, int64_t last) {
  constexpr int W = lanes_of<Real>;
  const int64_t K = parts[0] + parts[1];
  for (int64_t panel = first; panel < last; ++panel) {
    Real* out = packed + K * panel * vectors_per_panel * W;
    const int64_t unit = panel * vectors_per_panel * W;
    const int64_t width = int64_t(vectors_in<Real>(panel, H)) * W;
    const int64_t units = minimum(width, H - unit);
    for (int64_t k = 0; k < K; ++k) {
      __builtin_memcpy(out + k * width, w + k * H + unit, units * sizeof(Real));
      for (int64_t u = units; u < width; ++u) out[k * width + u] = 0;
    }
  }
}

// bias = b_ih + b_hh, but the GRU's b_hn stays apart (r multiplies it). Null biases are zero.
template <class Real>
void pack_bias(Cell cell, const Real* b_ih, const Real* b_hh, int64_t H, Wide<Real>* bias, Wide<Real>* bias_hn) {
  constexpr int W = lanes_of<Real>;
  const int64_t panels = forward_panels<Real>(cell, H);
  for (int64_t panel = 0; panel < panels; ++panel) {
    for_slots<Real>(cell, H, panel, [&](int slot, int64_t row, int lanes) {
      const bool apart = cell == Cell::gru && slot == 2;
      Wide<Real>* to = bias + panel_offset<Real>(cell, panel) + slot * W;
      const bool present = b_ih != nullptr;
      const Vector<Real> ih = present ? load(b_ih + row, lanes) : Vector<Real>{};
      const Vector<Real> hh = present ? load(b_hh + row, lanes) : Vector<Real>{};
      store(to, apart ? ih : ih + hh);
      if (apart) store(bias_hn + panel * W, hh);
    });
  }
}

// What a token contributes: column `token` of w_ih plus the bias, packed.
template <class Real>
void token_row(const Forward<Real>& f, int64_t token, Wide<Real>* out) {
  constexpr int W = lanes_of<Real>;
  const Cell cell = f.shape.cell;
  const int64_t H = f.shape.H, I = f.shape.I, panels = forward_panels<Real>(cell, H);
  for (int64_t panel = 0; panel < panels; ++panel) {
    for_slots<Real>(cell, H, panel, [&](int slot, int64_t row, int lanes) {
      const int64_t at = panel_offset<Real>(cell, panel) + slot * W;
      for (int u = 0; u < W; ++u) {
        out[at + u] = f.bias[at + u] + (u < lanes ? widened(f.w_ih[(row + u) * I + token]) : Wide<Real>(0));
      }
    });
  }
}

template <class Real>
void token_rows(const Forward<Real>& f, Wide<Real>* table, int64_t first, int64_t last) {
  const int64_t width = packed_width<Real>(f.shape.cell, f.shape.H);
  for (int64_t token = first; token < last; ++token) token_row(f, token, table + token * width);
}
