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

#include "layer.cuh"

// A sum over what it is built of (sources.py), where the builder gives it.
#ifndef FUSEDRNN_SOURCES
#define FUSEDRNN_SOURCES ""
#endif
#define FUSEDRNN_EXPORT extern "C" __attribute__((visibility("default")))

namespace fusedrnn::cuda {

// Raised whenever the C functions or what they do change, together with _INTERFACE in fusedrnn/_cuda_library.py.
constexpr int64_t interface_number = 5;

constexpr int portable_ctas = 8;  // of a cluster, on every GPU that has them
constexpr int most_ctas = 128;    // of a kernel
constexpr int grid_cluster = 2;   // CTAs of each cluster of a grid

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

// Two that serve a cell, that of rnn_tanh rnn_relu as well, and all H up to `hidden`, by so many CTAs for each batch tile
// with `shared` bytes of shared memory each: one of plain layers alone, one of all. Those CTAs are a cluster, or in clusters
// of `cluster`, and then exchange so many bytes of `packets`. W_ih x comes from before the loop, or, for I up to `inputs`,
// is computed in it.
template <class Arguments>
struct Kernel {
  Cell cell;
  int columns, inputs, hidden, threads, shared, ctas, cluster;
  int64_t packets;
  void (*plain)(Arguments), (*any)(Arguments);

