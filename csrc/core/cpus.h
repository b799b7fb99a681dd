// How many CPUs this process may use, as the system tells it, and the thread count that follows from that and from the
// environment.
#pragma once

namespace tw {

int cpus_in_mask();    // CPUs in the calling thread's affinity mask, at least 1
int cpus_in_quota();   // CPU time the cgroups (v1 and v2) grant, rounded up to whole CPUs; 0 = no quota

constexpr int kMaxThreads = 1024;

struct ThreadDefault {
    int threads;
    int cpus;            // in the mask
    const char* reason;  // where `threads` comes from
    char error[192];     // "" unless TILEWORK_NUM_THREADS is malformed
};
ThreadDefault thread_default();

}  // namespace tw
