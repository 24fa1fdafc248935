// How matrices in shared memory are described to the products of a warpgroup. Plain arithmetic, the same on the host.
#pragma once

#include <cstdint>

namespace fusedrnn::arch {

// Describes B in shared memory, without swizzle, the rows of B running along k: tiles of 8 columns by 16 bytes of k,
// each 128 contiguous bytes; `along_k` and `along_n` bytes from one tile to the next.
FUSEDRNN_DEVICE uint64_t describe_tiles(uint32_t shared, uint32_t along_k, uint32_t along_n) {
  const auto encoded = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  return encoded(shared) | encoded(along_k) << 16 | encoded(along_n) << 32;
}

}  // namespace fusedrnn::arch
