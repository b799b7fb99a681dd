// Tiers: which were built, which this CPU runs, and which one is active.
#pragma once
#include "core/opdef.h"
#include "tiers.h"  // written by CMake

namespace tw {

// TW_TIERS(X) names the tiers of this build by what they can do, worst first; TW_WHOLE_TIERS(X) those with all kernels,
// which are the first ones.
enum class Tier : int {
#define TW_TIER_ENUM(name) name,
    TW_TIERS(TW_TIER_ENUM)
#undef TW_TIER_ENUM
        count
};
constexpr int kTiers = static_cast<int>(Tier::count);
constexpr Tier kLeastTier{};  // has every op

// What the bench measures kernels against (ops/peak.cc). Each loop returns the operations, or the bytes read and written,
// that it did; buffers are 64-byte aligned, `sink` takes kPeakSink bytes.
constexpr int kPeakSink = 1024;
struct PeakLoops {
    double (*fma_f32)(int64_t rounds, void* sink);
    double (*fma_f64)(int64_t rounds, void* sink);
    double (*dot_bf16)(int64_t rounds, void* sink);
    double (*dot_i8)(int64_t rounds, void* sink);
    double (*read)(const void* from, int64_t bytes, void* sink);
    double (*copy)(void* to, const void* from, int64_t bytes);
    double (*copy_streamed)(void* to, const void* from, int64_t bytes);
};

struct CacheSizes {
    int64_t l1d, l2, l3;  // bytes, per core / per core / shared
};

const char* tier_name(Tier tier);
bool tier_runs(Tier tier);  // the CPU and the OS can run it
Tier active_tier();  // TILEWORK_ISA at first use, else the best
Status set_tier(const char* name);  // nullptr or "auto" = the best; else an error that lists the valid names
const char* tier_error();  // non-null if TILEWORK_ISA was wrong: the text to raise
const PeakLoops& peak_loops(Tier tier);
CacheSizes cache_sizes();

}  // namespace tw
