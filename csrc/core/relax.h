// One turn of waiting awake.
#pragma once

namespace tw {

static inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");  // waits some ten cycles; yield is a no-op on most cores
#endif
}

}  // namespace tw
