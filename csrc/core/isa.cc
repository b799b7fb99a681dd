// Tiers. What the CPU has comes from cpuid, what the operating system saves of it from xgetbv: a tier needs both.
// TILEWORK_ISA is read once; a wrong value never picks a tier in silence, it leaves a text to raise.
#include "core/op_table.h"
#include "core/tile_kernels.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#endif

namespace tw {

#define TW_DECLARE_TABLE(name)             \
    namespace name {                       \
    extern const PeakLoops kPeakLoops;     \
    extern const TileKernels kTileKernels; \
    }
TW_TIERS(TW_DECLARE_TABLE)
#undef TW_DECLARE_TABLE

#define TW_DECLARE_TABLE(name)                  \
    namespace name {                            \
    extern const Kernels* const kKernelTable[]; \
    }
TW_HIGHER_TIERS(TW_DECLARE_TABLE)
#undef TW_DECLARE_TABLE
namespace TW_LEAST_TIER {
extern const OpDef* const kOpTable[];
}

namespace {

#define TW_TABLE(name) name::kKernelTable,
constexpr const Kernels* const* kKernelTables[kTiers] = {nullptr, TW_HIGHER_TIERS(TW_TABLE)};
#undef TW_TABLE

#define TW_PEAKS(name) &name::kPeakLoops,
constexpr const PeakLoops* kPeaks[kTiers] = {TW_TIERS(TW_PEAKS)};
#undef TW_PEAKS

#define TW_TILES_OF(name) &name::kTileKernels,
constexpr const TileKernels* kTileTables[kTiers] = {TW_TIERS(TW_TILES_OF)};
#undef TW_TILES_OF

#define TW_NAME(name) #name,
constexpr const char* kTierNames[kTiers] = {TW_TIERS(TW_NAME)};
#undef TW_NAME

// Ops by a hash of their names, in a table at most half full: a C caller names its op in every call.
constexpr const char* kOpNames[] = {
#define TW_OP(name) #name,
#include "ops/ops.def"
#undef TW_OP
};
constexpr size_t kHashed = std::bit_ceil(2 * static_cast<size_t>(kOps));

constexpr size_t hash_of(const char* name) {
    uint32_t hash = 0;
    for (; *name; ++name) hash = (hash << 5) - hash + static_cast<unsigned char>(*name);
    return (hash ^ hash >> 11) % kHashed;
}

constexpr auto kHashedOps = [] {
    std::array<OpId, kHashed> table;
    table.fill(OpId::count);
    for (int k = 0; k < kOps; ++k) {
        size_t at = hash_of(kOpNames[k]);
        while (table[at] != OpId::count) at = (at + 1) % kHashed;
        table[at] = static_cast<OpId>(k);
    }
    return table;
}();

struct Machine {
    bool runs[kTiers];
    Tier best;
    CacheSizes caches;
    char error[256];  // "" when TILEWORK_ISA is unset or right
};

constinit Machine g_machine{};
constinit OpDef g_ops[kTiers][kOps]{};  // by machine(); without `run` where the tier below has the op
constinit TileKernels g_tiles[kTiers]{};  // by machine()
constinit std::atomic<Tier> g_active{Tier::count};  // count: not known yet

// What this CPU runs, by tier, built or not.
struct Runs {
    bool base = true, avx2 = false, avx512 = false, avx512vnni = false, amx = false;
    bool amx_fp16 = false;  // float16 in tiles of amx
};

#if defined(__x86_64__)
struct Registers {
    unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r{};
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
    return r;
}

bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }

#if !defined(TW_EMULATED_AVX512)
// Linux saves tiles only for a process that asked for it. Refused where a thread's alternate signal stack is too small.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}
#endif

Runs detect_tiers() {
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), extended = cpuid(0x80000001u, 0);
    [[maybe_unused]] const Registers seven1 = seven.a >= 1 ? cpuid(7, 1) : Registers{};
    unsigned saved = 0;
    if (has(one.c, bit_OSXSAVE)) {
        unsigned high;
        __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    }
    const bool ymm = has(saved, 0x06);
    [[maybe_unused]] const bool zmm = has(saved, 0xE6);