  constexpr bool of_grid() const { return ctas > cluster; }
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

template <class P>
constexpr Kernel<ArgumentsOf<P>> kernel_of() {
  int64_t packets = 0;
  if constexpr (P::of_grid) packets = 2 * Packets<P>::buffer * sizeof(arch::Packet);
  auto *const plain = layer_kernel<P, true>, *const any = layer_kernel<P, false>;
  return {P::cell, P::columns, P::inputs, P::units, P::threads, P::shared, P::ctas, P::cluster, packets, plain, any};
}

// How a kernel is launched, by so many CTAs.
struct Config : cudaLaunchConfig_t {
  template <class Arguments>
  Config(const Kernel<Arguments>& kernel, int64_t ctas, void* stream) {
    std::memset(static_cast<void*>(this), 0, sizeof *this);
    gridDim = dim3(static_cast<unsigned>(ctas)), blockDim = dim3(kernel.threads);
    dynamicSmemBytes = kernel.shared, this->stream = static_cast<cudaStream_t>(stream);
    attrs = attributes_;
    if (kernel.cluster > 1) {
      attributes_[numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes_[numAttrs++].val.clusterDim = {static_cast<unsigned>(kernel.cluster), 1, 1};
    }
    if (kernel.of_grid()) {
      attributes_[numAttrs].id = cudaLaunchAttributeCooperative;
      attributes_[numAttrs++].val.cooperative = 1;
    }
  }
  Config(const Config&) = delete;

 private:
  cudaLaunchAttribute attributes_[2];
};

template <class Arguments>
cudaError_t allow(const Kernel<Arguments>& kernel, void (*run)(Arguments)) {
  const auto* const function = reinterpret_cast<const void*>(run);
  cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared);
  if (error == cudaSuccess && kernel.cluster > portable_ctas)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

// Clusters of a kernel that the device in use runs at once. It is asked once for each kernel; 0: it runs none.
template <class Arguments>
int64_t clusters_at_once(const Kernel<Arguments>& kernel) {
  static std::mutex asking;
  static std::map<std::pair<int, void (*)(Arguments)>, int> known;  // of a device
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  const std::lock_guard lock(asking);
  const auto [found, is_new] = known.try_emplace({device, kernel.plain}, 0);
  if (is_new) {
    Config config(kernel, kernel.cluster, nullptr);
    config.numAttrs = 1;  // the size of clusters: the question is not known to take a cooperative launch
    if (allow(kernel, kernel.plain) != cudaSuccess ||
        cudaOccupancyMaxActiveClusters(&found->second, kernel.plain, &config) != cudaSuccess)
      found->second = 0;
    cudaGetLastError();
  }
  return found->second;
}

// Tiles that a kernel takes at once, and the turns by which it takes so many.
template <class Arguments>
int64_t at_once(const Kernel<Arguments>& kernel, const Limits& limits) {
  const int64_t ctas = limits.processors;
  return (kernel.cluster > 1 ? std::min(ctas, clusters_at_once(kernel) * kernel.cluster) : ctas) / kernel.ctas;
}
template <class Arguments>
int64_t turns_of(const Kernel<Arguments>& kernel, int64_t tiles, const Limits& limits) {
  const int64_t of_a_turn = std::max<int64_t>(1, at_once(kernel, limits));
  return (tiles + of_a_turn - 1) / of_a_turn;
}

template <class Arguments>
bool serves(const Kernel<Arguments>& kernel, int64_t cell, int64_t inputs, const Limits& limits) {
  const bool fits = inputs == 0 ? kernel.inputs == 0 : kernel.inputs >= inputs;
  const Cell wanted = static_cast<Cell>(cell);
  const bool same = is_rnn(kernel.cell) ? is_rnn(wanted) : kernel.cell == wanted;
  if (!same || !fits || kernel.shared > limits.shared || kernel.cluster > limits.ctas) return false;
  if (kernel.cluster > 1 && clusters_at_once(kernel) == 0) return false;
  return !kernel.of_grid() || at_once(kernel, limits) > 0;  // for its CTAs wait for each other
}

template <class Arguments, size_t count>
int64_t most_hidden(const std::array<Kernel<Arguments>, count>& kernels, int64_t cell, int64_t inputs,
                    const Limits& limits) {
  int most = 0;
  for (const auto& kernel : kernels)
    if (serves(kernel, cell, inputs, limits)) most = std::max(most, kernel.hidden);
  return most;
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

// What the kernel chosen for a layer of so many tiles needs.
enum class Needs : int64_t {
  processors,  // that it takes at once, or would if there were as many
  turns,       // by which it takes them
  packets,     // bytes, for all tiles
};

// 0: no kernel serves it.
template <class Arguments, size_t count>
int64_t needs_of(const std::array<Kernel<Arguments>, count>& kernels, int64_t cell, int64_t inputs, int64_t H,
                 int64_t tiles, const Limits& limits, Needs what) {
  const auto* const kernel = chosen(kernels, cell, inputs, H, tiles, limits);
  if (!kernel) return 0;
  switch (what) {
    case Needs::processors:
      return tiles * kernel->ctas;
    case Needs::turns:
      return turns_of(*kernel, tiles, limits);
    default:
      return tiles * kernel->packets;
  }
}

// The kernel chosen for the layer, over the batch tiles of all directions: those of a grid in as many launches as they
// take turns, since all CTAs of a launch have to run at once. Returns what went wrong, or null.
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
  if (kernel->of_grid() && !arguments.packets) return "the kernel needs packets";
  const int64_t together = kernel->of_grid() ? at_once(*kernel, limits) : tiles;
  cudaError_t error = allow(*kernel, run);
  for (int64_t first = 0; first < tiles && error == cudaSuccess; first += together) {
    arguments.first_tile = first;
    const Config config(*kernel, std::min(together, tiles - first) * kernel->ctas, stream);
    error = cudaLaunchKernelEx(&config, run, arguments);
  }
  if (const cudaError_t last = cudaGetLastError(); error == cudaSuccess) error = last;
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The C functions of the kernels of one way, of all `kernels<Kind>` that are in scope.
#define FUSEDRNN_EXPORT_KERNELS(way)                                                                                   \
  /* Null, or what went wrong. */                                                                                      \
  FUSEDRNN_EXPORT const char* fusedrnn_cuda_##way(int64_t numbers, const int64_t* words, int64_t how_many,             \
                                                  int64_t directions, int64_t columns, int64_t shared, int64_t ctas,   \
                                                  int64_t processors, void* stream) {                                  \
    return with_kind(numbers, columns, [&]<class Kind>(Kind) {                                                         \
      return launch(kernels<Kind>, words, how_many, directions, columns, {shared, ctas, processors}, stream);          \
    });                                                                                                                \
  }                                                                                                                    \
  /* The largest H that a kernel serves which takes so many rows of the batch; inputs: those of x that are multiplied  \
     in the kernel, 0: none. 0: no kernel serves such a layer. */                                                      \
  FUSEDRNN_EXPORT int64_t fusedrnn_cuda_##way##_hidden(int64_t numbers, int64_t columns, int64_t cell, int64_t inputs, \
                                                       int64_t shared, int64_t ctas, int64_t processors) {             \
    return with_kind(numbers, columns, [&]<class Kind>(Kind) {                                                         \
      return most_hidden(kernels<Kind>, cell, inputs, {shared, ctas, processors});                                     \
    });                                                                                                                \
  }                                                                                                                    \
  FUSEDRNN_EXPORT int64_t fusedrnn_cuda_##way##_needs(int64_t numbers, int64_t columns, int64_t cell, int64_t inputs,  \
                                                      int64_t H, int64_t tiles, int64_t shared, int64_t ctas,          \
                                                      int64_t processors, int64_t what) {                              \
    return with_kind(numbers, columns, [&]<class Kind>(Kind) {                                                         \
      return needs_of(kernels<Kind>, cell, inputs, H, tiles, {shared, ctas, processors}, static_cast<Needs>(what));    \
    });                                                                                                                \
  }

}  // namespace fusedrnn::cuda
