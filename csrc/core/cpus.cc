// Affinity mask, cgroup quota, and the thread count that follows. The quota of a process is the tightest one on the way
// from its own group up to the root, in either version of cgroups; files that are missing or odd mean no quota.
#include "core/cpus.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#if defined(__linux__)
#include <sched.h>

#include <cerrno>
#endif

namespace tw {
namespace {

constexpr size_t kPathRoom = 1024;
constexpr double kNoQuota = INFINITY;

bool read_line(const char* directory, const char* name, char* line, int room) {
    char path[kPathRoom + 64];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE* file = fopen(path, "re");
    if (!file) return false;
    const bool got = fgets(line, room, file) != nullptr;
    fclose(file);
    return got;
}

double ratio(const char* quota, const char* period) {
    const double q = strtod(quota, nullptr);  // "max" and -1 are no quota
    const double p = strtod(period, nullptr);
    return q > 0 && p > 0 ? q / p : kNoQuota;
}

double quota_v2(const char* directory) {
    char line[128];
    if (!read_line(directory, "cpu.max", line, sizeof line)) return kNoQuota;
    const char* space = strchr(line, ' ');
    return space ? ratio(line, space) : kNoQuota;
}

double quota_v1(const char* directory) {
    char quota[64], period[64];
    if (!read_line(directory, "cpu.cfs_quota_us", quota, sizeof quota)) return kNoQuota;
    if (!read_line(directory, "cpu.cfs_period_us", period, sizeof period)) return kNoQuota;
    return ratio(quota, period);
}

double tightest(const char* mount, const char* group, double (*quota_of)(const char*)) {
    char directory[kPathRoom];
    const int length = snprintf(directory, sizeof directory, "%s%s", mount, group);
    if (length < 0 || static_cast<size_t>(length) >= sizeof directory) return quota_of(mount);
    double least = kNoQuota;
    for (const size_t root = strlen(mount);;) {
        least = std::fmin(least, quota_of(directory));
        if (strlen(directory) <= root) return least;
        *strrchr(directory, '/') = '\0';
    }
}

// True if the comma-separated list of controllers names "cpu".
bool names_cpu(const char* list) {
    for (const char* at = list; (at = strstr(at, "cpu")); at += 3) {
        const bool starts = at == list || at[-1] == ',';
        if (starts && (at[3] == '\0' || at[3] == ',')) return true;
    }
    return false;
}

// Digits only, 1 to kMaxThreads, up to the end or to a comma if a list is allowed; 0 if it is anything else.
int parse_count(const char* text, bool list) {
    int value = 0;
    const char* at = text;
    for (; *at >= '0' && *at <= '9' && value <= kMaxThreads; ++at) value = value * 10 + (*at - '0');
    const bool ends = *at == '\0' || (list && *at == ',');
    return ends && value <= kMaxThreads ? value : 0;
}

}  // namespace

ThreadDefault thread_default() {
    const int mask = cpus_in_mask(), quota = cpus_in_quota();
    const bool tight = quota > 0 && quota < mask;
    ThreadDefault d{};
    d.cpus = mask;
    d.threads = tight ? quota : mask < kMaxThreads ? mask : kMaxThreads;
    d.reason = tight ? "cgroup quota" : "affinity mask";
    const char* const omp = getenv("OMP_NUM_THREADS");
    const char* const own = getenv("TILEWORK_NUM_THREADS");
    if (const int n = omp ? parse_count(omp, true) : 0) {
        d.threads = n;
        d.reason = "OMP_NUM_THREADS";
    }
    if (const int n = own ? parse_count(own, false) : 0) {
        d.threads = n;
        d.reason = "TILEWORK_NUM_THREADS";
    } else if (own) {
        snprintf(d.error, sizeof d.error,
                 "TILEWORK_NUM_THREADS='%.64s' is not a thread count; want an integer from 1 to %d", own, kMaxThreads);
    }
    return d;
}

int cpus_in_quota() {
    FILE* file = fopen("/proc/self/cgroup", "re");
    if (!file) return 0;
    double least = kNoQuota;
    char line[kPathRoom];
    while (fgets(line, sizeof line, file)) {  // hierarchy:controllers:/group
        line[strcspn(line, "\n")] = '\0';
        char* controllers = strchr(line, ':');
        char* group = controllers ? strchr(controllers + 1, ':') : nullptr;
        if (!group || group[1] != '/') continue;
        *group++ = '\0';
        ++controllers;
        if (*controllers == '\0') {
            for (const char* mount : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}) {
                least = std::fmin(least, tightest(mount, group, quota_v2));
            }
        } else if (names_cpu(controllers)) {
            for (const char* mount :
                 {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpuacct,cpu"}) {
                least = std::fmin(least, tightest(mount, group, quota_v1));
            }
        }
    }
    fclose(file);
    return least < 1e6 ? static_cast<int>(std::ceil(least)) : 0;
}

int cpus_in_mask() {
#if defined(__linux__)
    // The kernel refuses a set smaller than its own, so the set grows until it fits.
    for (int cpus = 1024; cpus <= 1 << 16; cpus *= 2) {
        cpu_set_t* set = CPU_ALLOC(cpus);
        if (!set) break;
        const int rc = sched_getaffinity(0, CPU_ALLOC_SIZE(cpus), set);
        const int reason = errno;
        const int count = rc == 0 ? CPU_COUNT_S(CPU_ALLOC_SIZE(cpus), set) : 0;
        CPU_FREE(set);
        if (count > 0) return count;
        if (reason != EINVAL) break;
    }
#endif
    const unsigned all = std::thread::hardware_concurrency();
    return all ? static_cast<int>(all) : 1;
}

}  // namespace tw
