#include "core/chain.h"

#include <sched.h>

#include "core/relax.h"

namespace tw {
namespace {

constexpr int kTurns = 4096;  // of waiting awake, some 50 us; then the core may be wanted by whom we wait for

}  // namespace

void wait_for_chunks(const Chain& chain, int64_t count) {
    for (int turn = 0; __atomic_load_n(&chain.done, __ATOMIC_ACQUIRE) < count; ++turn)
        turn < kTurns ? relax() : static_cast<void>(sched_yield());
}

}  // namespace tw
