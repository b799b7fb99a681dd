// y = alpha * sum over the labels that the result lacks of the product of all operands, + beta * c; and its gradient.
//
// Method    the notation is read once per call (core/subscripts.h); repeated labels are strides, so a diagonal is a view.
//           Several operands are contracted two at a time, in the order of least work; what one of two alone has is
//           summed before. Each pair runs as it lies in memory (gemm/contract.h); intermediates come from the pool.
//           16-bit operands are widened first. einsum_dx also writes diagonals and copies, which gradients need.
// Numerics  each product of a pair as gemm/contract.h has it; alpha, beta and c come in at the end, each rounded. Without
//           alpha and beta, c is the first term of each sum. 16-bit operands: all in float32, one rounding at the store.
// Threads   inside each contraction; the order of operands and of every sum is a function of shapes and tier.
// Source    opt_einsum's cost model: Smith and Gray, Journal of Open Source Software, 2018.
#include "core/check.h"
#include "core/subscripts.h"
#include "core/walk.h"
#include "gemm/contract.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr View kNotGiven = {nullptr, {}, {}, 0, DType::none};

enum EinsumAttr { kSubscripts, kAlpha, kBeta, kLargest };
enum EinsumDxAttr { kDxSubscripts, kDxShape, kDxAlpha };

// ---- shape rules ----------------------------------------------------------------------------------------------------

Status want_floats(const View* operands, int n) {
    for (int k = 0; k < n; ++k) {
        if (!is_float(operands[k].dtype))
            return fail(Status::dtype, "operands",
                        "operands[%d] has dtype %s; want float32, float64, float16 or bfloat16", k,
                        name_of(operands[k].dtype));
        if (operands[k].dtype != operands[0].dtype)
            return fail(Status::dtype, "operands", "operands[%d] has dtype %s but operands[0] has %s; want the same", k,
                        name_of(operands[k].dtype), name_of(operands[0].dtype));
    }
    return Status::ok;
}

Status want_factor(const Attr& a, const char* name, DType dtype) {
    const double most = dtype == DType::f64 ? 1.7976931348623157e308 : 3.4028234663852886e38;
    if (a.f >= -most && a.f <= most) return Status::ok;
    return fail(Status::attr, name, "%s=%g; want a finite number that fits %s", name, a.f, name_of(dtype));
}

void give_result(const Subscripts& s, DType dtype, Inferred& r) {
    r.n_out = 1;
    r.out[0] = result(dtype, s.result.n, s.result_size);
    r.flops = 2;
    for (int l = 0; l < kMaxLabels; ++l)
        if (s.size[l] != kUnseen) r.flops *= static_cast<double>(s.size[l]);
}

Status infer_einsum(Call& call, Inferred& r) {
    const int n = call.n_in - 1;
    const View& c = call.in[n];
    const DType dtype = call.in[0].dtype;
    TW_TRY(want_floats(call.in, n));
    Subscripts s;
    TW_TRY(read_subscripts(call.attr[kSubscripts], call.in, n, nullptr, s));
    TW_TRY(want_factor(call.attr[kAlpha], "alpha", dtype));
    TW_TRY(want_factor(call.attr[kBeta], "beta", dtype));
    const Attr& largest = call.attr[kLargest];
    if (!largest.is_none && largest.i < 1)
        return fail(Status::attr, "largest", "largest=%lld; want None or at least 1 element",
                    static_cast<long long>(largest.i));
    give_result(s, dtype, r);
    if (!given(c)) return Status::ok;
    TW_TRY(want_dtype_of(c, "c", call.in[0], "operands[0]"));
    return want_shape(c, "c", r.out[0].ndim, r.out[0].shape);
}

