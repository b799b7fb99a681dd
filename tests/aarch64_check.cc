// Runs ops of the base tier straight from the op table on small inputs with known answers. tests/test_build.py compiles
// it with the library's own sources for aarch64 and runs it under emulation; it is as good on any other machine.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "core/isa.h"
#include "core/op_table.h"
#include "core/parallel.h"

using namespace tw;

namespace {

int g_failures = 0;

struct Array {
    std::vector<float> values;
    View view{};

    Array(std::initializer_list<int64_t> shape, std::initializer_list<float> given = {}) {
        view.dtype = DType::f32;
        for (const int64_t n : shape) view.shape[view.ndim++] = n;
        set_contiguous(view);
        values = given;
        values.resize(static_cast<size_t>(numel(view)), 0.f);
        view.data = values.data();
    }
};

const AttrSpec& spec_of(const OpDef& op, const char* name, int& at) {
    for (at = 0; at < op.n_attrs; ++at)
        if (std::strcmp(op.attrs[at].name, name) == 0) return op.attrs[at];
    std::printf("%s has no attribute %s\n", op.name, name);
    std::exit(2);
}

// A call of one op: operands in order, attributes by name, results where infer says.
struct Run {
    const OpDef& op;
    std::vector<View> in;
    std::vector<Attr> attrs;

    explicit Run(const char* name, std::initializer_list<const Array*> operands)
        : op(*op_table(Tier::base, find_op(name))) {
        for (const Array* a : operands) in.push_back(a->view);
        while (static_cast<int>(in.size()) < op.n_operands) in.push_back(View{{}, {}, {}, 0, DType::none});
        for (int i = 0; i < op.n_attrs; ++i) attrs.push_back(default_of(op.attrs[i]));
    }

    Run& with(const char* name, int64_t value) {
        int at;
        const AttrSpec& spec = spec_of(op, name, at);
        Attr& a = attrs[static_cast<size_t>(at)];
        a = Attr{};
        a.i = a.list[0] = value;
        a.n = 1;
        a.is_scalar = true;
        if (spec.kind == AttrKind::choice) a.choice = static_cast<int32_t>(value);
        return *this;
    }

