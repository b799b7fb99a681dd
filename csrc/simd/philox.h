// Words of philox4x32-10: counter (first, offset), key seed. Sixteen counters at a time, a lane each.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

constexpr int kCounters = 16;  // at a time

// The words of counters first .. first + kCounters, in order.
static inline void philox(uint32_t* words, uint64_t first, uint64_t offset, uint64_t seed) {
    uint32_t a[kCounters], b[kCounters], c[kCounters], d[kCounters];
    for (int i = 0; i < kCounters; ++i) {
        const uint64_t counter = first + static_cast<uint64_t>(i);
        a[i] = static_cast<uint32_t>(counter);
        b[i] = static_cast<uint32_t>(counter >> 32);
        c[i] = static_cast<uint32_t>(offset);
        d[i] = static_cast<uint32_t>(offset >> 32);
    }
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
        for (int i = 0; i < kCounters; ++i) {
            const uint64_t x = uint64_t{0xD2511F53u} * a[i], y = uint64_t{0xCD9E8D57u} * c[i];
            a[i] = static_cast<uint32_t>(y >> 32) ^ b[i] ^ k0;
            b[i] = static_cast<uint32_t>(y);
            c[i] = static_cast<uint32_t>(x >> 32) ^ d[i] ^ k1;
            d[i] = static_cast<uint32_t>(x);
        }
    for (int i = 0; i < kCounters; ++i) {
        words[4 * i] = a[i];
        words[4 * i + 1] = b[i];
        words[4 * i + 2] = c[i];
        words[4 * i + 3] = d[i];
    }
}

}  // namespace tw::TW_ISA
