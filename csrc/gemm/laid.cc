// Which way a product of gemm/tiled.h takes, and what its A is laid out as.
#include "core/index.h"
#include "core/memory.h"
#include "core/tile_kernels.h"
#include "gemm/tiled_pieces.h"

namespace tw::TW_ISA {
namespace {

// In front of a laid out A of floats, where registers are many: such a tier may be lent tiles, now or later.
struct alignas(64) Head {
    int64_t bytes;  // with the head
    enum Form { fma_tiles, pieces, floats } form;
    ExponentRange range;

    bool for_pieces() const { return form != fma_tiles; }
};
template <class T>
constexpr bool kHeaded = sizeof(T) == 4 && kVectorRegisters >= 32;

// Whether pieces are faster: six products of bf16 and the splitting of B, in cycles, against one by FMA.
bool pieces_pay(int64_t m, int64_t n, int64_t k) {
    if (kVectorRegisters < 32 || !tile_kernels().tiled || m < 48 || n < 16 || k < 16) return false;
    const int64_t columns = ceil_div(n, kTileRows) * kTileRows, terms = ceil_div(k, kPieceTerms) * kPieceTerms;
    const int64_t rows = ceil_div(m, kTallRows) * kTallRows;
    return columns * terms * (6 * rows + 180) < m * k * ceil_div(n, kLanes<float>) * kLanes<float> * 16;
}

template <class T>
const T* tiles_of(const void* laid) {
    return reinterpret_cast<const T*>(static_cast<const char*>(laid) + (kHeaded<T> ? sizeof(Head) : 0));
}

// The A that was laid out, row by row: its pieces sum up to it, exactly.
void join_rows(const Head& head, int64_t m, int64_t k, float* to) {
    const auto half = [](const char* p) {
        uint16_t bits;
        __builtin_memcpy(&bits, p, 2);
        return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
    };
    const char* const laid = reinterpret_cast<const char*>(&head + 1);
    const int64_t steps = ceil_div(k, kPieceTerms);
    for (int64_t i = 0; i < m; ++i)
        for (int64_t t = 0; t < k; ++t) {
            const int64_t step = i / kTallRows * steps + t / kPieceTerms, in = t % kPieceTerms, w = in % kTileRows;
            if (head.form == Head::floats) {
                to[i * k + t] =
                    reinterpret_cast<const float*>(laid)[(step * kTallRows + i % kTallRows) * kPieceTerms + in];
                continue;
            }
            const char* const at =
                laid + step * 3 * kPieceBytes + i % kTallRows * kTileBytes + w * 4 + (in >= kTileRows ? 2 : 0);
            to[i * k + t] = half(at) + half(at + kPieceBytes) + half(at + 2 * kPieceBytes);
        }
}

// The same product from column n0 on.
struct Later {
    const Gemm<float>* g;
    int64_t n0;
};
void pack_later(const void* context, int64_t k0, int64_t kc, int64_t n0, int64_t n, float* panel) {
    const Later& later = *static_cast<const Later*>(context);
    later.g->pack_b(later.g->context, k0, kc, later.n0 + n0, n, panel);
}
Gemm<float> columns_of(const Gemm<float>& g, int64_t n0, int64_t n, const Later* later) {
    Gemm<float> part = g;
    part.n = n, part.c += n0;
    if (g.addend.data) part.addend.data += n0;
    if (g.pack_b)
        part.pack_b = pack_later, part.context = later;
    else
        part.b.data += n0;
    return part;
}

// By FMA.
bool run_laid(const Gemm<float>& g, const void* laid, const Source<float>& source) {
    if (!kHeaded<float> || !laid || !static_cast<const Head*>(laid)->for_pieces())
        return multiply_tiled(g, laid ? tiles_of<float>(laid) : nullptr, source);
    Scratch scratch(static_cast<size_t>(g.m * g.k + 1) * sizeof(float));
    float* const rows = scratch.as<float>();
    if (!rows) return false;
    join_rows(*static_cast<const Head*>(laid), g.m, g.k, rows);
    Gemm<float> joined = g;
    joined.a = {rows, g.k, 1};
    return multiply_tiled(joined, nullptr, source);
}

// C in pieces, and by FMA the columns that do not fit.
bool run_in_pieces(const Gemm<float>& g, const void* laid, const Source<float>& source) {
    const int64_t panels = ceil_div(g.n, kPanelColumns);
    Scratch scratch(static_cast<size_t>(panels + 1));
    auto* const refused = scratch.as<unsigned char>();
    if (!refused) return false;
    __builtin_memset(refused, 0, static_cast<size_t>(panels + 1));
    InPieces job = {&g, source, nullptr, nullptr, {}, refused};
    if (const auto* head = static_cast<const Head*>(laid)) {
        job.range = head->range;
        if (head->form == Head::floats)
            job.rows = reinterpret_cast<const float*>(head + 1);
        else
            job.a = reinterpret_cast<const char*>(head + 1);
    }
    const auto result = static_cast<InPiecesResult>(tile_kernels().tiled(&job));
    if (result == InPiecesResult::refused) return run_laid(g, laid, source);
    bool enough = result == InPiecesResult::done;
    for (int64_t j = 0, end; j < panels; j = end) {
        for (end = j + 1; end < panels && refused[end] == refused[j];) ++end;
        if (!refused[j]) continue;
        const Later later = {&g, j * kPanelColumns};
        const int64_t n = min_of(end * kPanelColumns, g.n) - later.n0;
        enough = run_laid(columns_of(g, later.n0, n, &later), laid, {}) && enough;
    }
    return enough;
}

template <class T>
void lay_tiles(const Matrix<T>& a, int64_t m, int64_t k, void* to) {
    if (kHeaded<T>) *static_cast<Head*>(to) = {laid_bytes<T>(m, k, 1), Head::fma_tiles, {}};
    pack_tiles(a, m, k, const_cast<T*>(tiles_of<T>(to)));
}

}  // namespace

int64_t laid_float_bytes(int64_t m, int64_t k, int64_t n) {
    const int64_t tiles = tiled_elements(m, k) * 4;
    if (!kHeaded<float>) return tiles;
    const int64_t split = pieces_stay(m, n, k) ? split_bytes(m, k) : float_bytes(m, k);
    const int64_t most = pieces_pay(m, n, k) ? max_of(tiles, split) : tiles;
    return ceil_div(most, 64) * 64 + static_cast<int64_t>(sizeof(Head));
}

const void* laid_floats(const void* laid, int64_t m, int64_t k, int64_t index) {
    if (!laid) return nullptr;
    const int64_t each = kHeaded<float> ? static_cast<const Head*>(laid)->bytes : laid_float_bytes(m, k, 1);
    return static_cast<const char*>(laid) + index * each;
}

void lay_out(const Matrix<float>& a, int64_t m, int64_t k, int64_t n, void* to) {
    if (!pieces_pay(m, n, k)) return lay_tiles(a, m, k, to);
    Head& head = *static_cast<Head*>(to);
    const bool in_floats = !pieces_stay(m, n, k);
    head = {laid_bytes<float>(m, k, n), in_floats ? Head::floats : Head::pieces, {}};
    const SplitRows rows = {a, m, k, in_floats, static_cast<char*>(to) + sizeof(Head), &head.range};
    tile_kernels().split_rows(&rows);
    if (ranges_fit(head.range, {127, 127}, k)) return;
    lay_tiles(a, m, k, to);
    head.bytes = laid_bytes<float>(m, k, n);
}
void lay_out(const Matrix<double>& a, int64_t m, int64_t k, int64_t, void* to) { lay_tiles(a, m, k, to); }

bool gemm_tiled(const Gemm<float>& g, const void* laid, const Source<float>& source) {
    if (g.m == 0 || g.n == 0) return true;
    const bool fits = !laid || (kHeaded<float> && static_cast<const Head*>(laid)->for_pieces());
    if (fits && (g.pack_b || g.b.col == 1) && pieces_pay(g.m, g.n, g.k)) return run_in_pieces(g, laid, source);
    return run_laid(g, laid, source);
}
bool gemm_tiled(const Gemm<double>& g, const void* laid, const Source<double>& source) {
    return g.m == 0 || g.n == 0 || multiply_tiled(g, laid ? tiles_of<double>(laid) : nullptr, source);
}

}  // namespace tw::TW_ISA
