// Medians of large square windows of 16-bit pixels and floats, by the order of the pixels of a tile.
//
// Method    the pixels that the windows of a tile reach are sorted, and each becomes its place in that order. A window is a
//           set of bits, one for each place; as it moves to and fro through the tile, what comes and what goes turns its
//           bits, and the word in which the median lies is found anew from the last one.
// Numerics  exact; a NaN, which comes last in order, is the median of any window it is in.
#pragma once
#include "core/index.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "image/check.h"
#include "image/window.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kOrderTile = 64;  // windows across and down, so that
constexpr int64_t kOrderMost = 1 << 16;  // is more than the pixels of windows of 181

struct Placed {
    uint32_t key, at;
};

// Keys are ordered as pixels are; all NaN have the last one.
TW_INLINE uint32_t key_of(uint16_t v) { return v; }
TW_INLINE uint32_t key_of(float v) {
    uint32_t bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    return v != v ? UINT32_MAX : bits >> 31 ? ~bits : bits | 0x80000000u;
}
TW_INLINE void pixel_of(uint32_t key, uint16_t& v) { v = static_cast<uint16_t>(key); }
TW_INLINE void pixel_of(uint32_t key, float& v) {
    const uint32_t bits = key == UINT32_MAX ? 0x7fc00000u : key >> 31 ? key & 0x7fffffffu : ~key;
    __builtin_memcpy(&v, &bits, sizeof v);
}

// By `bytes` bytes of keys, an even number, the lowest first; `spare` is as long.
inline void sort_places(Placed* all, Placed* spare, int64_t n, int bytes) {
    for (int byte = 0; byte < bytes; ++byte) {
        int32_t starts[257] = {};
        for (int64_t i = 0; i < n; ++i) ++starts[(all[i].key >> 8 * byte & 255) + 1];
        for (int v = 0; v < 256; ++v) starts[v + 1] += starts[v];
        for (int64_t i = 0; i < n; ++i) spare[starts[all[i].key >> 8 * byte & 255]++] = all[i];
        Placed* const sorted = spare;
        spare = all, all = sorted;
    }
}

// The places in a window, and the word in which the one with `half` of them before it lies.
struct PlaceSet {
    uint64_t* words;
    int64_t word, before;  // before: how many lie in the words before it
    int64_t known, unknown;  // places that are not NaN; how many NaN there are

    TW_INLINE void turn(PlaceSet& s, const uint16_t* place, int64_t step, int64_t n, int64_t sign) {
        const int64_t limit = 64 * s.word;
        int64_t below = 0, unknown = 0;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t p = place[i * step];
            s.words[p >> 6] ^= 1ull << (p & 63);
            below += p < limit;
            unknown += p >= s.known;
        }
        s.before += sign * below;
        s.unknown += sign * unknown;
    }

    TW_INLINE int64_t middle(PlaceSet& s, int64_t half) {
        while (s.before > half) s.before -= __builtin_popcountll(s.words[--s.word]);
        for (int64_t n; s.before + (n = __builtin_popcountll(s.words[s.word])) <= half; ++s.word) s.before += n;
        uint64_t bits = s.words[s.word];
        for (int64_t i = s.before; i < half; ++i) bits &= bits - 1;
        return 64 * s.word + __builtin_ctzll(bits);
    }
};

// Medians of channel c of rows i to i + h - 1 and columns j to j + w - 1; pixel(y, x) is one of the endless picture.
template <class T, class Pixel>
void find_tile(const View& y, int64_t c, int64_t i, int64_t j, int64_t h, int64_t w, int64_t k, char* memory,
               const Pixel& pixel) {
    const int64_t tall = h + k - 1, n = tall * (w + k - 1);
    Placed *const all = reinterpret_cast<Placed*>(memory), *const spare = all + n;
    uint16_t* const place = reinterpret_cast<uint16_t*>(spare + n);
    for (int64_t x = 0; x < w + k - 1; ++x)
        for (int64_t r = 0; r < tall; ++r)
            all[x * tall + r] = {key_of(pixel(i + r - k / 2, j + x - k / 2)), static_cast<uint32_t>(x * tall + r)};
    sort_places(all, spare, n, sizeof(T));
    PlaceSet set{reinterpret_cast<uint64_t*>(spare), 0, 0, n, 0};
    for (int64_t p = 0; p < n; ++p) place[all[p].at] = static_cast<uint16_t>(p);
    while (!kIsFloating<T> ? false : set.known > 0 && all[set.known - 1].key == UINT32_MAX) --set.known;
    __builtin_memset(set.words, 0, static_cast<size_t>(n / 64 + 1) * sizeof(uint64_t));
    for (int64_t x = 0; x < k; ++x) PlaceSet::turn(set, place + x * tall, 1, k, 1);
    const int64_t step = y.ndim == 3 ? y.stride[2] : 0;
    int64_t x = 0, ahead = 1;
    for (int64_t r = 0; r < h; ++r, ahead = -ahead) {
        for (;; x += ahead) {
            const int64_t found = PlaceSet::middle(set, k * k / 2);
            T& to = y.as<T>()[(i + r) * y.stride[0] + (j + x) * y.stride[1] + c * step];
            pixel_of(set.unknown ? UINT32_MAX : all[found].key, to);
            if (x + ahead < 0 || x + ahead == w) break;
            PlaceSet::turn(set, place + (ahead > 0 ? x + k : x - 1) * tall + r, 1, k, 1);
            PlaceSet::turn(set, place + (ahead > 0 ? x : x + k - 1) * tall + r, 1, k, -1);
        }
        if (r + 1 == h) break;
        PlaceSet::turn(set, place + x * tall + r + k, tall, k, 1);
        PlaceSet::turn(set, place + x * tall + r, tall, k, -1);
    }
}

// Outside a picture its edge pixels repeat.
template <class T>
Status medians_by_order(const View& image, const View& y, int64_t k) {
    const int64_t height = image.shape[0], width = image.shape[1], channels = row_channels(image);
    const int64_t down = ceil_div(height, kOrderTile), across = ceil_div(width, kOrderTile);
    const int64_t h = min_of(height, kOrderTile) + k - 1, w = min_of(width, kOrderTile) + k - 1;
    bool enough = true;
    parallel(down * across * channels, [&](int64_t chunk) {
        const int64_t c = chunk % channels, i = chunk / channels / across * kOrderTile;
        const int64_t j = chunk / channels % across * kOrderTile;
        Scratch scratch(static_cast<size_t>(h * w) * (2 * sizeof(Placed) + sizeof(uint16_t)));
        if (!scratch.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const T* const from = image.as<T>() + (image.ndim == 3 ? c * image.stride[2] : 0);
        const auto within = [](int64_t v, int64_t n) { return v < 0 ? 0 : v < n ? v : n - 1; };
        find_tile<T>(y, c, i, j, min_of(kOrderTile, height - i), min_of(kOrderTile, width - j), k, scratch.as<char>(),
                     [&](int64_t r, int64_t x) {
            return from[within(r, height) * image.stride[0] + within(x, width) * image.stride[1]];
        });
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for windows of %lld; want a smaller ksize",
                         static_cast<long long>(k));
}

}  // namespace
}  // namespace tw::TW_ISA
