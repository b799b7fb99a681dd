// How 8-bit operands become panels and rows of codes.
#include "gemm/codes.h"

#include "core/parallel.h"
#include "simd/quantize.h"

namespace tw::TW_ISA {
namespace {

constexpr int NR = kIntNR;

void pad_row(DotLeft* to, int64_t k) {
    for (; k % kStep; ++k) to[k] = 0;
}

template <class Code>
int32_t sum_row(const Code* codes, int64_t k) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += static_cast<uint32_t>(static_cast<int32_t>(codes[i]));
    return static_cast<int32_t>(sum);
}

template <class T>
void pack_row(const T* src, int64_t step, int64_t k, int32_t less, DotLeft* to) {
    if (step == 1 && less == 0 && sizeof(T) == sizeof(DotLeft))
        __builtin_memcpy(to, src, static_cast<size_t>(k));
    else if (step == 1)
        for (int64_t i = 0; i < k; ++i) to[i] = static_cast<DotLeft>(src[i] - less);
    else
        for (int64_t i = 0; i < k; ++i) to[i] = static_cast<DotLeft>(src[i * step] - less);
}

// The words of one panel from w on, n columns of which exist.
void pack_panel(const Bytes& b, int64_t k, int64_t n0, int64_t n, int64_t w, int8_t* to) {
    constexpr int D = kDotDepth;
    const uint8_t flip = right_flip(b.is_unsigned);
    const uint32_t flips = flip * 0x01010101u;
    const auto* src = static_cast<const uint8_t*>(b.data) + n0 * b.col;
    auto* out = reinterpret_cast<uint8_t*>(to) + w * NR * D;
    const int64_t whole = k / D;
    if (b.col == 1 && (n == NR || b.row > 0)) {
        // Rows are read whole, also beyond the last column where that leads to rows further down.
        const int64_t beyond = n == NR ? 0 : ceil_div(NR - n, b.row);
        for (; w < min_of(whole, (k - beyond) / D); ++w, out += NR * D) {
            const uint8_t* row[D];
            for (int d = 0; d < D; ++d) row[d] = src + (w * D + d) * b.row;
            if constexpr (D == 2) {
                uint16_t pairs[NR];
                for (int j = 0; j < NR; ++j) pairs[j] = static_cast<uint16_t>((row[0][j] | row[1][j] << 8) ^ flips);
                __builtin_memcpy(out, pairs, sizeof pairs);
                continue;
            }
            if constexpr (kVecBytes == 64) {
                for (int j = 0; j < NR; j += 16)
                    store(out + j * D,
                          zip_units(load_units(reinterpret_cast<const int8_t*>(row[0] + j), b.row)) ^ flip);
                continue;
            }
            for (int j = 0; j < NR; ++j)
#pragma GCC unroll 4
                for (int d = 0; d < D; ++d) out[j * D + d] = row[d][j] ^ flip;
        }
    } else if (n == NR && b.row == 1) {
        // Four codes along k are a float to transpose_tile.
        constexpr int L = kLanes<float>;
        alignas(kVecBytes) uint32_t tile[L * L];
        for (; (w + 4 / D * L) * D <= k; w += 4 / D * L, out += NR * 4 * L)
            for (int64_t j = 0; j < NR; j += L) {
                const uint8_t* from = src + j * b.col + w * D;
                for (int64_t q = 0; q < L; ++q) __builtin_memcpy(tile + q * L, from + q * b.col, sizeof(float) * L);
                alignas(kVecBytes) float quads[L * L];
                transpose_tile(reinterpret_cast<const float*>(tile), L, quads, L);
                for (int64_t q = 0; q < L; ++q) {
                    const u32v v = bitcast<u32v>(load_aligned(quads + q * L)) ^ flips;
                    if constexpr (D == 4) {
                        store(reinterpret_cast<uint32_t*>(out + q * NR * 4 + j * 4), v);
                    } else {
                        const Part16 low = narrow16(v & 0xffffu), high = narrow16(v >> 16);
                        __builtin_memcpy(out + q * NR * 4 + j * 2, &low, sizeof low);
                        __builtin_memcpy(out + q * NR * 4 + NR * 2 + j * 2, &high, sizeof high);
                    }
                }
            }
    }
    for (; w < words_of(k); ++w, out += NR * D)
        for (int j = 0; j < NR; ++j)
            for (int d = 0; d < D; ++d) {
                const bool there = j < n && w * D + d < k;
                out[j * D + d] = there ? static_cast<uint8_t>(src[(w * D + d) * b.row + j * b.col] ^ flip) : 0;
            }
}

}  // namespace