    std::vector<float> result() {
        Inferred inferred{};
        Call call{&op, in.data(), static_cast<int>(in.size()), nullptr, 0, attrs.data(), nullptr};
        if (op.infer(call, inferred) != Status::ok) {
            std::printf("%s: %s\n", op.name, last_error().text);
            std::exit(2);
        }
        std::vector<float> y(static_cast<size_t>(numel(inferred.out[0])), NAN);
        set_contiguous(inferred.out[0]);
        inferred.out[0].data = y.data();
        call.out = inferred.out;
        call.n_out = inferred.n_out;
        if (op.run(call) != Status::ok) ++g_failures;
        return y;
    }
};

void expect(const char* what, const std::vector<float>& got, const std::vector<float>& want, float relative = 0.f) {
    bool good = got.size() == want.size();
    for (size_t i = 0; good && i < got.size(); ++i) {
        const bool both_nan = std::isnan(got[i]) && std::isnan(want[i]);
        good = both_nan || got[i] == want[i] || std::fabs(got[i] - want[i]) <= relative * std::fabs(want[i]);
    }
    std::printf("%-16s %s\n", what, good ? "good" : "WRONG");
    if (good) return;
    ++g_failures;
    for (size_t i = 0; i < got.size() && i < 12; ++i) std::printf("  got %.9g, want %.9g\n", got[i], want[i]);
}

// The product of an m x k and a k x n matrix of small integers: exact, so every blocking must hit it.
void check_matmul(int64_t m, int64_t k, int64_t n) {
    Array a({m, k}), b({k, n});
    for (size_t i = 0; i < a.values.size(); ++i) a.values[i] = static_cast<float>(static_cast<int>(i * 7 % 9) - 4);
    for (size_t i = 0; i < b.values.size(); ++i) b.values[i] = static_cast<float>(static_cast<int>(i * 5 % 7) - 3);
    std::vector<float> want(static_cast<size_t>(m * n), 0.f);
    for (int64_t i = 0; i < m; ++i)
        for (int64_t p = 0; p < k; ++p)
            for (int64_t j = 0; j < n; ++j)
                want[static_cast<size_t>(i * n + j)] +=
                    a.values[static_cast<size_t>(i * k + p)] * b.values[static_cast<size_t>(p * n + j)];
    char name[48];
    std::snprintf(name, sizeof name, "matmul %dx%dx%d", static_cast<int>(m), static_cast<int>(k), static_cast<int>(n));
    expect(name, Run("matmul", {&a, &b}).result(), want);
}

void check_conv() {
    // A 3 x 3 sum over 1 .. 16 with a border of zeros, plus a bias, negative sums cut off.
    Array x({1, 1, 4, 4}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16});
    Array w({1, 1, 3, 3}, {1, 1, 1, 1, 1, 1, 1, 1, 1}), b({1}, {-50});
    const std::vector<float> sums = {14, 24, 30, 22, 33, 54, 63, 45, 57, 90, 99, 69, 46, 72, 78, 54};
    std::vector<float> want;
    for (const float s : sums) want.push_back(s > 50 ? s - 50 : 0.f);
    Run conv("conv", {&x, &w, &b});
    conv.with("padding", 1);
    int at;
    const AttrSpec& activation = spec_of(conv.op, "activation", at);
    int relu = 0;
    for (const char* p = activation.choices; std::strncmp(p, "relu", 4) != 0; ++p) relu += *p == '|';
    conv.with("activation", relu);
    expect("conv", conv.result(), want);
}

void check_functions() {
    Array x({7}, {-3, -0.f, 0.5f, 2, NAN, -INFINITY, INFINITY});
    expect("relu", Run("relu", {&x}).result(), {0, 0, 0.5f, 2, NAN, 0, INFINITY});
    expect("exp", Run("exp", {&x}).result(), {std::exp(-3.f), 1, std::exp(0.5f), std::exp(2.f), NAN, 0, INFINITY},
           2e-7f);
    expect("tanh", Run("tanh", {&x}).result(), {std::tanh(-3.f), -0.f, std::tanh(0.5f), std::tanh(2.f), NAN, -1, 1},
           2e-7f);

    Array logits({2, 3}, {1, 2, 3, -1000, 0, 1000});
    const float e1 = std::exp(-2.f), e2 = std::exp(-1.f), sum = e1 + e2 + 1;
    expect("softmax", Run("softmax", {&logits}).result(), {e1 / sum, e2 / sum, 1 / sum, 0, 0, 1}, 4e-7f);
    expect("reduce_sum", Run("reduce_sum", {&logits}).result(), {6}, 0.f);

    Array planes({1, 1, 2, 4}, {1, 5, 2, -1, 3, 0, -7, -2});
    expect("max_pool", Run("max_pool", {&planes}).with("kernel", 2).result(), {5, 2});
    expect("avg_pool", Run("avg_pool", {&planes}).with("kernel", 2).result(), {2.25f, -2});
}

void check_add() {
    Array a({2, 3}, {1, 2, 3, 4, 5, 6}), row({3}, {10, 20, 30});
    expect("add", Run("add", {&a, &row}).result(), {11, 22, 33, 14, 25, 36});
}

}  // namespace

int main() {
    std::printf("tier %s\n", tier_name(Tier::base));
    for (const int threads : {1, 3}) {
        set_num_threads(threads);
        check_matmul(1, 1, 1);
        check_matmul(5, 9, 17);
        check_matmul(64, 400, 70);
        check_matmul(130, 33, 200);
        check_conv();
        check_functions();
        check_add();
    }
    std::printf("%d failures\n", g_failures);
    return g_failures != 0;
}