Status infer_einsum_dx(Call& call, Inferred& r) {
    TW_TRY(want_floats(call.in, call.n_in));
    Attr& shape = call.attr[kDxShape];
    shape.is_scalar = false;
    Subscripts s;
    TW_TRY(read_subscripts(call.attr[kDxSubscripts], call.in, call.n_in, &shape, s));
    TW_TRY(want_factor(call.attr[kDxAlpha], "alpha", call.in[0].dtype));
    give_result(s, call.in[0].dtype, r);
    return Status::ok;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

// Blocks of the pool for one call, given back together.
struct Blocks {
    void* block[3 * kMaxInputs];
    size_t bytes[3 * kMaxInputs];
    int n = 0;

    Blocks() = default;
    Blocks(const Blocks&) = delete;
    Blocks& operator=(const Blocks&) = delete;
    ~Blocks() {
        while (n > 0) --n, pool_give(block[n], bytes[n]);
    }

    template <class T>
    T* take(double elements) {
        if (elements > static_cast<double>(kMaxSize)) return nullptr;
        const size_t size = static_cast<size_t>(elements) * sizeof(T);
        void* const made = pool_take(size);
        if (made) block[n] = made, bytes[n++] = size;
        return static_cast<T*>(made);
    }
};

Status no_memory(double elements) {
    return fail(Status::memory, "",
                "no memory for an intermediate of %.0f elements; want smaller operands, or `largest`", elements);
}

// ---- a tensor by its labels -----------------------------------------------------------------------------------------

// Labels of size 1 are left out, and so is an axis of size 1 that broadcasts; an axis that comes twice is one stride.
template <class T>
struct Tensor {
    T* data;
    uint64_t labels = 0;
    int64_t stride[kMaxLabels];
};

template <class T>
void label_axes(const Term& t, const int64_t* shape, const int64_t* stride, T* data, Tensor<T>& x) {
    x.data = data;
    x.labels = 0;
    for (int d = 0; d < t.n; ++d) {
        if (shape[d] == 1) continue;
        const int l = t.label[d];
        x.stride[l] = (x.labels & bit(l) ? x.stride[l] : 0) + stride[d];
        x.labels |= bit(l);
    }
}

TW_INLINE int first_label(uint64_t labels) { return __builtin_ctzll(labels); }

double elements(const Subscripts& s, uint64_t labels) {
    double n = 1;
    for (; labels; labels &= labels - 1) n *= static_cast<double>(s.size[first_label(labels)]);
    return n;
}

template <class T>
struct Contractor {
    const Subscripts& s;
    Blocks& blocks;

    // c = a b, summed over what c lacks; b may be null.
    Status run(const Tensor<const T>& a, const Tensor<const T>* b, const Tensor<T>& c, bool accumulate) const {
        Contraction<T> x;
        x.a = a.data, x.b = b ? b->data : nullptr, x.c = c.data;
        x.accumulate = accumulate;
        const uint64_t of_b = b ? b->labels : 0;
        for (uint64_t rest = a.labels | of_b | c.labels; rest; rest &= rest - 1) {
            const int l = first_label(rest);
            x.axes.at[x.axes.n++] = {s.size[l], a.labels & bit(l) ? a.stride[l] : 0, of_b & bit(l) ? b->stride[l] : 0,
                                     c.labels & bit(l) ? c.stride[l] : 0};
        }
        return contract(x) ? Status::ok
                           : fail(Status::memory, "", "no memory for packed panels; want smaller operands");
    }

    // A dense tensor with these labels, those of `order` first, each in the order of the strides they have there.
    Status make(uint64_t labels, const Tensor<const T>& order, const Tensor<const T>* then, Tensor<T>& x) const {
        const double n = elements(s, labels);
        x.data = blocks.take<T>(n);
        if (!x.data) return no_memory(n);
        x.labels = labels;
        int outer[kMaxLabels], count = 0;
        const uint64_t both = then ? order.labels & then->labels : 0;
        place(labels & both, order, outer, count);
        place(labels & order.labels & ~both, order, outer, count);
        if (then) place(labels & then->labels & ~both, *then, outer, count);
        int64_t step = 1;
        while (count > 0) {
            const int l = outer[--count];
            x.stride[l] = step;
            step *= s.size[l];
        }
        return Status::ok;
    }

    static void place(uint64_t labels, const Tensor<const T>& by, int* outer, int& count) {
        const int first = count;
        for (; labels; labels &= labels - 1) {
            int at = count++;
            const int l = first_label(labels);
            for (; at > first && size_of(by.stride[outer[at - 1]]) < size_of(by.stride[l]); --at)
                outer[at] = outer[at - 1];
            outer[at] = l;
        }
    }
    static int64_t size_of(int64_t stride) { return stride < 0 ? -stride : stride; }

    // Sums what only x has and nobody wants.
    Status shrink(Tensor<const T>& x, uint64_t wanted) const {
        if (!(x.labels & ~wanted)) return Status::ok;
        Tensor<T> sum;
        TW_TRY(make(x.labels & wanted, x, nullptr, sum));
        TW_TRY(run(x, nullptr, sum, false));
        hold(x, sum);
        return Status::ok;
    }

    static void hold(Tensor<const T>& x, const Tensor<T>& made) {
        x.data = made.data;
        x.labels = made.labels;
        for (uint64_t rest = made.labels; rest; rest &= rest - 1)
            x.stride[first_label(rest)] = made.stride[first_label(rest)];
    }

    // All of it: y = product of the terms, or y += where `accumulate`.
    Status run_all(Tensor<const T>* x, const Order& order, const Tensor<T>& y, bool accumulate) const {
        bool gone[kMaxInputs] = {};
        for (int step = 0; step + 1 < s.n_terms; ++step) {
            const int i = order.first[step], j = order.second[step];
            gone[j] = true;
            uint64_t wanted = y.labels;
            for (int k = 0; k < s.n_terms; ++k)
                if (!gone[k] && k != i) wanted |= x[k].labels;
            TW_TRY(shrink(x[i], wanted | x[j].labels));
            TW_TRY(shrink(x[j], wanted | x[i].labels));
            if (step + 2 == s.n_terms) return run(x[i], &x[j], y, accumulate);
            Tensor<T> made;
            TW_TRY(make((x[i].labels | x[j].labels) & wanted, x[i], &x[j], made));
            TW_TRY(run(x[i], &x[j], made, false));
            hold(x[i], made);
        }
        return run(x[0], nullptr, y, accumulate);
    }
};

// ---- elementwise parts ----------------------------------------------------------------------------------------------

// Lanes of elements i .. i + n of a strided row in another type.
template <class S, class T>
TW_INLINE Vec<S> take_as(const T* p, int64_t stride, int64_t i, int64_t n) {
    if (stride == 1) return load_as_n<S>(p + i, n);
    T in[kLanes<S>];
    for (int64_t k = 0; k < n; ++k) in[k] = p[(i + k) * stride];
    return load_as_n<S>(in, n);
}

template <class S, class T>
TW_INLINE void put_as(T* p, int64_t stride, int64_t i, int64_t n, Vec<S> v) {
    if (stride == 1) return store_from_n(p + i, v, n);
    T out[kLanes<S>];
    store_from_n(out, v, n);
    for (int64_t k = 0; k < n; ++k) p[(i + k) * stride] = out[k];
}

// y = alpha s + beta c, c only where given. S is the type of the sums, T of the arrays.
template <class S, class T>
void finish(const View& y, const View& sums, S alpha, const View& c, S beta) {
    const View* views[] = {&y, &sums, &c};
    const Walk w = walk_over(views, given(c) ? 3 : 2, y.ndim, y.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        T* const to = reinterpret_cast<T*>(at[0]);
        const S* const from = reinterpret_cast<const S*>(at[1]);
        const T* const add = w.n == 3 ? reinterpret_cast<const T*>(at[2]) : nullptr;
        each_vector<S>(count, [&](int64_t i, int64_t n) {
            Vec<S> v = alpha * take(from, w.stride[1], i, n);
            if (add) v += beta * take_as<S>(add, w.stride[2], i, n);
            put_as<S>(to, w.stride[0], i, n, v);
        });
    });
}