    Runs runs;
    runs.base = has(one.c, bit_SSE3 | bit_SSSE3 | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT | bit_CMPXCHG16B);
    runs.avx2 = runs.base && ymm && has(one.c, bit_AVX | bit_FMA | bit_F16C | bit_MOVBE) &&
                has(seven.b, bit_AVX2 | bit_BMI | bit_BMI2) && has(extended.c, bit_ABM);
#if defined(TW_EMULATED_AVX512)
    runs.avx512 = runs.avx512vnni = runs.amx = runs.avx2;
#else
    runs.avx512 =
        runs.avx2 && zmm && has(seven.b, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL);
    runs.avx512vnni = runs.avx512 && has(seven.c, bit_AVX512VNNI) && has(seven1.a, bit_AVX512BF16);
    constexpr unsigned amx = 1u << 24 | 1u << 25 | 1u << 22;  // tile, int8, bf16
    runs.amx =
        runs.avx512vnni && has(seven.c, bit_AVX512VBMI) && has(seven.d, amx) && has(saved, 3u << 17) && may_use_tiles();
    runs.amx_fp16 = runs.amx && has(seven1.a, 1u << 21);
#endif
    return runs;
}
#else
Runs detect_tiers() { return {}; }
#endif

// The size of one cache of cpu0 from /sys/devices/system/cpu; 0 if it is not told. `level` 1 means data.
int64_t cache_in_sysfs(int level) {
    for (int index = 0; index < 8; ++index) {
        char text[3][32] = {};
        const char* const files[3] = {"level", "type", "size"};
        for (int f = 0; f < 3; ++f) {
            char path[96];
            snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, files[f]);
            FILE* file = fopen(path, "re");
            if (!file) return 0;
            if (!fgets(text[f], sizeof text[f], file)) text[f][0] = '\0';
            fclose(file);
        }
        if (atoi(text[0]) != level || text[1][0] == 'I') continue;
        char* unit = nullptr;
        const int64_t size = strtoll(text[2], &unit, 10);
        return *unit == 'K' ? size << 10 : *unit == 'M' ? size << 20 : size;
    }
    return 0;
}

// sysconf adds up the L3 of a whole socket, so sysfs is asked first; values out of all proportion are not believed.
int64_t cache_size(int level, [[maybe_unused]] int sysconf_name, int64_t least, int64_t most, int64_t otherwise) {
    int64_t size = cache_in_sysfs(level);
    if (size >= least && size <= most) return size;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    size = sysconf(sysconf_name);
    if (size >= least && size <= most) return size;
#endif
    return otherwise;
}

CacheSizes detect_caches() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    constexpr int kNames[3] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
#else
    constexpr int kNames[3] = {0, 0, 0};
#endif
    CacheSizes sizes;
    sizes.l1d = cache_size(1, kNames[0], 8 << 10, 1 << 20, 32 << 10);
    sizes.l2 = cache_size(2, kNames[1], 64 << 10, 256 << 20, 512 << 10);
    sizes.l3 = cache_size(3, kNames[2], sizes.l2, int64_t{4} << 30, std::max<int64_t>(sizes.l2, 4 << 20));
    return sizes;
}

int find_tier(const char* name) {
    for (int t = 0; t < kTiers; ++t) {
        if (strcmp(name, kTierNames[t]) == 0) return t;
    }
    return kTiers;
}

// Names a tier, or the best one for "auto"; Tier::count and a text if there is no such tier or this CPU lacks it.
Tier choose(const char* name, const char* variable, char* text, size_t room) {
    if (strcmp(name, "auto") == 0) return g_machine.best;
    const int tier = find_tier(name);
    if (tier < kTiers && g_machine.runs[tier]) return static_cast<Tier>(tier);
    char list[96] = "";
    for (int t = 0; t < kTiers; ++t) {
        if (tier < kTiers && !g_machine.runs[t]) continue;
        const size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", kTierNames[t]);
    }
    const char* format = tier < kTiers ? "%s='%.64s' does not run on this CPU; want one of %s"
                                       : "%s='%.64s' is not a tier; want one of %s";
    snprintf(text, room, format, variable, name, *list ? list : "none");
    return Tier::count;
}

