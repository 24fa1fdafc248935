// One instruction set. The including .cpp defines FUSEDRNN_VARIANT (its namespace), FUSEDRNN_VECTOR_BYTES and
// FUSEDRNN_TILE_ROWS: the rows of a tile of four accumulators each, as many as leave registers for the weights and one
// broadcast.
#include <sched.h>

#include <cstdint>
#include <new>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "layer.h"

#if defined(__CUDACC__)
#error "the CPU variants are host code"
#endif
#define FUSEDRNN_INLINE inline __attribute__((always_inline))

namespace fusedrnn::FUSEDRNN_VARIANT {
namespace {

#include "simd.h"
#include "math.h"
#include "../cells.h"
#include "panels.h"
#include "tile.h"
#if defined(__AMX_BF16__)
#include "pairs.h"
#include "amx.h"
#elif defined(__AVX512BF16__)
#include "pairs.h"
#include "dots.h"
#endif
#include "forward.h"
#include "backward.h"
#include "rebuild.h"
#include "sums.h"
#include "outer.h"

template <class Real>
constexpr auto add_scaled_rows_of() {
  if constexpr (sizeof(Real) == 2) {
    return nullptr;
  } else {
    return add_scaled_rows<Real>;
  }
}

template <class Real>
constexpr Kernels<Real> kernels = {
    rate_of<Real>,      packed_width<Real>,  forward_panels<Real>,  backward_panels<Real>,
    padded_units<Real>, depth_of<Real>,      backward_depth<Real>,  pack_forward,
    pack_backward,      pack_bias<Real>,     token_rows<Real>,      forward<Real>,
    rebuild<Real>,      backward<Real>,      backward_finish<Real>, add_scaled_rows_of<Real>(),
    add_outer,          multiply_rows<Real>, add_columns<Real>,     add_row<Real>,
    widen<Real>,        narrow<Real>,
};

}  // namespace
}  // namespace fusedrnn::FUSEDRNN_VARIANT
