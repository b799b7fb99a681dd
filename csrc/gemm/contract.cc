#include "gemm/contract.h"

#include "gemm/loops.h"
#include "gemm/pack.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kSmallProduct = int64_t{1} << 21;  // multiply-adds below which a batch is split by product
constexpr int64_t kFewNumbers = 1 << 14, kDeep = 1 << 12;

// What packers of A and B need to walk groups of axes that do not fuse.
template <class T>
struct Panels {
    const T *a, *b;
    const Axes *m, *n, *k;
};

// [kc][NR], zero beyond column n: see Gemm::pack_b.
template <class T>
void pack_walked_b(const void* context, int64_t k0, int64_t kc, int64_t n0, int64_t n, T* panel) {
    constexpr int NR = Blocking<T>::NR;
    const auto& p = *static_cast<const Panels<T>*>(context);
    int64_t column[NR];
    Place at;
    seek(*p.n, n0, at);
    bool even = true;
    for (int64_t j = 0; j < n; ++j, advance(*p.n, at, 1)) {
        column[j] = at.b;
        even = even && (j < 2 || column[j] - column[j - 1] == column[1] - column[0]);
    }
    const int64_t column_step = n > 1 ? column[1] - column[0] : 1, step = p.k->at[p.k->n - 1].b;
    seek(*p.k, k0, at);
    for (int64_t done = 0; done < kc;) {
        const int64_t run = fewest(run_length(*p.k, at), kc - done);
        const T* const from = p.b + at.b;
        T* const to = panel + done * NR;
        if (even) {
            pack_panel<T, T>({from + column[0], step, column_step}, 0, run, 0, n, to);
        } else {
            for (int64_t k = 0; k < run; ++k)
                for (int64_t j = 0; j < NR; ++j) to[k * NR + j] = j < n ? from[column[j] + k * step] : 0;
        }
        advance(*p.k, at, run);
        done += run;
    }
}

template <class T>
TW_INLINE void copy_run(T* to, const T* from, int64_t step, int64_t n) {
    constexpr int64_t L = kLanes<T>;
    int64_t i = 0;
    if (step == 1)
        for (; i + L <= n; i += L) store(to + i, load(from + i));
    for (; i < n; ++i) to[i] = from[i * step];
}

// A block of kLanes by `inner` numbers, the first of them dense in `from` and the others dense in `to`.
template <class T>
TW_INLINE void copy_turned(T* to, const T* from, int64_t step, int64_t inner) {
    constexpr int64_t L = kLanes<T>;
    int64_t i = 0;
    for (; i + L <= inner; i += L) transpose_tile(from + i * step, step, to + i, inner);
    for (; i < inner; ++i)
        for (int64_t j = 0; j < L; ++j) to[j * inner + i] = from[i * step + j];
}

// [m][kc], see Gemm::pack_a.
template <class T>
void pack_walked_a(const void* context, int64_t m0, int m, int64_t k0, int64_t kc, T* panel) {
    const auto& p = *static_cast<const Panels<T>*>(context);
    int64_t row[kMR];
    Place at;
    seek(*p.m, m0, at);
    for (int i = 0; i < m; ++i, advance(*p.m, at, 1)) row[i] = at.a;
    const int last = p.k->n - 1;
    const int64_t step = p.k->at[last].a, inner = p.k->at[last].size;
    // Where A is dense along the axis before the last, whole vectors of it are turned.
    const bool turns = step != 1 && last > 0 && p.k->at[last - 1].a == 1;
    seek(*p.k, k0, at);
    for (int64_t done = 0; done < kc;) {
        if (turns && at.digit[last] == 0 && kc - done >= kLanes<T> * inner &&
            p.k->at[last - 1].size - at.digit[last - 1] >= kLanes<T>) {
            for (int i = 0; i < m; ++i) copy_turned(panel + i * kc + done, p.a + at.a + row[i], step, inner);
            for (int j = 0; j < kLanes<T>; ++j) advance(*p.k, at, inner);
            done += kLanes<T> * inner;
            continue;
        }
        const int64_t run = fewest(run_length(*p.k, at), kc - done);
        for (int i = 0; i < m; ++i) copy_run(panel + i * kc + done, p.a + at.a + row[i], step, run);
        advance(*p.k, at, run);
        done += run;
    }
}

// Whether one tensor walks a group with one stride.
TW_INLINE bool runs_evenly(const Axes& g, int64_t Axis::* stride) {
    for (int i = 1; i < g.n; ++i)
        if (g.at[i - 1].*stride != g.at[i].*stride * g.at[i].size) return false;
    return true;
}

template <class T>
struct Product {
    const T *a, *b;
    T* c;
    Axes m, n, k;
    Axes batch;  // every index of these is a product of its own
    bool accumulate;

    // Leaves in g the axes that C walks with one stride, the most elements of them; the others join the batch.
    void keep_one_chain(Axes& g) {
        sort(g, [](const Axis& x) { return magnitude(x.c); });
        fuse(g);
        int best = 0, best_end = 0;
        int64_t most_elements = 0;
        for (int first = 0, end = 0; first < g.n; first = end) {
            int64_t elements = g.at[first].size;
            for (end = first + 1; end < g.n && g.at[end - 1].c == g.at[end].c * g.at[end].size; ++end)
                elements *= g.at[end].size;
            const bool dense = g.at[end - 1].c == 1 && elements >= kLanes<T>;
            if (elements > most_elements || dense) most_elements = elements, best = first, best_end = end;
        }
        Axes chain;
        for (int i = 0; i < g.n; ++i) append(i >= best && i < best_end ? chain : batch, g.at[i]);
        g = chain;
    }