void pack_panels(const Bytes& b, int64_t k, int64_t n0, int64_t n, int8_t* to) {
    constexpr int D = kDotDepth;
    constexpr int64_t kAhead = 4;  // words
    const int64_t panel_bytes = words_of(k) * NR * D;
    int64_t w = 0;
    if constexpr (kPanelsAtOnce > 1 && D == 4)
        if (b.col == 1 && n == kPanelsAtOnce * NR) {
            const auto* from = static_cast<const int8_t*>(b.data) + n0;
            for (; w < k / D; ++w, from += D * b.row) {
                for (int64_t d = kAhead * D; d < kAhead * D + D; ++d)
                    for (int64_t j = 0; j < n; j += 64) __builtin_prefetch(from + d * b.row + j);
                int8_t* const word = to + w * NR * D;
#pragma GCC unroll 4
                for (int64_t q = 0; q < kPanelsAtOnce; ++q)
#pragma GCC unroll 2
                    for (int j = 0; j < NR; j += 16)
                        store(reinterpret_cast<uint8_t*>(word + q * panel_bytes + j * D),
                              zip_units(load_units(from + q * NR + j, b.row)));
            }
        }
    for (int64_t j = 0; j < n; j += NR, to += panel_bytes) pack_panel(b, k, n0 + j, min_of(NR, n - j), w, to);
}

void pack_panel(void (*pack_b)(const void* context, int64_t n0, int64_t n, int8_t* panel), const void* context,
                int64_t k, int64_t n0, int64_t n, int8_t* to) {
    pack_b(context, n0, n, to);
    const int64_t there = ceil_div(k, kDotDepth), all = words_of(k);
    __builtin_memset(to + there * NR * kDotDepth, 0, static_cast<size_t>((all - there) * NR * kDotDepth));
}

void sum_panel(const int8_t* panel, int64_t words, bool is_unsigned, int32_t* sums) {
    constexpr int L = kLanes<int32_t>;
    i32v sum[kIntNV] = {};
    const i32v ones = splat<int32_t>(kDotDepth == 4 ? 0x01010101 : 0x00010001);
    for (int64_t w = 0; w < words; ++w, panel += NR * kDotDepth)
#pragma GCC unroll 4
        for (int j = 0; j < kIntNV; ++j) {
            const i32v word = load_words(panel + j * L * kDotDepth);
            sum[j] = is_unsigned ? dot(sum[j], word, ones) : dot(sum[j], ones, word);
        }
#pragma GCC unroll 4
    for (int j = 0; j < kIntNV; ++j) store(sums + j * L, sum[j]);
}

// An odd number of cache lines, so that rows fall into different sets.
int64_t left_stride(int64_t k) {
    return (ceil_div(words_of(k) * kWordBytes, 64) | 1) * 64 / static_cast<int64_t>(sizeof(DotLeft));
}

int64_t packed_right_bytes(int64_t k, int64_t n) {
    return ceil_div(n, NR) * NR * (words_of(k) * kDotDepth + static_cast<int64_t>(sizeof(int32_t)));
}

