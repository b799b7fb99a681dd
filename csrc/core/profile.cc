// The profile: a ring of records behind a lock that is taken only while a profile is on. A kernel names itself by
// storing a pointer, so naming costs nothing worth a branch.
#include "core/profile.h"

#include <pthread.h>

#include <atomic>
#include <cstdio>
#include <ctime>
#include <mutex>

#include "core/parallel.h"

namespace tw {
namespace {

constexpr int64_t kRing = 4096;

constinit thread_local const char* t_kernel = nullptr;
constinit std::atomic<int> g_depth{0};

constinit std::mutex g_lock;  // guards the two below
constinit ProfileRecord g_ring[kRing]{};
constinit int64_t g_count = 0;

// A child must not inherit the lock as another thread held it.
void guard_fork() {
    static constinit pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once,
                 [] { pthread_atfork([] { g_lock.lock(); }, [] { g_lock.unlock(); }, [] { g_lock.unlock(); }); });
}

}  // namespace

void note_kernel(const char* kernel) { t_kernel = kernel; }

bool profile_on() { return g_depth.load(std::memory_order_relaxed) > 0; }

void profile_begin() {
    guard_fork();
    t_kernel = nullptr;
    take_threads_used();
    g_depth.fetch_add(1);
}

void profile_end() {
    int depth = g_depth.load();
    while (depth > 0 && !g_depth.compare_exchange_weak(depth, depth - 1)) {
    }
}

void profile_add(const char* op, const char* tier, int64_t nanoseconds) {
    ProfileRecord made{};
    made.op = op;
    snprintf(made.kernel, sizeof made.kernel, "%s", t_kernel ? t_kernel : "");
    made.tier = tier;
    made.threads = take_threads_used();
    made.nanoseconds = nanoseconds;
    t_kernel = nullptr;
    guard_fork();
    std::lock_guard hold(g_lock);
    g_ring[g_count % kRing] = made;
    ++g_count;
}

int64_t profile_count() {
    std::lock_guard hold(g_lock);
    return g_count;
}

bool profile_get(int64_t index, ProfileRecord& record) {
    std::lock_guard hold(g_lock);
    if (index < 0 || index >= g_count || index < g_count - kRing) return false;
    record = g_ring[index % kRing];
    return true;
}

int64_t monotonic_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

}  // namespace tw
