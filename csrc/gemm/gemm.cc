#include "gemm/gemm.h"

#include "core/tile_kernels.h"
#include "gemm/engine.h"
#include "gemm/pieces.h"

namespace tw::TW_ISA {
namespace {

// More rows make up for turning B while it is packed.
constexpr int kFewDotRows = kVectorRegisters >= 32 ? 12 : 32;

template <class C, class A, class B>
bool run_gemm(const Gemm<C, A, B>& g) {
    // A C that runs down its columns is the transpose of one that runs along its rows; few rows along k are few columns.
    const bool few_rows = g.m <= kFewDotRows && g.m < g.n && g.a.col == 1 && g.b.row == 1 && (g.m <= 4 || g.k >= 1024);
    if (!g.pack_a && !g.pack_b && !g.packed_b && (few_rows || (g.c_col != 1 && g.c_row == 1))) {
        Gemm<C, B, A> t{};
        t.m = g.n, t.n = g.m, t.k = g.k;
        t.a = {g.b.data, g.b.col, g.b.row};
        t.b = {g.a.data, g.a.col, g.a.row};
        t.c = g.c, t.c_row = g.c_col, t.c_col = g.c_row;
        t.accumulate = g.accumulate;
        t.bias_row = g.bias_col, t.bias_col = g.bias_row;
        t.alpha = g.alpha, t.beta = g.beta;
        t.addend = {g.addend.data, g.addend.col, g.addend.row};
        t.activation = g.activation;
        return Engine<C, B, A>(t).run();
    }
    return Engine<C, A, B>(g).run();
}

// Whether tiles are faster: they come whole, and each number of A or B costs as much as some products before it is
// multiplied, those of a large B more, for they come from afar. Strides do not count, for they change no bits. Numbers of 16
// bits cost half of all that.
[[maybe_unused]] bool suits_tiles(int64_t m, int64_t n, int64_t k, bool narrow) {
    const auto whole = [](int64_t x) { return ceil_div(x, 32) * 32; };
    const int64_t right = n * k > int64_t{4} << 20 ? 56 : 24;
    const int64_t cost = (whole(m) * whole(n) / 2 + 10 * m + right * n) * whole(k);
    return m >= 24 && n >= 24 && k >= 24 && (narrow ? cost / 2 : cost) < m * n * k;
}

template <class C, class A, class B>
bool ask_tiles(const Gemm<C, A, B>& g, TileProduct* TileKernels::* member) {
    if constexpr (kVectorRegisters >= 32)
        if (!g.pack_a && !g.pack_b && suits_tiles(g.m, g.n, g.k, sizeof(C) == 2))
            if (TileProduct* const product = tile_kernels().*member)
                return product(&g, [](const void* part) { return run_gemm(*static_cast<const Gemm<C, A, B>*>(part)); });
    return run_gemm(g);
}

// A panel as tiles of hardware take it.
[[maybe_unused]] void pack_tiles(const Matrix<bf16>& b, int64_t k, int64_t n0, int64_t n, uint16_t* to) {
    constexpr int NR = Blocking<float>::NR, L = kLanes<float>;
    float rows[kPackedTerms * NR] = {};
    Exponents seen;
    for (int64_t k0 = 0; k0 < k; k0 += kPackedTerms) {
        const int64_t kc = min_of(kPackedTerms, k - k0);
        pack_panel(b, k0, kc, n0, n, rows);
        if (kc < kPackedTerms)
            __builtin_memset(rows + kc * NR, 0, sizeof(float) * static_cast<size_t>((kPackedTerms - kc) * NR));
        for (int j = 0; j < NR; j += L)
            for (int64_t i = 0; i < kPackedTerms; i += 2, to += kLanes<uint16_t>) {
                const u32v low = bitcast<u32v>(load(rows + i * NR + j)),
                           high = bitcast<u32v>(load(rows + (i + 1) * NR + j));
                const Halves words = bitcast<Halves>((low >> 16) | (high & 0xffff0000u));
                seen.see(words);
                store(to, words);
            }
    }
    const ExponentRange range = seen.range();
    __builtin_memcpy(to, &range, sizeof range);
}

template <class B>
void run_pack_all(const Matrix<B>& b, int64_t k, int64_t n, B* packed) {
    typedef Wide<B> T;
    constexpr int NR = Blocking<T>::NR;
    parallel(ceil_div(n, NR), [&](int64_t j) {
        const int64_t n0 = j * NR, columns = min_of(n - n0, NR);
        B* const to = packed + j * packed_panel<B>(k);
        if constexpr (__is_same(B, T)) {
            pack_panel(b, 0, k, n0, columns, to);
        } else if constexpr (kPackedTiles<B>) {
            pack_tiles(b, k, n0, columns, reinterpret_cast<uint16_t*>(to));
        } else {
            constexpr int64_t kRows = 64;
            T wide[kRows * NR];
            for (int64_t k0 = 0; k0 < k; k0 += kRows) {
                const int64_t kc = min_of(kRows, k - k0);
                pack_panel(b, k0, kc, n0, columns, wide);
                for (int64_t i = 0; i < kc * NR; i += kLanes<T>) store_from(to + k0 * NR + i, load(wide + i));
            }
        }
    });
}

template <class T>
void run_any(const Tile<T>& t, int m, int n) {
    t.offset || t.in_pairs ? choose_special(t, m, n)(t, n) : tile(t, m, n);
}

}  // namespace

bool gemm(const Gemm<float>& g) { return ask_tiles(g, &TileKernels::f32); }
bool gemm(const Gemm<double>& g) { return run_gemm(g); }
bool gemm(const Gemm<f16>& g) { return ask_tiles(g, &TileKernels::f16); }
bool gemm(const Gemm<bf16>& g) { return ask_tiles(g, &TileKernels::bf16); }
bool gemm(const Gemm<float, float, f16>& g) { return ask_tiles(g, &TileKernels::f32_f16); }
bool gemm(const Gemm<float, float, bf16>& g) { return ask_tiles(g, &TileKernels::f32_bf16); }
void pack_all(const Matrix<float>& b, int64_t k, int64_t n, float* packed) { run_pack_all(b, k, n, packed); }
void pack_all(const Matrix<double>& b, int64_t k, int64_t n, double* packed) { run_pack_all(b, k, n, packed); }
void pack_all(const Matrix<f16>& b, int64_t k, int64_t n, f16* packed) { run_pack_all(b, k, n, packed); }
void pack_all(const Matrix<bf16>& b, int64_t k, int64_t n, bf16* packed) { run_pack_all(b, k, n, packed); }
void run_tile(const Tile<float>& t, int m, int n) { run_any(t, m, n); }
void run_tile(const Tile<double>& t, int m, int n) { run_any(t, m, n); }

}  // namespace tw::TW_ISA
