// The instructions of AMX. Included inside the namespace of a variant. The compiler's own names for them take the number
// of a tile as text and do not say that they read memory.

FUSEDRNN_INLINE void set_tiles(const TileSizes& sizes) { asm volatile("ldtilecfg %0" : : "m"(sizes)); }
FUSEDRNN_INLINE void release_tiles() { asm volatile("tilerelease"); }
template <int Tile>
FUSEDRNN_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
template <int Tile>
FUSEDRNN_INLINE void load_tile(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(Tile) : "memory");
}
template <int Tile>
FUSEDRNN_INLINE void store_tile(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(Tile) : "memory");
}
template <int C, int A, int B>
FUSEDRNN_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