template <class T>
void widen(const View& x, float* to) {
    View y = x;
    y.data = to, y.dtype = DType::f32;
    set_contiguous(y);
    const View* views[] = {&y, &x};
    const Walk w = walk_over(views, 2, x.ndim, x.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        const T* const from = reinterpret_cast<const T*>(at[1]);
        float* const row = reinterpret_cast<float*>(at[0]);
        each_vector<float>(
            count, [&](int64_t i, int64_t n) { put(row, w.stride[0], i, n, take_as<float>(from, w.stride[1], i, n)); });
    });
}

// ---- running --------------------------------------------------------------------------------------------------------

// What a call asks for, whichever of the two ops it is.
struct Job {
    const View* operands;
    int n;
    View c, y;
    double alpha, beta, largest;
};

bool same_place(const View& a, const View& b) { return a.data == b.data; }

// Sums of type S into `y`, which has the strides of a result that is dense or given by the caller.
template <class S>
Status contract_all(const Subscripts& s, const Order& order, const View* operands, const View& y, bool accumulate,
                    Blocks& blocks) {
    Tensor<const S> x[kMaxInputs];
    for (int k = 0; k < s.n_terms; ++k) {
        const View& v = operands[s.term[k].operand];
        label_axes<const S>(s.term[k], v.shape, v.stride, v.as<S>(), x[k]);
    }
    Tensor<S> sum;
    label_axes<S>(s.result, y.shape, y.stride, y.as<S>(), sum);
    uint64_t known = 0, diagonal = 0, seen = 0;
    for (int k = 0; k < s.n_terms; ++k) known |= x[k].labels;
    for (int d = 0; d < s.result.n; ++d) {
        if (y.shape[d] != 1) diagonal |= seen & bit(s.result.label[d]);
        seen |= bit(s.result.label[d]);
    }
    if (diagonal) {  // zero but on the diagonal
        const S zero = 0;
        const View nothing = {const_cast<S*>(&zero), {}, {}, 0, y.dtype};
        finish<S, S>(y, nothing, 1, kNotGiven, 0);
    }
    const Contractor<S> contractor = {s, blocks};
    if (!(sum.labels & ~known)) return contractor.run_all(x, order, sum, accumulate);
    // Labels that no operand has are copies of one result.
    Subscripts wide = s;
    for (int d = 0; d < s.result.n; ++d)
        if (y.shape[d] != 1) wide.size[s.result.label[d]] = y.shape[d];
    const Contractor<S> copier = {wide, blocks};
    Tensor<const S> shape_of_sum;
    Contractor<S>::hold(shape_of_sum, sum);
    Tensor<S> once;
    TW_TRY(copier.make(sum.labels & known, shape_of_sum, nullptr, once));
    TW_TRY(contractor.run_all(x, order, once, false));
    Contractor<S>::hold(shape_of_sum, once);
    return copier.run(shape_of_sum, nullptr, sum, accumulate);
}

