// What the lanes of a warp do together: shfl, ldmatrix and mma. Fragments are written down as section "Matrix Fragments for
// mma" of the PTX ISA has them, element by element, and not as arch.cuh puts it.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "grid.h"

namespace fusedrnn::host {

constexpr const char* kSyncWarp = "__syncwarp";

inline void enter_warp(Warp& warp, const char* instruction) {
  if (warp.meeting.arrived && std::strcmp(warp.instruction, instruction))
    throw Error(std::string("is at ") + instruction + " while lanes of its warp wait for it at " + warp.instruction);
  warp.instruction = instruction;
}

inline void sync_warp() {
  enter_warp(self->warp(), kSyncWarp);
  grid->meet(self->warp().meeting, kSyncWarp);
}

// The last lane to come calls compute(operands), where operands[lane] points to those of each lane; then all go on.
template <class Operands, class Compute>
void together(const char* instruction, Operands& mine, Compute compute) {
  Warp& warp = self->warp();
  if (warp.meeting.living != kLanes)
    throw Error(std::string(instruction) + " in a warp of " + std::to_string(warp.meeting.living) + " lanes");
  enter_warp(warp, instruction);
  warp.operands[self->lane()] = &mine;
  if (warp.meeting.arrived + 1 == kLanes) {
    std::array<Operands*, kLanes> all;
    for (unsigned lane = 0; lane < kLanes; ++lane) all[lane] = static_cast<Operands*>(warp.operands[lane]);
    compute(all);
  }
  grid->meet(warp.meeting, instruction);
}

// shfl .bfly
struct Exchanged {
  float given;
  unsigned from;
  float taken;
};
inline float exchange(float given, int lanes) {
  Exchanged mine{given, self->lane() ^ static_cast<unsigned>(lanes), 0};
  together("shfl", mine, [](const std::array<Exchanged*, kLanes>& all) {
    for (Exchanged* const one : all) one->taken = all[one->from]->given;
  });
  return mine.taken;
}

struct Element {
  unsigned row, column;
};

// Element i of a lane's fragment. In 16 bits elements 2 j and 2 j + 1 are the low and the high half of register j.
constexpr Element a_16_by_16(unsigned lane, unsigned i) {
  const unsigned group = lane >> 2, in_group = lane % 4;
  const bool upper = i < 2 || (i >= 4 && i < 6);
  return {upper ? group : group + 8, in_group * 2 + (i & 1) + (i < 4 ? 0 : 8)};
}
constexpr Element b_16_by_8(unsigned lane, unsigned i) { return {lane % 4 * 2 + (i & 1) + (i < 2 ? 0 : 8), lane >> 2}; }
constexpr Element a_16_by_8_tf32(unsigned lane, unsigned i) {
  const unsigned group = lane >> 2, in_group = lane % 4;
  return {i == 0 || i == 2 ? group : group + 8, i == 0 || i == 1 ? in_group : in_group + 4};
}
constexpr Element b_8_by_8_tf32(unsigned lane, unsigned i) { return {lane % 4 + (i == 0 ? 0 : 4), lane >> 2}; }
constexpr Element d_16_by_8(unsigned lane, unsigned i) {
  return {i < 2 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 2 + (i & 1)};
}

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float bf16_element(const uint32_t* registers, unsigned i) {
  return float_of_bits(i % 2 ? registers[i / 2] & 0xffff0000 : registers[i / 2] << 16);
}
inline float f16_element(const uint32_t* registers, unsigned i) {
  const uint16_t bits = registers[i / 2] >> (i % 2 ? 16 : 0);
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return value;
}
// To the nearest of 10 bits of mantissa, ties away from zero.
inline float nearest_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return x - x == 0 ? float_of_bits((bits + 0x1000) & 0xffffe000) : x;
}
// The low 13 bits are not looked at.
inline float tf32_element(const uint32_t* registers, unsigned i) { return float_of_bits(registers[i] & 0xffffe000); }

struct MmaOperands {
  float* d;
  const uint32_t *a, *b;
};

// D [16, 8] += A [16, K] B [K, 8]
template <unsigned K, class A, class B, class ElementOf>
void mma(MmaOperands mine, A a_place, B b_place, ElementOf element_of) {
  together("mma", mine, [&](const std::array<MmaOperands*, kLanes>& lanes) {
    double a[16][K], b[K][8];
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      for (unsigned i = 0; i < 16 * K / kLanes; ++i) {
        const Element at = a_place(lane, i);
        a[at.row][at.column] = element_of(lanes[lane]->a, i);
      }
      for (unsigned i = 0; i < K * 8 / kLanes; ++i) {
        const Element at = b_place(lane, i);
        b[at.row][at.column] = element_of(lanes[lane]->b, i);
      }
    }
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      for (unsigned i = 0; i < 4; ++i) {
        const Element at = d_16_by_8(lane, i);
        double sum = lanes[lane]->d[i];
        for (unsigned k = 0; k < K; ++k) sum += a[at.row][k] * b[k][at.column];
        lanes[lane]->d[i] = static_cast<float>(sum);
      }
    }
  });
}

struct TileOperands {
  const std::byte* row;  // 16 bytes
  uint32_t tiles[4];
};

// ldmatrix .x4: lanes 8 j to 8 j + 7 point to the rows of tile j; register j of a lane is two elements of row lane / 4 of it,
// or, transposed, of column lane / 4.
inline void load_tiles(TileOperands& mine, bool transposed) {
  together("ldmatrix", mine, [=](const std::array<TileOperands*, kLanes>& lanes) {
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      for (unsigned tile = 0; tile < 4; ++tile) {
        uint16_t two[2];
        for (unsigned i = 0; i < 2; ++i) {
          const unsigned outer = lane / 4, inner = lane % 4 * 2 + i;
          const unsigned row = transposed ? inner : outer, column = transposed ? outer : inner;
          std::memcpy(&two[i], lanes[8 * tile + row]->row + column * 2, 2);
        }
        std::memcpy(&lanes[lane]->tiles[tile], two, 4);
      }
    }
  });
}

}  // namespace fusedrnn::host
