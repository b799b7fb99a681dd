// C = activation(bias + A B) for an A packed ahead as register tiles and a B that a packer makes, panel by panel.
//
// Method    A lies as [tile][k][kMR], one stream for the register tile however far apart its rows were; each thread
//           packs a panel of B and runs all of A over it at once. For an A that stays in L2 while the panels pass.
// Numerics  as gemm/gemm.h: one running sum over k, cut every KC terms.
// Threads   panels of C.
#pragma once
#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/gemm.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kTiledBytes = 640 * 1024;  // of A

inline int64_t tiled_elements(int64_t m, int64_t k) { return (m + kMR - 1) / kMR * kMR * k; }

// Rows that a last, thinner tile lacks are never read.
template <class T>
void pack_tiles(const Matrix<T>& a, int64_t m, int64_t k, T* to) {
    parallel((m + kMR - 1) / kMR, [&](int64_t tile) {
        const int64_t rows = m - tile * kMR < kMR ? m - tile * kMR : kMR;
        const T* from = a.data + tile * kMR * a.row;
        T* at = to + tile * kMR * k;
        for (int64_t i = 0; i < k; ++i, from += a.col, at += kMR)
            for (int64_t r = 0; r < rows; ++r) at[r] = from[r * a.row];
    });
}

// g.a, g.b, g.packed_b and bias_col are not looked at. False: no memory.
template <class T>
bool gemm_tiled(const Gemm<T>& g, const T* tiles) {
    constexpr int64_t NR = Blocking<T>::NR;
    const int64_t blocks = g.k ? (g.k + Blocking<T>::KC - 1) / Blocking<T>::KC : 1, kc = (g.k + blocks - 1) / blocks;
    const int64_t panels = (g.n + NR - 1) / NR, wide = panels >= 64 ? 4 : panels >= 32 ? 2 : 1;
    bool enough = true;
    note_kernel("gemm tiled");
    parallel((panels + wide - 1) / wide, [&](int64_t chunk) {
        Scratch scratch(static_cast<size_t>(kc * NR + 1) * sizeof(T));
        T* const panel = scratch.template as<T>();
        if (!panel) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int64_t j = chunk * wide; j < chunk * wide + wide && j < panels; ++j) {
            const int64_t n = g.n - j * NR < NR ? g.n - j * NR : NR;
            for (int64_t b = 0; b < blocks; ++b) {
                const int64_t k0 = b * kc;
                Tile<T> t{};
                t.kc = g.k - k0 < kc ? g.k - k0 : kc;
                if (t.kc > 0) g.pack_b(g.context, k0, t.kc, j * NR, n, panel);
                t.a = tiles + k0 * kMR, t.a_row = 1, t.a_k = kMR, t.a_tile = kMR * g.k;
                t.b = panel, t.b_k = NR;
                t.c = g.c + j * NR * g.c_col, t.c_row = g.c_row;
                t.load_c = g.accumulate || b > 0;
                t.bias_row = b == 0 ? g.bias_row : nullptr;
                t.activation = b == blocks - 1 ? g.activation : Activation::none;
                t.tiles = g.m / kMR;
                if (t.tiles > 0) run_tile(t, kMR, static_cast<int>(n));
                const int64_t done = t.tiles * kMR;
                t.a += t.tiles * t.a_tile, t.c += done * t.c_row;
                if (t.bias_row) t.bias_row += done;
                t.tiles = 1;
                if (done < g.m) run_tile(t, static_cast<int>(g.m - done), static_cast<int>(n));
            }
        }
    });
    return enough;
}

}  // namespace
}  // namespace tw::TW_ISA
