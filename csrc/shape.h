// The problem of a layer and where its rows lie, for every compiled backend. Counted in elements.
//
// Legend: T steps, B batch, I input size, H hidden size, G gates; R rows. Row (t, b) is row_offsets[t] + b of packed
// input, else t * B + b; it is active iff t < lengths[b]. Matrices are row-major and dense unless a stride is named.
#pragma once

#include <cstdint>

namespace fusedrnn {

enum class Cell : int64_t { rnn_tanh, rnn_relu, gru, lstm };

struct Shape {
  Cell cell;
  int64_t T, B, I, H;
  bool reverse;
  const int64_t* row_offsets;  // [T], or null: dense
  const int64_t* lengths;      // [B], or null: every row is active
  const uint8_t* resets;       // [T, B], not 0: the state is zero before the step; or null: never
};

// Row (t, b) starts at base + t * step + b * batch; packed: base + (row_offsets[t] + b) * batch.
template <class Element>
struct Rows {
  Element* base;  // null: absent
  int64_t step, batch;
};

// Internal linkage, so that every instruction set keeps a copy of its own.
static constexpr bool is_rnn(Cell cell) { return cell == Cell::rnn_tanh || cell == Cell::rnn_relu; }
static constexpr int64_t gates_of(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }

// Blocks of H values a row of dgates takes; also of `saved`, where the cell keeps any.
static constexpr int64_t blocks_of(Cell cell) { return is_rnn(cell) ? 1 : 4; }

// The step that is walked at `position`.
static constexpr int64_t step_at(const Shape& s, int64_t position) { return s.reverse ? s.T - 1 - position : position; }

static constexpr int64_t length_of(const Shape& s, int64_t b) { return s.lengths ? s.lengths[b] : s.T; }

static constexpr bool is_reset(const Shape& s, int64_t t, int64_t b) { return s.resets && s.resets[t * s.B + b]; }

// The step whose state row (t, b) starts from, and whether it is none, but the initial state.
static constexpr int64_t step_before(const Shape& s, int64_t t) { return s.reverse ? t + 1 : t - 1; }
static constexpr bool is_first(const Shape& s, int64_t t, int64_t b) {
  return s.reverse ? step_before(s, t) >= length_of(s, b) : step_before(s, t) < 0;
}

// The number of row (t, b), and where it begins.
static constexpr int64_t row_number(const Shape& s, int64_t t, int64_t b) {
  return s.row_offsets ? s.row_offsets[t] + b : t * s.B + b;
}

template <class Element>
static constexpr Element* row_at(const Shape& s, const Rows<Element>& rows, int64_t t, int64_t b) {
  return rows.base + (s.row_offsets ? (s.row_offsets[t] + b) * rows.batch : t * rows.step + b * rows.batch);
}

}  // namespace fusedrnn
