// Which kernels serve a layer, and their launch, behind C functions: fusedrnn/backends/cuda.py calls them. The arguments of
// a kernel come as 64-bit words in the order of struct Forward or Backward.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "plan.cuh"

// A sum over what it is built of (sources.py), where the builder gives it.
#ifndef FUSEDRNN_SOURCES
#define FUSEDRNN_SOURCES ""
#endif
#define FUSEDRNN_EXPORT extern "C" __attribute__((visibility("default")))

namespace fusedrnn::cuda {

// Raised whenever the C functions or what they do change, together with _INTERFACE in fusedrnn/_cuda_library.py.
constexpr int64_t interface_number = 4;

constexpr int portable_ctas = 8, most_ctas = 16;  // of a cluster: on every GPU that has them, and on some

// As NUMBERS in fusedrnn/backends/cuda.py.
enum class Numbers : int64_t { bf16, f16, tf32, ieee };

// f(Kind()) of the numbers that are multiplied, `columns` rows of the batch at a time.
template <class F>
auto with_kind(int64_t numbers, int64_t columns, F f) {
  switch (static_cast<Numbers>(numbers)) {
    case Numbers::bf16:
      return f(__nv_bfloat16());
    case Numbers::f16:
      return f(__half());
    case Numbers::tf32:
      return f(Tf32());
    default:
      return columns == 1 ? f(Ieee<1>()) : f(Ieee<2>());
  }
}

// What a GPU offers: bytes of shared memory to a CTA, the CTAs that a cluster of its may have, and multiprocessors.
struct Limits {
  int64_t shared, ctas, processors;
};

// Two that serve a cell, that of rnn_tanh rnn_relu as well, and all H up to `hidden`, by clusters of so many CTAs with
// `shared` bytes of shared memory each: one of plain layers alone, one of all. W_ih x comes from before the loop, or, for I
// up to `inputs`, is computed in it.
template <class Arguments>
struct Kernel {
  Cell cell;
  int columns, inputs, hidden, threads, shared, ctas;
  void (*plain)(Arguments), (*any)(Arguments);
};

// Numbers a row of x has, of a layer that has W_ih x computed in its kernel; else 0.
template <class Arguments>
int64_t inputs_of(const Arguments& arguments) {
  if constexpr (requires { arguments.x; }) return arguments.x.base ? arguments.shape.I : 0;
  return 0;
}

template <class Arguments>
bool is_plain(const Arguments& arguments) {
  const Shape& s = arguments.shape;
  if constexpr (requires { arguments.tokens; })
    if (arguments.tokens.base) return false;
  return !s.row_offsets && !s.lengths && !s.resets;
}

template <class P, class Arguments>
constexpr Kernel<Arguments> kernel_of(void (*plain)(Arguments), void (*any)(Arguments)) {
  return {P::cell, P::columns, P::inputs, P::units, P::threads, P::shared, P::ctas, plain, any};
}

template <class Arguments>
bool serves(const Kernel<Arguments>& kernel, int64_t cell, int64_t inputs, const Limits& limits) {
  const bool fits = inputs == 0 ? kernel.inputs == 0 : kernel.inputs >= inputs;
  const Cell wanted = static_cast<Cell>(cell);
  const bool same = is_rnn(kernel.cell) ? is_rnn(wanted) : kernel.cell == wanted;
  return same && fits && kernel.shared <= limits.shared && kernel.ctas <= limits.ctas;
}

template <class Arguments, size_t count>
int64_t most_hidden(const std::array<Kernel<Arguments>, count>& kernels, int64_t cell, int64_t inputs,
                    const Limits& limits) {
  int most = 0;
  for (const auto& kernel : kernels)
    if (serves(kernel, cell, inputs, limits)) most = std::max(most, kernel.hidden);
  return most;
}

// How a kernel is launched, by clusters or CTAs that are so many together.
struct Config : cudaLaunchConfig_t {
  template <class Arguments>
  Config(const Kernel<Arguments>& kernel, int64_t ctas, void* stream) {
    std::memset(static_cast<void*>(this), 0, sizeof *this);
    gridDim = dim3(static_cast<unsigned>(ctas)), blockDim = dim3(kernel.threads);
    dynamicSmemBytes = kernel.shared, this->stream = static_cast<cudaStream_t>(stream);
    if (kernel.ctas == 1) return;
    cluster_.id = cudaLaunchAttributeClusterDimension;
    cluster_.val.clusterDim = {static_cast<unsigned>(kernel.ctas), 1, 1};
    attrs = &cluster_, numAttrs = 1;
  }
  Config(const Config&) = delete;

