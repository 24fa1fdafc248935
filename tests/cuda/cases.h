// Programs that run the kernels of benchmarks/gpu/micro on the host, at small sizes, and check what they compute.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "measure.cuh"

namespace cases {

inline std::string chosen;  // the cases run whose names contain it
inline int mistake = 0;     // the number of the one that is made, or 0
inline int failed = 0;

// `launch` returns the report of a kernel, and throws unless all is well.
template <class Launch>
void check(const std::string& name, Launch launch) {
  if (name.find(chosen) == std::string::npos) return;
  try {
    const micro::Report report = launch();
    std::printf("%s: well, %llu steps\n", name.c_str(), report.cycles);
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", name.c_str(), error.what());
    ++failed;
  }
  std::fflush(stdout);
}

// PROGRAM SEED [NAME [MISTAKE]]
inline int main_of(int count, char** arguments, void (*all)()) {
  fusedrnn::host::set_seed(count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 0);
  if (count > 2) chosen = arguments[2];
  if (count > 3) mistake = std::atoi(arguments[3]);
  all();
  std::printf("%d failed\n", failed);
  return failed != 0;
}

}  // namespace cases
