// A chain of links inside one parallel region: the chunks of a link may run at the same time, and a link begins when the
// one before it is complete. Its members are chunks of the region; whoever comes late finds less to do, and one member
// alone does everything, so nobody ever waits for a thread that has not started.
#pragma once
#include <cstdint>

namespace tw {

struct alignas(64) Chain {
    uint32_t* taken;  // a word of bits per link, zero before the first
    int32_t chunks;  // of every link, at most 32
    int32_t members;  // of the region that share the chain
    alignas(64) int64_t done;  // chunks that are complete
};

void wait_for_chunks(const Chain& chain, int64_t count);

// Runs what is left of link `link` of a chain, the member's own chunks first, and returns when all of it is complete.
// Every member calls this for every link in order. What a chunk does must depend on link and chunk alone. `backward` takes
// the member's own chunks from the last to the first: what the link before left in a cache is met before it is gone.
template <class Body>
static inline void run_link(Chain& chain, int64_t link, int64_t member, bool backward, const Body& body) {
    const int32_t first = static_cast<int32_t>(member * chain.chunks / chain.members);
    const int32_t own = static_cast<int32_t>((member + 1) * chain.chunks / chain.members) - first;
    for (int32_t k = 0; k < chain.chunks; ++k) {
        const int32_t chunk = (first + (backward && k < own ? own - 1 - k : k)) % chain.chunks;
        const uint32_t bit = 1u << chunk;
        uint32_t* const taken = chain.taken + link;
        if (__atomic_load_n(taken, __ATOMIC_RELAXED) & bit) continue;
        if (__atomic_fetch_or(taken, bit, __ATOMIC_ACQ_REL) & bit) continue;
        body(chunk);
        __atomic_fetch_add(&chain.done, 1, __ATOMIC_RELEASE);
    }
    wait_for_chunks(chain, (link + 1) * chain.chunks);
}

}  // namespace tw
