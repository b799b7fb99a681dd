// Rounding and denormal mode of a thread: workers take over the caller's, so that bits do not depend on who runs.
#pragma once
#include <cstdint>

namespace tw {

static inline uint64_t float_mode() {
#if defined(__x86_64__)
    return __builtin_ia32_stmxcsr() & ~0x3Fu;
#elif defined(__aarch64__)
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
#else
    return 0;
#endif
}

static inline void set_float_mode([[maybe_unused]] uint64_t mode) {
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(static_cast<unsigned>(mode));
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#endif
}

}  // namespace tw
