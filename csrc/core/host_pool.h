// A host's threads instead of the pool's own. Defined in parallel.cc.
#pragma once
#include <cstdint>

namespace tw {

// Calls body(context, i) for every i in [0, n), on any threads, and returns when all have returned.
using HostRun = void (*)(void* pool, int64_t n, void (*body)(void* context, int64_t i), void* context);

void set_host_pool(HostRun run, void* pool, int threads);  // null for the own pool; not while an op runs

}  // namespace tw
