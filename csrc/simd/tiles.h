// Tiles: eight registers of 16 rows by 64 bytes, and products of two of them (Intel AMX). TW_TILES where the tier has them.
//
//   C (16 x 16 words)  +=  A (rows of 64 bytes along k)  x  B (rows of 16 words, each of which holds 4 bytes of k)
//
// A word holds four 8-bit integers, two bf16 or two f16. A thread that multiplies tiles is between tiles_begin() and
// tiles_end().
// Numerics: integers are exact and wrap. bf16, f16: products are exact; the sums of even and of odd terms are fused
// multiply-adds, added at the end; denormal floats become zero, as bf16 too, but f16 counts in full.
#pragma once
#include "simd/vec.h"

#if defined(__AMX_TILE__) || defined(TW_EMULATED_AMX)
#define TW_TILES
#endif
#if defined(TW_EMULATED_AMX)
#include "simd/convert.h"
#endif

namespace tw::TW_ISA {

constexpr int kTileRows = 16, kTileBytes = 64;  // a tile; also its columns of words

// The types of A and B.
enum class TileKind { u8u8, u8s8, s8u8, s8s8, bf16, f16 };
template <TileKind Kind>
constexpr bool kSumsFloats = Kind >= TileKind::bf16;

#if defined(TW_TILES)
constexpr bool kHasTiles = true;

#if defined(TW_EMULATED_AMX)
struct Tiles {
    unsigned char tile[8][kTileRows][kTileBytes];
};
static __thread Tiles g_tiles;

TW_INLINE void tiles_begin(int = kTileRows) { g_tiles = Tiles{}; }
TW_INLINE void tiles_end() {}
template <int N>
TW_INLINE void tile_zero() {
    __builtin_memset(g_tiles.tile[N], 0, sizeof g_tiles.tile[N]);
}
template <int N>
TW_INLINE void tile_load(const void* from, int64_t stride) {
    for (int i = 0; i < kTileRows; ++i)
        __builtin_memcpy(g_tiles.tile[N][i], static_cast<const char*>(from) + i * stride, kTileBytes);
}
template <int N>
TW_INLINE void tile_load_once(const void* from, int64_t stride) {
    tile_load<N>(from, stride);
}
template <int N>
TW_INLINE void tile_store(void* to, int64_t stride) {
    for (int i = 0; i < kTileRows; ++i)
        __builtin_memcpy(static_cast<char*>(to) + i * stride, g_tiles.tile[N][i], kTileBytes);
}

template <class X, class Y>
void emulate_dot(unsigned char (*c)[kTileBytes], const unsigned char (*a)[kTileBytes],
                 const unsigned char (*b)[kTileBytes]) {
    for (int i = 0; i < kTileRows; ++i)
        for (int j = 0; j < kTileRows; ++j) {
            uint32_t sum;
            __builtin_memcpy(&sum, c[i] + 4 * j, 4);
            for (int k = 0; k < kTileBytes; ++k)
                sum += static_cast<uint32_t>(static_cast<X>(a[i][k]) * static_cast<Y>(b[k / 4][4 * j + k % 4]));
            __builtin_memcpy(c[i] + 4 * j, &sum, 4);
        }
}

static inline float normal_or_zero(float v) { return __builtin_fabsf(v) < 0x1p-126f ? __builtin_copysignf(0.f, v) : v; }
template <TileKind Kind>
static float emulated_half(const unsigned char* p) {
    const auto bits = static_cast<uint16_t>(p[0] | p[1] << 8);
    return normal_or_zero(Kind == TileKind::f16 ? to_float(::tw::f16{bits}) : to_float(::tw::bf16{bits}));
}
template <TileKind Kind>
static void emulate_dot_halves(unsigned char (*c)[kTileBytes], const unsigned char (*a)[kTileBytes],
                               const unsigned char (*b)[kTileBytes]) {
    for (int i = 0; i < kTileRows; ++i)
        for (int j = 0; j < kTileRows; ++j) {
            float sum, part[2] = {};
            __builtin_memcpy(&sum, c[i] + 4 * j, 4);
            for (int k = 0; k < kTileBytes / 2; ++k)
                part[k % 2] =
                    normal_or_zero(__builtin_fmaf(emulated_half<Kind>(a[i] + 2 * k),
                                                  emulated_half<Kind>(b[k / 2] + 4 * j + 2 * (k % 2)), part[k % 2]));
            sum = normal_or_zero(sum + normal_or_zero(part[0] + part[1]));
            __builtin_memcpy(c[i] + 4 * j, &sum, 4);
        }
}
// C += A B.
template <TileKind Kind, int C, int A, int B>
TW_INLINE void tile_dot() {
    auto &c = g_tiles.tile[C], &a = g_tiles.tile[A], &b = g_tiles.tile[B];
    if constexpr (Kind == TileKind::u8u8) emulate_dot<uint8_t, uint8_t>(c, a, b);
    if constexpr (Kind == TileKind::u8s8) emulate_dot<uint8_t, int8_t>(c, a, b);
    if constexpr (Kind == TileKind::s8u8) emulate_dot<int8_t, uint8_t>(c, a, b);
    if constexpr (Kind == TileKind::s8s8) emulate_dot<int8_t, int8_t>(c, a, b);
    if constexpr (kSumsFloats<Kind>) emulate_dot_halves<Kind>(c, a, b);
}
#else
struct alignas(64) TileShape {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};
// A constant: the CPU would wait for a shape that was just written.
static constexpr TileShape kWholeTiles = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
// Tiles 0 to 5, of C and A, hold so many rows. Rows that are not there hold whatever memory holds, and are not looked at.
TW_INLINE void tiles_begin(int rows = kTileRows) {
    if (rows == kTileRows) {
        __asm__ volatile("ldtilecfg %0" ::"m"(kWholeTiles));
        return;
    }
    TileShape shape = kWholeTiles;
    for (int i = 0; i < 6; ++i) shape.rows[i] = static_cast<uint8_t>(rows);
    __asm__ volatile("ldtilecfg %0" ::"m"(shape));
}
TW_INLINE void tiles_end() { __asm__ volatile("tilerelease" ::: "memory"); }
template <int N>
TW_INLINE void tile_zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(N));
}
template <int N>
TW_INLINE void tile_load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(N) : "memory");
}
// Of what is not needed again soon: it drives nothing else out of L1.
template <int N>
TW_INLINE void tile_load_once(const void* from, int64_t stride) {
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(N) : "memory");
}
template <int N>
TW_INLINE void tile_store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(N) : "memory");
}
// C += A B.
template <TileKind Kind, int C, int A, int B>
TW_INLINE void tile_dot() {
#define TW_TILE_DOT(name) __asm__ volatile(name " %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B))
    if constexpr (Kind == TileKind::u8u8) TW_TILE_DOT("tdpbuud");
    if constexpr (Kind == TileKind::u8s8) TW_TILE_DOT("tdpbusd");
    if constexpr (Kind == TileKind::s8u8) TW_TILE_DOT("tdpbsud");
    if constexpr (Kind == TileKind::s8s8) TW_TILE_DOT("tdpbssd");
    if constexpr (Kind == TileKind::bf16) TW_TILE_DOT("tdpbf16ps");
#undef TW_TILE_DOT
    // tdpfp16ps, in bytes: assemblers that are to be served do not know it.
    if constexpr (Kind == TileKind::f16)
        __asm__ volatile(".byte 0xc4, 0xe2, %c0, 0x5c, %c1" ::"i"((~B & 15) << 3 | 3), "i"(0xc0 | C << 3 | A));
}
#endif
#else
constexpr bool kHasTiles = false;
#endif

}  // namespace tw::TW_ISA