 private:
  cudaLaunchAttribute cluster_;
};

template <class Arguments>
cudaError_t allow(const Kernel<Arguments>& kernel, void (*run)(Arguments)) {
  const auto* const function = reinterpret_cast<const void*>(run);
  cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared);
  if (error == cudaSuccess && kernel.ctas > portable_ctas)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

// Clusters that the device in use runs at once. It is asked once for each size of them; 0: it has none.
template <class Arguments>
int64_t clusters_at_once(const Kernel<Arguments>& kernel) {
  static std::mutex asking;
  static std::map<std::pair<int, int>, int> known;  // of a device and a size
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  const std::lock_guard lock(asking);
  const auto [found, is_new] = known.try_emplace({device, kernel.ctas}, 0);
  if (is_new) {
    const Config config(kernel, kernel.ctas, nullptr);
    if (allow(kernel, kernel.plain) != cudaSuccess ||
        cudaOccupancyMaxActiveClusters(&found->second, kernel.plain, &config) != cudaSuccess)
      found->second = 0;
    cudaGetLastError();
  }
  return found->second;
}

// Turns by which a kernel takes so many tiles.
template <class Arguments>
int64_t turns_of(const Kernel<Arguments>& kernel, int64_t tiles, const Limits& limits) {
  int64_t at_once = limits.processors / kernel.ctas;
  if (kernel.ctas > 1) at_once = std::min(at_once, clusters_at_once(kernel));
  at_once = std::max<int64_t>(1, at_once);
  return (tiles + at_once - 1) / at_once;
}

// Of the kernels, those of a cell in order of their size, the first that serves a layer; or, where that is one of clusters
// and they do not take all its tiles at once, one of smaller clusters, which take them by fewer turns.
template <class Arguments, size_t count>
const Kernel<Arguments>* chosen(const std::array<Kernel<Arguments>, count>& kernels, int64_t cell, int64_t inputs,
                                int64_t H, int64_t tiles, const Limits& limits) {
  const Kernel<Arguments>* best = nullptr;
  for (const auto& kernel : kernels) {
    if (kernel.hidden < H || !serves(kernel, cell, inputs, limits)) continue;
    if (!best || (kernel.ctas < best->ctas && turns_of(kernel, tiles, limits) < turns_of(*best, tiles, limits)))
      best = &kernel;
  }
  return best;
}

// The kernel chosen for the layer: a grid of the batch tiles of all directions. Returns what went wrong, or null.
template <class Arguments, size_t count>
const char* launch(const std::array<Kernel<Arguments>, count>& kernels, const int64_t* words, int64_t how_many,
                   int64_t directions, int64_t columns, const Limits& limits, void* stream) {
  if (how_many * sizeof(int64_t) != sizeof(Arguments) || columns != kernels[0].columns)
    return "the library was built from other sources";
  Arguments arguments;
  std::memcpy(&arguments, words, sizeof arguments);
  const Shape& s = arguments.shape;
  const int64_t tiles = (s.B + columns - 1) / columns * directions;
  if (tiles == 0) return nullptr;
  if (tiles > INT32_MAX / most_ctas || s.B > INT32_MAX - columns || s.T > INT32_MAX)
    return "the batch or the sequence is too large";
  const int64_t cell = static_cast<int64_t>(s.cell), inputs = inputs_of(arguments);
  const auto* const kernel = chosen(kernels, cell, inputs, s.H, tiles, limits);
  if (!kernel) return "no kernel serves this layer";
  auto* const run = is_plain(arguments) ? kernel->plain : kernel->any;
  const Config config(*kernel, tiles * kernel->ctas, stream);
  cudaError_t error = allow(*kernel, run);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, run, arguments);
  if (const cudaError_t last = cudaGetLastError(); error == cudaSuccess) error = last;
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fusedrnn::cuda
