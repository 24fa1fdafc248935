// float16 of the CUDA toolkit, as far as it is used here.
#pragma once

struct __half {
  _Float16 value;

  operator float() const { return static_cast<float>(value); }
};

struct __half2 {
  __half x, y;
};

inline __half __float2half(float value) { return {static_cast<_Float16>(value)}; }
inline __half2 __half2half2(__half both) { return {both, both}; }
