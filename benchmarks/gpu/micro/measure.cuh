// How everything here is measured: a kernel repeats one thing `reps` times and reads the clocks of its first thread
// around the loop; the time of one repetition is the slope between few and many, which leaves out what surrounds it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "arch.cuh"

namespace micro {

namespace arch = fusedrnn::arch;

// Written by a kernel: the clocks, and what went wrong.
struct Report {
  unsigned long long cycles, ns;
  unsigned late;   // waits that were given up
  unsigned wrong;  // values that are not what was sent, or computed
};

// Read by the first thread of the first CTA.
struct Stopwatch {
  unsigned long long cycles = 0, ns = 0;

  __device__ void start() {
    ns = arch::nanoseconds();
    cycles = arch::cycles();
  }
  __device__ void stop(Report* report) {
    const auto end = arch::cycles();
    const auto end_ns = arch::nanoseconds();
    if (blockIdx.x == 0 && threadIdx.x == 0) report->cycles = end - cycles, report->ns = end_ns - ns;
  }
};

// Every wait is bounded: once one has taken a tenth of a second it and all that follow are given up, and the launch
// counts as failed. A thread that gave up goes on through its loop, so that those it still meets are not left alone.
class Patience {
 public:
  __device__ explicit Patience(Report* report) : report_(report) {}

  template <class Done>
  __device__ void wait(Done done) {
    if (done() || spent_) return;
    const auto start = arch::cycles();
    while (!done()) {
      if (arch::cycles() - start > 200'000'000) {
        spent_ = true;
        atomicAdd(&report_->late, 1u);
        return;
      }
    }
  }

 private:
  Report* report_;
  bool spent_ = false;
};

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) { check(cudaMalloc(&data_, count * sizeof(T))); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  operator T*() const { return data_; }
  void zero() { check(cudaMemset(data_, 0, count_ * sizeof(T))); }
  void write(const std::vector<T>& values) {
    check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    check(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

struct Shape {
  int ctas = 1, threads = 256, cluster = 1;
  size_t shared = 0;
  bool cooperative = false;
};

struct Config : cudaLaunchConfig_t {
  cudaLaunchAttribute attributes[2];

  explicit Config(const Shape& shape) : cudaLaunchConfig_t{} {
    gridDim = dim3(shape.ctas);
    blockDim = dim3(shape.threads);
    dynamicSmemBytes = shape.shared;
    attrs = attributes;
    if (shape.cluster > 1) {
      attributes[numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[numAttrs].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
      ++numAttrs;
    }
    if (shape.cooperative) {
      attributes[numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[numAttrs].val.cooperative = 1;
      ++numAttrs;
    }
  }
  Config(const Config&) = delete;
};

template <class... P>
void allow(void (*kernel)(P...), const Shape& shape) {
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value));
  };
  if (shape.shared > 48 << 10) set(cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared));
  if (shape.cluster > 8) set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

// Launches, waits, and throws unless everything was in time and right. Every kernel's first argument is the report.
template <class... P, class... A>
Report run(const Shape& shape, void (*kernel)(Report*, P...), const A&... arguments) {
  static DeviceArray<Report> device(1);
  device.zero();
  allow(kernel, shape);
  const Config config(shape);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Report*>(device), static_cast<P>(arguments)...));
  check(cudaDeviceSynchronize());
  const Report report = device.read()[0];
  if (report.late) throw std::runtime_error("gave up " + std::to_string(report.late) + " waits");
  if (report.wrong) throw std::runtime_error(std::to_string(report.wrong) + " wrong values");
  return report;
}

struct Spread {
  double median, p20, p80;

  explicit Spread(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const auto at = [&](double part) {
      const double place = part * (values.size() - 1);
      const auto below = static_cast<size_t>(place);
      const double upper = values[std::min(below + 1, values.size() - 1)];
      return values[below] + (place - below) * (upper - values[below]);
    };
    median = at(0.5), p20 = at(0.2), p80 = at(0.8);
  }
};

struct Slope {
  Spread cycles, ns;  // of one repetition
  double mhz;         // the clock meanwhile
};

// `launch(reps)` runs the kernel. Many repetitions last about a millisecond, and are some thousands.
inline Slope slope(const std::function<Report(int)>& launch) {
  constexpr int few = 256, rounds = 25, multiple = 32;
  constexpr double enough = 2e6;
  launch(few);
  const Report one = launch(few), four = launch(4 * few);
  const double each = std::max(1.0, (double(four.cycles) - double(one.cycles)) / (3 * few));
  const int many = few + multiple * static_cast<int>(std::clamp(enough / each, 3.0 * few, 1e6) / multiple);
  std::vector<double> cycles, ns, mhz;
  for (int round = 0; round < rounds; ++round) {
    const Report a = launch(few), b = launch(many);
    cycles.push_back((double(b.cycles) - double(a.cycles)) / (many - few));
    ns.push_back((double(b.ns) - double(a.ns)) / (many - few));
    mhz.push_back(1e3 * b.cycles / b.ns);
  }
  return {Spread(cycles), Spread(ns), Spread(mhz).median};
}

// One line of JSON for each measurement, printed as soon as it is there.

struct At {
  std::string text;

  At& operator()(const char* name, long value) { return put(name, std::to_string(value)); }
  At& operator()(const char* name, const char* value) { return put(name, '"' + std::string(value) + '"'); }

 private:
  At& put(const char* name, const std::string& value) {
    text += std::string(text.empty() ? "" : ", ") + '"' + name + "\": " + value;
    return *this;
  }
};

inline void line(const char* measure, const At& at, const std::string& rest) {
  std::printf("{\"measure\": \"%s\", \"at\": {%s}, %s}\n", measure, at.text.c_str(), rest.c_str());
  std::fflush(stdout);
}

inline std::string json(const Spread& spread) {
  char text[120];
  std::snprintf(text, sizeof text, "{\"median\": %.6g, \"p20\": %.6g, \"p80\": %.6g}", spread.median, spread.p20,
                spread.p80);
  return text;
}

inline void fact(const char* measure, const At& at, double value, const char* unit) {
  char text[80];
  std::snprintf(text, sizeof text, "\"value\": %.6g, \"unit\": \"%s\"", value, unit);
  line(measure, at, text);
}

// What one repetition does, for rates: e.g. 1024, "bytes". Of one SM.
struct Work {
  double amount = 0;
  const char* unit = "";
};

// An error of the device is final for the process and is passed on; all others leave a line and the next one runs.
// `verify` comes first, where checking what a repetition did would take part of its time.
inline void measured(
    const char* measure, const At& at, const std::function<Report(int)>& launch, Work work = {},
    const std::function<void()>& verify = [] {}) {
  try {
    verify();
    const Slope s = slope(launch);
    char text[80];
    std::snprintf(text, sizeof text, ", \"work\": %.6g, \"unit\": \"%s\", \"mhz\": %.1f", work.amount, work.unit,
                  s.mhz);
    line(measure, at, "\"cycles\": " + json(s.cycles) + ", \"ns\": " + json(s.ns) + text);
  } catch (const std::runtime_error& error) {
    line(measure, at, "\"error\": \"" + std::string(error.what()) + '"');
    cudaGetLastError();
    if (cudaDeviceSynchronize() != cudaSuccess) throw;
  }
}

}  // namespace micro
