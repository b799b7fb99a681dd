// Peaks: what this tier's instructions reach when nothing else is in the way. The bench divides kernels by them.
//
// Method: register loops keep enough independent accumulators to hide the latency of the multiply-adds; their second
// operand is read from memory each time, as in a real micro-kernel (embedded loads are free, cpu.md 1). Memory loops read,
// copy, or copy past the caches, one vector after another.
// Numerics: values stay finite and normal (acc = acc * 0.5 + 0.5), so that no assist slows a loop. Threads: none; the
// caller starts one loop per thread.
#include "ops/ops.h"
#include "simd/dot.h"
#include "simd/tiles.h"

namespace tw::TW_ISA {
namespace {

constexpr int kAccumulators = kVectorRegisters >= 32 ? 16 : 10;

// Keeps the compiler from hoisting loads of memory it cannot see over it, or from calling memcpy for a loop.
#define TW_RELOAD() __asm__ volatile("" ::: "memory")

struct Fma32 {
    typedef f32v Acc;
    static constexpr double kOperations = 2.0 * kLanes<float>;
    static Acc fill() { return splat(0.5f); }
    TW_INLINE Acc of(Acc acc, Acc a, Acc b) { return fma(acc, a, b); }
};
struct Fma64 {
    typedef f64v Acc;
    static constexpr double kOperations = 2.0 * kLanes<double>;
    static Acc fill() { return splat(0.5); }
    TW_INLINE Acc of(Acc acc, Acc a, Acc b) { return fma(acc, a, b); }
};
struct DotBf16 {
    typedef f32v Acc;
    static constexpr double kOperations = 4.0 * kLanes<float>;
    static Acc fill() { return bitcast<f32v>(splat<uint32_t>(0x3f003f00u)); }  // pairs of 0.5
    TW_INLINE Acc of(Acc acc, Acc a, Acc b) { return dot_bf16(acc, a, b); }
};
struct DotI8 {
    typedef i32v Acc;
    static constexpr double kOperations = 2.0 * kDotDepth * kLanes<float>;
    static Acc fill() { return splat<int32_t>(0x01010101); }
    TW_INLINE Acc of(Acc acc, Acc a, Acc b) { return dot(acc, a, b); }
};

template <class Loop>
double compute(int64_t rounds, void* sink) {
    typedef typename Loop::Acc Acc;
    auto* operand = static_cast<Elem<Acc>*>(sink);
    Acc acc[kAccumulators];
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) store(operand + i * kCount<Acc>, acc[i] = Loop::fill());
    const Acc a = Loop::fill();
    for (int64_t r = 0; r < rounds; ++r) {
        TW_RELOAD();
#pragma GCC unroll 16
        for (int i = 0; i < kAccumulators; ++i) acc[i] = Loop::of(acc[i], a, load_aligned(operand + i * kCount<Acc>));
    }
    Acc total = acc[0];
#pragma GCC unroll 16
    for (int i = 1; i < kAccumulators; ++i) total = total + acc[i];
    __builtin_memcpy(sink, &total, sizeof total);
    return Loop::kOperations * kAccumulators * static_cast<double>(rounds);
}

#if defined(TW_TILES)
// Four tiles of sums; both operands are read each time, as a kernel of two by two tiles does.
template <TileKind Kind>
double multiply_tiles(int64_t rounds, void* sink) {
    static_assert(kPeakSink >= kTileRows * kTileBytes);
    __builtin_memset(sink, 0, kPeakSink);
    tiles_begin();
    for (int64_t r = 0; r < rounds; ++r) {
        tile_load<4>(sink, kTileBytes), tile_load<6>(sink, kTileBytes);
        tile_dot<Kind, 0, 4, 6>();
        tile_load<5>(sink, kTileBytes), tile_load<7>(sink, kTileBytes);
        tile_dot<Kind, 1, 4, 7>();
        tile_dot<Kind, 2, 5, 6>();
        tile_dot<Kind, 3, 5, 7>();
    }
    tile_store<0>(sink, kTileBytes);
    tiles_end();
    constexpr double operations = 2.0 * kTileRows * kTileRows * kTileBytes / (Kind == TileKind::bf16 ? 2 : 1);
    return 4 * operations * static_cast<double>(rounds);
}
#endif

constexpr int kStep = 8;  // vectors per turn of a memory loop
constexpr int64_t kStepLanes = kStep * kLanes<uint32_t>;

double read(const void* from, int64_t bytes, void* sink) {
    const auto* p = static_cast<const uint32_t*>(from);
    const int64_t n = bytes / 4 / kStepLanes * kStepLanes;
    u32v acc[kStep] = {};
    for (int64_t i = 0; i < n; i += kStepLanes) {
        TW_RELOAD();
#pragma GCC unroll 8
        for (int j = 0; j < kStep; ++j) acc[j] = acc[j] ^ load(p + i + j * kLanes<uint32_t>);
    }
#pragma GCC unroll 8
    for (int j = 1; j < kStep; ++j) acc[0] = acc[0] ^ acc[j];
    __builtin_memcpy(sink, &acc[0], sizeof acc[0]);
    return 4.0 * static_cast<double>(n);
}

template <bool Streamed>
double copy(void* to, const void* from, int64_t bytes) {
    const auto* p = static_cast<const uint32_t*>(from);
    auto* q = static_cast<uint32_t*>(to);
    const int64_t n = bytes / 4 / kStepLanes * kStepLanes;
    for (int64_t i = 0; i < n; i += kStepLanes) {
        u32v v[kStep];
        TW_RELOAD();
#pragma GCC unroll 8
        for (int j = 0; j < kStep; ++j) v[j] = load(p + i + j * kLanes<uint32_t>);
#pragma GCC unroll 8
        for (int j = 0; j < kStep; ++j) {
            if (Streamed)
                stream(q + i + j * kLanes<uint32_t>, v[j]);
            else
                store(q + i + j * kLanes<uint32_t>, v[j]);
        }
    }
    if (Streamed) stream_fence();
    return 8.0 * static_cast<double>(n);
}

}  // namespace

extern const PeakLoops kPeakLoops;
#if defined(TW_TILES)
#define TW_PEAK_DOTS multiply_tiles<TileKind::bf16>, multiply_tiles<TileKind::u8s8>
#else
#define TW_PEAK_DOTS compute<DotBf16>, compute<DotI8>
#endif
const PeakLoops kPeakLoops = {compute<Fma32>, compute<Fma64>, TW_PEAK_DOTS, read, copy<false>, copy<true>};

}  // namespace tw::TW_ISA
