// The CUDA language and the CUDA runtime as far as they are used here, on the host. A launch runs at once, to its end.
//
//   g++ -std=c++20 -fno-strict-aliasing -I csrc/cuda/host -I csrc/cuda ...
//
// takes this folder's cuda_runtime.h, cuda_bf16.h, cuda_fp16.h, arch.cuh and arch90.cuh, and compiles kernels as they are.
#pragma once

#include <math.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>
#include <string>

#include "grid.h"
#include "vector_types.h"
#include "warps.h"

// The language.

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static thread_local

inline void __syncthreads() { fusedrnn::host::grid->meet(fusedrnn::host::self->cta->meeting, "__syncthreads"); }
inline void __syncwarp() { fusedrnn::host::sync_warp(); }

inline int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  fusedrnn::host::grid->changed();
  return before;
}

// The runtime.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorNotSupported = 801,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13,
};
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeClusterDimension = 4 };

union cudaLaunchAttributeValue {
  struct {
    unsigned x, y, z;
  } clusterDim;
  int cooperative;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
using cudaStream_t = struct Stream*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace fusedrnn::host {

struct Runtime {
  uint64_t seed = 0, launches = 0;
  std::string failure;    // of the launches since cudaDeviceSynchronize was called
  std::string last_told;  // by it
  std::map<std::pair<const void*, cudaFuncAttribute>, int> attributes;
  std::map<const std::byte*, size_t> allocated;  // by cudaMalloc: bytes
};
inline Runtime runtime;

// Whether all of these bytes are of one allocation; true where all memory is allocated elsewhere, as by torch.
inline bool is_allocated(const std::byte* p, size_t bytes) {
  if (runtime.allocated.empty()) return true;
  const auto after = runtime.allocated.upper_bound(p);
  if (after == runtime.allocated.begin()) return false;
  const auto& [begin, size] = *std::prev(after);
  return p + bytes <= begin + size;
}

// Draws of all launches that follow come from this seed.
inline void set_seed(uint64_t seed) { runtime.seed = seed, runtime.launches = 0; }

}  // namespace fusedrnn::host

template <class T>
cudaError_t cudaMalloc(T** pointer, size_t bytes) {
  *pointer = static_cast<T*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  if (!*pointer) return cudaErrorMemoryAllocation;
  std::memset(static_cast<void*>(*pointer), fusedrnn::host::kPoison, bytes);
  fusedrnn::host::runtime.allocated[reinterpret_cast<std::byte*>(*pointer)] = bytes;
  return cudaSuccess;
}

inline cudaError_t cudaFree(void* pointer) {
  fusedrnn::host::runtime.allocated.erase(static_cast<std::byte*>(pointer));
  std::free(pointer);
  return cudaSuccess;
}

inline cudaError_t cudaMemset(void* to, int byte, size_t bytes) {
  std::memset(to, byte, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  fusedrnn::host::runtime.attributes[{kernel, attribute}] = value;
  return cudaSuccess;
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  auto& runtime = fusedrnn::host::runtime;
  const dim3 blocks = config->gridDim, threads = config->blockDim;
  fusedrnn::host::LaunchShape shape{blocks.x, threads.x, 1, config->dynamicSmemBytes};
  bool cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const auto& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) shape.cluster = attribute.val.clusterDim.x;
    if (attribute.id == cudaLaunchAttributeCooperative) cooperative = attribute.val.cooperative;
  }
  if (cooperative && blocks.x * threads.x > fusedrnn::host::kAtOnce) return cudaErrorCooperativeLaunchTooLarge;
  const auto attribute = [&](cudaFuncAttribute which) {
    return runtime.attributes[{reinterpret_cast<const void*>(kernel), which}];
  };
  const bool flat = blocks.y * blocks.z * threads.y * threads.z == 1;
  const bool shared = shape.dynamic_bytes <= 48 << 10 ||
                      shape.dynamic_bytes <= size_t(attribute(cudaFuncAttributeMaxDynamicSharedMemorySize));
  const bool cluster =
      shape.cluster <= 8 || (shape.cluster <= 16 && attribute(cudaFuncAttributeNonPortableClusterSizeAllowed));
  if (!flat || !shared || !cluster || threads.x > 1024 || blocks.x % shape.cluster) return cudaErrorInvalidValue;
  const std::string failure = fusedrnn::host::run_grid(
      shape, [&] { kernel(static_cast<P>(arguments)...); }, runtime.seed << 32 | runtime.launches++);
  if (runtime.failure.empty()) runtime.failure = failure;
  return cudaSuccess;
}

// The failure of a launch is told once, by whichever is asked first.
inline cudaError_t cudaDeviceSynchronize() {
  auto& runtime = fusedrnn::host::runtime;
  runtime.last_told = std::exchange(runtime.failure, "");
  return runtime.last_told.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

inline cudaError_t cudaGetLastError() { return cudaDeviceSynchronize(); }

struct cudaFuncAttributes {};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaSuccess; }

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorLaunchFailure:
      return fusedrnn::host::runtime.last_told.c_str();
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorInvalidValue:
      return "invalid value";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNotSupported:
      return "not on the host";
    default:
      return "no error";
  }
}

// Of any size but FUSEDRNN_HOST_REFUSES, a number in the environment.
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel, const cudaLaunchConfig_t* config) {
  static const char* const refused = std::getenv("FUSEDRNN_HOST_REFUSES");
  const bool refuses = refused && config->attrs[0].val.clusterDim.x == unsigned(std::atoi(refused));
  *clusters = refuses ? 0 : 1 << 20;
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