// f32 and f64: straight into y where alpha, beta and c allow it.
template <class T>
Status run_as_is(const Job& job, const Subscripts& s, const Order& order, Blocks& blocks) {
    const bool plain = job.alpha == 1 && (!given(job.c) || job.beta == 1);
    if (plain) {
        if (given(job.c) && !same_place(job.c, job.y)) finish<T, T>(job.y, job.c, 1, kNotGiven, 0);
        return contract_all<T>(s, order, job.operands, job.y, given(job.c), blocks);
    }
    View sums = job.y;
    if (given(job.c) && same_place(job.c, job.y)) {
        set_contiguous(sums);
        sums.data = blocks.take<T>(static_cast<double>(numel(sums)));
        if (!sums.data) return no_memory(static_cast<double>(numel(sums)));
    }
    TW_TRY(contract_all<T>(s, order, job.operands, sums, false, blocks));
    finish<T, T>(job.y, sums, static_cast<T>(job.alpha), job.c, static_cast<T>(job.beta));
    return Status::ok;
}

template <class T>
Status run_widened(const Job& job, const Subscripts& s, const Order& order, Blocks& blocks) {
    View operands[kMaxInputs];
    for (int k = 0; k < job.n; ++k) {
        operands[k] = job.operands[k];
        operands[k].dtype = DType::f32;
        set_contiguous(operands[k]);
        const auto n = static_cast<double>(numel(operands[k]));
        operands[k].data = blocks.take<float>(n);
        if (!operands[k].data) return no_memory(n);
        widen<T>(job.operands[k], operands[k].as<float>());
    }
    View sums = job.y;
    sums.dtype = DType::f32;
    set_contiguous(sums);
    const auto n = static_cast<double>(numel(sums));
    sums.data = blocks.take<float>(n);
    if (!sums.data) return no_memory(n);
    TW_TRY(contract_all<float>(s, order, operands, sums, false, blocks));
    finish<float, T>(job.y, sums, static_cast<float>(job.alpha), job.c, static_cast<float>(job.beta));
    return Status::ok;
}

