// AMX's tile registers as memory of a thread, in the place of csrc/cpu/amx_instructions.h and with its names; what the
// processor would refuse ends the process. From Intel's Software Developer's Manual, volume 2: LDTILECFG, TDPBF16PS,
// TILELOADD, TILERELEASE, TILESTORED, TILEZERO. Included inside the namespace of a variant.

struct Tile {
  int rows = 0, row_bytes = 0;
  alignas(64) uint8_t bytes[16][64] = {};
};

struct Tiles {
  bool set = false;
  Tile tile[8];
};
thread_local Tiles tiles;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "AMX: expected %s\n", what);
  std::abort();
}

Tile& tile_in_use(int number) {
  Tile& tile = tiles.tile[number];
  expect(tiles.set, "tiles that are set");
  expect(tile.rows > 0 && tile.row_bytes > 0, "a tile with rows");
  return tile;
}

void set_tiles(const TileSizes& sizes) {
  tiles = {};
  expect(sizes.palette == 1 && sizes.start_row == 0, "the palette of 8 tiles from row 0 on");
  for (int k = 0; k < 14; ++k) expect(sizes.reserved[k] == 0, "zeros in reserved bytes");
  for (int k = 0; k < 16; ++k) {
    expect((sizes.rows[k] == 0) == (sizes.row_bytes[k] == 0), "rows and bytes, or neither");
    expect(sizes.rows[k] <= (k < 8 ? 16 : 0) && sizes.row_bytes[k] <= 64, "8 tiles, at most 16 rows of 64 bytes");
    if (k >= 8) continue;
    tiles.tile[k].rows = sizes.rows[k];
    tiles.tile[k].row_bytes = sizes.row_bytes[k];
  }
  tiles.set = true;
}

void release_tiles() { tiles = {}; }

template <int Number>
void zero_tile() {
  Tile& tile = tile_in_use(Number);
  std::memset(tile.bytes, 0, sizeof tile.bytes);
}

template <int Number>
void load_tile(const void* from, int64_t row_bytes) {
  zero_tile<Number>();
  Tile& tile = tile_in_use(Number);
  for (int r = 0; r < tile.rows; ++r)
    std::memcpy(tile.bytes[r], static_cast<const uint8_t*>(from) + r * row_bytes, size_t(tile.row_bytes));
}

template <int Number>
void store_tile(void* to, int64_t row_bytes) {
  const Tile& tile = tile_in_use(Number);
  for (int r = 0; r < tile.rows; ++r)
    std::memcpy(static_cast<uint8_t*>(to) + r * row_bytes, tile.bytes[r], size_t(tile.row_bytes));
}

// Of each pair one sum over k, rounded to nearest at each product; then both, then C, are added. Numbers below the
// smallest normal one are zeros.
__attribute__((noinline)) void multiply(Tile& c, const Tile& a, const Tile& b) {
  const auto pair = [](const uint8_t* from) { return _mm512_loadu_si512(from); };
  const __m512i high = _mm512_set1_epi32(int(0xffff0000));
  for (int r = 0; r < c.rows; ++r) {
    __m512 even = {}, odd = {};
    for (int k = 0; k < a.row_bytes / 4; ++k) {
      int32_t two;
      std::memcpy(&two, a.bytes[r] + 4 * k, sizeof two);
      const __m512i x = _mm512_set1_epi32(two), w = pair(b.bytes[k]);
      const auto low = [](__m512i of) { return _mm512_castsi512_ps(_mm512_slli_epi32(of, 16)); };
      even = _mm512_fmadd_ps(low(x), low(w), even);
      odd = _mm512_fmadd_ps(_mm512_castsi512_ps(x & high), _mm512_castsi512_ps(w & high), odd);
    }
    _mm512_storeu_ps(c.bytes[r], _mm512_loadu_ps(c.bytes[r]) + (even + odd));
  }
}

template <int C, int A, int B>
void multiply_tiles() {
  Tile &c = tile_in_use(C), &a = tile_in_use(A), &b = tile_in_use(B);
  static_assert(C != A && C != B && A != B);
  expect(a.rows == c.rows && a.row_bytes == 4 * b.rows && b.row_bytes == c.row_bytes, "tiles that fit each other");
  const unsigned before = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // no exceptions, to nearest, and both kinds of small numbers zero
  multiply(c, a, b);
  _mm_setcsr(before);
}