// The rules of the least tier with the kernels of each.
void join_tables() {
    for (int op = 0; op < kOps; ++op) {
        const OpDef& least = g_ops[0][op] = *TW_LEAST_TIER::kOpTable[op];
        for (int t = 1; t < kTiers; ++t) {
            const Kernels* kernels = kKernelTables[t][op];
            if (!kernels) continue;
            OpDef& def = g_ops[t][op] = least;
            def.run = kernels->run;
            def.packed_size = kernels->packed_size;
            def.pack = kernels->pack;
        }
    }
}

void detect() {
    join_tables();
    Runs runs = detect_tiers();
    const char* wanted = getenv("TILEWORK_ISA");
    // A hypervisor may hide what its CPU does: whoever asks for it by name is believed.
    if (wanted && runs.amx && strcmp(wanted, "amx_fp16") == 0) runs.amx_fp16 = true, wanted = "amx";
    for (int t = 0; t < kTiers; ++t) {
        g_tiles[t] = *kTileTables[t];
        if (runs.amx_fp16) g_tiles[t].f16 = g_tiles[t].f16_whole;
    }
#define TW_RUNS(name) g_machine.runs[static_cast<int>(Tier::name)] = runs.name;
    TW_TIERS(TW_RUNS)
#undef TW_RUNS
    for (int t = 0; t < kTiers; ++t) {
        if (g_machine.runs[t]) g_machine.best = static_cast<Tier>(t);
    }
    g_machine.caches = detect_caches();
    if (!g_machine.runs[static_cast<int>(g_machine.best)]) {
        snprintf(g_machine.error, sizeof g_machine.error, "this CPU runs no tier of this build");
    }
    Tier first = g_machine.best;
    if (wanted) {
        const Tier tier = choose(wanted, "TILEWORK_ISA", g_machine.error, sizeof g_machine.error);
        if (tier != Tier::count) first = tier;
    }
    g_active.store(first, std::memory_order_release);
}

const Machine& machine() {
    static constinit pthread_once_t once = PTHREAD_ONCE_INIT;  // unlike a guard variable, survives fork half way
    pthread_once(&once, detect);
    return g_machine;
}

}  // namespace

const char* tier_name(Tier tier) {
    const auto t = static_cast<int>(tier);
    return t >= 0 && t < kTiers ? kTierNames[t] : "none";
}

bool tier_runs(Tier tier) {
    const auto t = static_cast<int>(tier);
    return t >= 0 && t < kTiers && machine().runs[t];
}

Tier active_tier() {
    const Tier tier = g_active.load(std::memory_order_acquire);
    if (tier != Tier::count) return tier;
    machine();
    return g_active.load(std::memory_order_relaxed);
}

Status set_tier(const char* name) {
    machine();
    char text[256];
    const Tier tier = choose(name ? name : "auto", "isa", text, sizeof text);
    if (tier == Tier::count) return fail(Status::attr, "isa", "%s", text);
    g_active.store(tier, std::memory_order_release);
    return Status::ok;
}

const char* tier_error() { return machine().error[0] ? g_machine.error : nullptr; }

const OpDef* op_table(Tier tier, OpId op) {
    if (g_active.load(std::memory_order_acquire) == Tier::count) machine();
    const OpDef* def = &g_ops[static_cast<int>(tier)][static_cast<int>(op)];
    while (!def->run) def -= kOps;
    return def;
}

Status run_below(Tier tier, const Call& call) {
    Call own = call;
    own.op = op_table(static_cast<Tier>(static_cast<int>(tier) - 1), find_op(call.op->name));
    return own.op->run(own);
}

const PeakLoops& peak_loops(Tier tier) { return *kPeaks[static_cast<int>(tier)]; }

const TileKernels& tile_kernels() { return g_tiles[static_cast<int>(active_tier())]; }

bool tiles_take_f16() { return tile_kernels().f16 && tile_kernels().f16 == tile_kernels().f16_whole; }

OpId find_op(const char* name) {
    if (!name) return OpId::count;
    size_t at = hash_of(name);
    while (kHashedOps[at] != OpId::count && !same_text(kOpNames[static_cast<int>(kHashedOps[at])], name))
        at = (at + 1) % kHashed;
    return kHashedOps[at];
}

CacheSizes cache_sizes() { return machine().caches; }

}  // namespace tw
