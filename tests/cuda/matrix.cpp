// Products of a warp and of a warpgroup, each checked against sums over k.
#include "cases.h"
#include "matrix.cuh"

namespace {

using namespace micro;

constexpr int kReps = 3;

template <class Type, int tiles, int columns>
void registers() {
  cases::check(std::string("mma ") + Type::name + ", " + std::to_string(tiles) + " tiles by " + std::to_string(columns),
               [] { return run({.ctas = 2, .threads = 64}, mma_registers_kernel<Type, tiles, columns>, kReps); });
}

template <int columns>
void shared() {
  cases::check("mma, B in shared memory, N " + std::to_string(columns),
               [] { return run({.threads = 64}, mma_shared_kernel<columns>, kReps, 0); });
}

template <int columns>
void warpgroups() {
  for (int warps : {4, 8}) {
    cases::check("wgmma, N " + std::to_string(columns) + ", " + std::to_string(warps) + " warps",
                 [=] { return run({.threads = 32 * warps}, wgmma_kernel<columns>, kReps); });
  }
}

void all() {
  registers<Bf16, 1, 8>();
  registers<Bf16, 2, 8>();
  registers<Bf16, 4, 8>();
  registers<Bf16, 8, 8>();
  registers<Bf16, 4, 16>();
  registers<Bf16, 4, 32>();
  registers<Tf32, 1, 8>();
  registers<Tf32, 4, 8>();
  shared<8>();
  shared<16>();
  shared<32>();
  warpgroups<8>();
  warpgroups<16>();
  warpgroups<32>();
}

}  // namespace

int main(int count, char** arguments) { return cases::main_of(count, arguments, all); }