void pack_right(const Bytes& b, int64_t k, int64_t n, int8_t* packed) {
    const struct {
        const Bytes& b;
        int64_t k;
    } whole = {b, k};
    typedef decltype(whole) Whole;
    const auto panel = [](const void* context, int64_t n0, int64_t count, int8_t* to) {
        const auto& own = *static_cast<Whole*>(context);
        pack_panels(own.b, own.k, n0, count, to);
    };
    pack_right(panel, &whole, k, n, packed);
    if (!kHasTiles || !b.is_unsigned) return;
    const int64_t panels = ceil_div(n, NR), panel_bytes = words_of(k) * NR * kDotDepth;
    for (int64_t p = 0; p < panels; ++p)
        sum_panel(packed + p * panel_bytes, words_of(k), true,
                  reinterpret_cast<int32_t*>(packed + panels * panel_bytes) + p * NR);
}

void pack_right(void (*pack_b)(const void* context, int64_t n0, int64_t n, int8_t* panel), const void* context,
                int64_t k, int64_t n, int8_t* packed) {
    const int64_t panels = ceil_div(n, NR), panel_bytes = words_of(k) * NR * kDotDepth;
    auto* const sums = reinterpret_cast<int32_t*>(packed + panels * panel_bytes);
    parallel(panels, [&](int64_t p) {
        pack_panel(pack_b, context, k, p * NR, min_of(NR, n - p * NR), packed + p * panel_bytes);
        sum_panel(packed + p * panel_bytes, words_of(k), false, sums + p * NR);
    });
}

void pack_left_row(const Bytes& a, int64_t row, int64_t k, int32_t zero, bool sums, DotLeft* to, RowTerms* terms) {
    const auto* src = static_cast<const uint8_t*>(a.data) + row * a.row;
    const int32_t shift = a.is_unsigned || kHasTiles ? 0 : 128;  // to unsigned bytes
    const int32_t less = kDotDepth == 4 ? -shift : zero;
    if (a.is_unsigned)
        pack_row(src, a.col, k, less, to);
    else
        pack_row(reinterpret_cast<const int8_t*>(src), a.col, k, less, to);
    terms->zero = kDotDepth == 4 ? zero + shift : 0;
    if (kHasTiles && !a.is_unsigned)
        terms->sum = sums ? sum_row(reinterpret_cast<const int8_t*>(to), k) : 0;
    else
        terms->sum = sums ? sum_row(to, k) : 0;
    terms->scale = 1;
    pad_row(to, k);
}

void quantize_left_row(const float* x, int64_t k, bool sums, DotLeft* to, RowTerms* terms) {
    const RowCode own = row_code(range_of(x, k));
    // 16-bit codes leave out the zero point: rint(x / scale) within [-zero, 255 - zero].
    const float zero = kDotDepth == 4 ? own.zero : 0.f, low = zero - own.zero, high = low + 255.f;
    const f32v inverse = splat(own.inverse), offset = splat(zero);
    const auto code = [=](f32v v) __attribute__((always_inline)) {
        const i32v q = code_of(apart(v * inverse), offset, low, high);
        if constexpr (kDotDepth == 4)
            return narrow8<uint8_t>(q);
        else
            return narrow16(bitcast<u32v>(q) & 0xffffu);
    };
    int64_t i = 0;
    if constexpr (kDotDepth == 4) i = code_bytes(x, k, own, reinterpret_cast<uint8_t*>(to));
    for (; i + kLanes<float> <= k; i += kLanes<float>) {
        const auto part = code(load(x + i));
        __builtin_memcpy(to + i, &part, sizeof part);
    }
    if (i < k) {
        typedef Elem<decltype(code(f32v{}))> Code;
        store_part_n(reinterpret_cast<Code*>(to + i), code(load_n(x + i, k - i)), k - i);
    }
    terms->zero = kDotDepth == 4 ? static_cast<int32_t>(own.zero) : 0;
    terms->sum = sums ? sum_row(to, k) : 0;
    terms->scale = own.scale;
    pad_row(to, k);
}

}  // namespace tw::TW_ISA
