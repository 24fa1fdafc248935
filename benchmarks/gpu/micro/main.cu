// What the chip takes for the things a recurrent kernel is made of.
//
//   micro [GROUP...]   measure these groups, or all; a line of JSON for each measurement
//   micro --list       the groups
//
// Needs no torch. Built for one GPU: -DFUSEDRNN_SM=90 with -gencode arch=compute_90a,code=sm_90a, and so on.
#include <cstring>
#include <map>

#include "functions.cuh"
#include "grid.cuh"
#include "matrix.cuh"
#include "memory.cuh"
#if FUSEDRNN_SM >= 90
#include "exchange.cuh"
#endif

namespace {

using namespace micro;

// The quickest first.
const std::vector<std::pair<std::string, std::function<void(int)>>> kGroups = {
#if FUSEDRNN_SM >= 90
    {"clusters", [](int) { clusters(); }},
#endif
    {"matrix", matrix},
    {"functions", [](int) { functions(); }},
    {"barriers", [](int) { barriers(); }},
    {"loads", [](int) { loads(); }},
    {"grid", grid},
    {"fetch", [](int sms) { fetches("fetch by cp.async", fetch_kernel, 256, sms); }},
#if FUSEDRNN_SM >= 90
    {"bulk", [](int sms) { fetches("fetch by the copy engine", bulk_fetch_kernel, 32, sms); }},
    {"exchange", [](int) { exchanges(); }},
#endif
};

int measure(const std::vector<std::string>& names) {
  int device = 0, sms = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device));
  for (const auto& [name, group] : kGroups) {
    if (!names.empty() && std::find(names.begin(), names.end(), name) == names.end()) continue;
    group(sms);
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) try {
  const std::vector<std::string> names(arguments + 1, arguments + count);
  if (names == std::vector<std::string>{"--list"}) {
    for (const auto& [name, group] : kGroups) std::puts(name.c_str());
    return 0;
  }
  for (const auto& name : names) {
    const auto known = [&](const auto& group) { return group.first == name; };
    if (std::none_of(kGroups.begin(), kGroups.end(), known)) {
      std::fprintf(stderr, "micro: there is no group %s; micro --list names them\n", name.c_str());
      return 2;
    }
  }
  return measure(names);
} catch (const std::exception& error) {
  std::fprintf(stderr, "micro: %s\n", error.what());
  return 1;
}