    // The depth in the order that suits the operand with the harder reads; fused where both allow it.
    void order_depth() {
        const int64_t m_step = m.at[m.n - 1].a, n_step = n.at[n.n - 1].b;
        sort(k, [](const Axis& x) { return magnitude(x.b); });
        if (n_step == 1) {
            sort(k, [](const Axis& x) { return magnitude(x.a); });
        } else if (m_step != 1) {
            // Neither runs along its own axis: the axis along which A runs goes next to the one along which B runs.
            for (int i = 0; i + 1 < k.n - 1; ++i)
                if (k.at[i].a == 1) {
                    const Axis along = k.at[i];
                    remove(k, i);
                    append(k, k.at[k.n - 1]);
                    k.at[k.n - 2] = along;
                }
        }
        fuse(k);
    }

    bool run() {
        keep_one_chain(m);
        keep_one_chain(n);
        order_depth();
        Gemm<T> g{};
        g.m = product(m), g.n = product(n), g.k = product(k);
        g.c_row = m.at[m.n - 1].c, g.c_col = n.at[n.n - 1].c;
        g.accumulate = accumulate;
        if (runs_evenly(m, &Axis::a) && runs_evenly(k, &Axis::a))
            g.a = {a, m.at[m.n - 1].a, k.at[k.n - 1].a};
        else
            g.pack_a = pack_walked_a<T>;
        if (runs_evenly(n, &Axis::b) && runs_evenly(k, &Axis::b))
            g.b = {b, k.at[k.n - 1].b, n.at[n.n - 1].b};
        else
            g.pack_b = pack_walked_b<T>;
        // Few numbers of C are shares of k, but not where a packer makes B alone.
        if (kVectorRegisters >= 32 && g.pack_b && g.m * g.n <= kFewNumbers && g.k >= kDeep) g.pack_a = pack_walked_a<T>;
        bool enough = true;
        const auto one = [&](int64_t i) {
            Place p;
            seek(batch, i, p);
            Panels<T> panels = {a + p.a, b + p.b, &m, &n, &k};
            Gemm<T> mine = g;
            mine.context = &panels;
            if (!g.pack_a) mine.a.data += p.a;
            if (!g.pack_b) mine.b.data += p.b;
            mine.c = c + p.c;
            if (!gemm(mine)) __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        };
        const int64_t products = product(batch), work = g.m * g.n * g.k;
        if (products > 1 && (work < kSmallProduct || products >= 16)) {
            const int64_t group = most(1, kSmallProduct / 16 / (work + 1));
            parallel((products + group - 1) / group, [&](int64_t chunk) {
                for (int64_t i = chunk * group; i < fewest(chunk * group + group, products); ++i) one(i);
            });
        } else {
            for (int64_t i = 0; i < products; ++i) one(i);
        }
        return enough;
    }
};

constexpr int64_t kLeastSide = 4, kLeastWork = 1 << 10;  // below, a GEMM does not pay

template <class T>
bool run_contraction(const Contraction<T>& x) {
    static constexpr T kZero = 0;
    Axes kept, summed;
    bool nothing = false;
    for (int i = 0; i < x.axes.n; ++i) {
        const Axis& axis = x.axes.at[i];
        if (axis.c && axis.size == 0) return true;
        nothing = nothing || axis.size == 0;
        if (axis.size != 1) append(axis.c ? kept : summed, axis);
    }
    if (nothing) {  // an empty sum
        if (x.accumulate) return true;
        for (int i = 0; i < kept.n; ++i) kept.at[i].a = kept.at[i].b = 0;
        Axes none;
        return run_loops<T>(&kZero, nullptr, x.c, kept, none, false);
    }
    if (!x.b) return run_loops<T>(x.a, nullptr, x.c, kept, summed, x.accumulate);
    Product<T> p;  // not braces: they would clear every axis
    p.a = x.a, p.b = x.b, p.c = x.c;
    p.accumulate = x.accumulate;
    bool swap = false, elementwise = false;
    for (int i = 0; i < kept.n; ++i) {
        const Axis& axis = kept.at[i];
        const bool row = axis.a && !axis.b, column = axis.b && !axis.a;
        append(row ? p.m : column ? p.n : p.batch, axis);
        if (axis.c == 1) swap = row;
        if (axis.c == 1 && axis.a == 1 && axis.b == 1) elementwise = axis.size >= kLanes<T>;
    }
    const int64_t m = product(p.m), n = product(p.n), depth = product(summed);
    if (elementwise || m < kLeastSide || n < kLeastSide || depth < kLeastSide || m * n * depth < kLeastWork)
        return run_loops<T>(x.a, x.b, x.c, kept, summed, x.accumulate);
    p.k = summed;
    if (swap) {  // the operand whose axis lies dense in C gives the columns
        const T* const t = p.a;
        p.a = p.b, p.b = t;
        const Axes rows = p.m;
        p.m = p.n, p.n = rows;
        Axes* const groups[] = {&p.m, &p.n, &p.k, &p.batch};
        for (Axes* g : groups)
            for (int i = 0; i < g->n; ++i) g->at[i] = {g->at[i].size, g->at[i].b, g->at[i].a, g->at[i].c};
    }
    return p.run();
}

}  // namespace

bool contract(const Contraction<float>& x) { return run_contraction(x); }
bool contract(const Contraction<double>& x) { return run_contraction(x); }

}  // namespace tw::TW_ISA
