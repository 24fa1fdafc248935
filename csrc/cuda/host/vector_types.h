// The vectors of the CUDA language, as far as they are used here.
#pragma once

#include <cstdint>

struct uint2 {
  uint32_t x, y;
};

struct alignas(8) float2 {
  float x, y;
};

struct uint3 {
  uint32_t x, y, z;
};

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

struct dim3 {
  uint32_t x, y, z;
  constexpr dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};
