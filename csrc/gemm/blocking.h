// Block sizes of the GEMM, per tier and element type, on one page.
//
//   MR x NR   the register tile: kMR rows by kNV vectors. 32 vector registers carry 6 x 4, 16 carry 6 x 2.
//   KC        terms summed before C is touched again.
//   MC        rows of A that stay in L2 while B panels pass.
//   NC        columns of B packed at a time; KC x NC stays in L3.
// They are constants of the tier, so that the order of every sum, and with it every bit, is the same on all its machines.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

constexpr int kMR = 6;
constexpr int kNV = kVectorRegisters >= 32 ? 4 : 2;

template <class T>
struct Blocking {
    static constexpr int NR = kNV * kLanes<T>;
    // 32 registers: a wide B panel in L2 and few visits to C; 16: a narrow one (KC x NR) as large as L1.
    static constexpr int64_t KC = kVectorRegisters >= 32 ? 2048 / static_cast<int64_t>(sizeof(T)) : 512;
    static constexpr int64_t MC = kVectorRegisters >= 32 ? 168 : 720 / static_cast<int64_t>(sizeof(T));
    static constexpr int64_t NC = sizeof(T) == 4 ? 3072 : 2048;
    // B of at most this many bytes is read in place while A passes: where its rows are neighbours, and where not.
    static constexpr int64_t kDenseBytes = (kVectorRegisters >= 32 ? 256 : 16) * 1024;
    static constexpr int64_t kDirectBytes = (kVectorRegisters >= 32 ? 40 : 16) * 1024;
    // KC columns of A of at most this many bytes stay in L2, in place, while panels of B pass.
    static constexpr int64_t kLeftBytes = (kVectorRegisters >= 32 ? 640 : 320) * 1024;
    // An A that does not run along k is packed from this many columns on; below, each number is used too rarely.
    static constexpr int64_t kPackColumns = 4 * NR;
};

}  // namespace tw::TW_ISA
