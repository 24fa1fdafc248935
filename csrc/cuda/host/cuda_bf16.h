// bfloat16 of the CUDA toolkit, as far as it is used here.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;

  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
};

struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

// To the nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16(float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, 4);
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16)};
}

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 both) { return {both, both}; }