Status run_job(const Job& job, const Subscripts& s) {
    if (numel(job.y) == 0) return Status::ok;
    Order order;
    if (!find_order(s, job.largest, order))
        return fail(Status::attr, "largest",
                    "no order keeps every intermediate within largest=%.0f elements; want more", job.largest);
    Blocks blocks;
    switch (job.y.dtype) {
        case DType::f32: return run_as_is<float>(job, s, order, blocks);
        case DType::f64: return run_as_is<double>(job, s, order, blocks);
        case DType::f16: return run_widened<f16>(job, s, order, blocks);
        default: return run_widened<bf16>(job, s, order, blocks);
    }
}

constexpr double kNoLimit = 1e300;

Status run_einsum(const Call& call) {
    const int n = call.n_in - 1;
    Subscripts s;
    Attr text = call.attr[kSubscripts];
    TW_TRY(read_subscripts(text, call.in, n, nullptr, s));
    const Attr& largest = call.attr[kLargest];
    return run_job({call.in, n, call.in[n], call.out[0], call.attr[kAlpha].f, call.attr[kBeta].f,
                    largest.is_none ? kNoLimit : static_cast<double>(largest.i)},
                   s);
}

Status run_einsum_dx(const Call& call) {
    Subscripts s;
    Attr text = call.attr[kDxSubscripts];
    TW_TRY(read_subscripts(text, call.in, call.n_in, &call.attr[kDxShape], s));
    return run_job({call.in, call.n_in, kNotGiven, call.out[0], call.attr[kDxAlpha].f, 0, kNoLimit}, s);
}

constexpr Operand kEinsumOperands[] = {{"operands", Role::variadic}, {"c", Role::optional}};
constexpr AttrSpec kEinsumAttrs[] = {
    {.name = "subscripts", .kind = AttrKind::text, .required = true},
    {.name = "alpha", .kind = AttrKind::real, .f = 1},
    {.name = "beta", .kind = AttrKind::real, .f = 1},
    {.name = "largest", .kind = AttrKind::integer, .none_ok = true},
};
constexpr AttrSpec kEinsumDxAttrs[] = {
    {.name = "subscripts", .kind = AttrKind::text, .required = true},
    {.name = "shape", .kind = AttrKind::integers, .required = true},
    {.name = "alpha", .kind = AttrKind::real, .f = 1},
};

}  // namespace

extern const Entry op_einsum = {"einsum",     kEinsumOperands,          TW_COUNT(kEinsumOperands),
                                kEinsumAttrs, TW_COUNT(kEinsumAttrs),   infer_einsum,
                                run_einsum,   kOutIsLast | kLeadingText};
extern const Entry op_einsum_dx = {
    "einsum_dx",     kEinsumOperands, 1,           kEinsumDxAttrs, TW_COUNT(kEinsumDxAttrs),
    infer_einsum_dx, run_einsum_dx,   kLeadingText};

}  // namespace tw::TW_ISA
