// A dense layer whose weights are indices of 1 to 8 bits into tables: y = activation(x W^T + b),
// W(o, i) = table(o, g, index), g = i / group.
//
//   w (O, ceil(I bits / 8)): index i in bits i bits .. (i + 1) bits - 1 of a row, the lowest first
//
// Method    panels of W are made as the GEMM packs them.
// Numerics  float32 sums. 16-bit x, tables and b are widened; y is rounded once.
// Threads   outputs are independent.
// Source    Core ML's constexpr_lut_to_dense.
#include "gemm/blocking.h"
#include "gemm/layer.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

Status infer(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &table = c.in[2], &b = c.in[3];
    TW_TRY(infer_layer(x, w, b, r));
    const int64_t bits = c.attr[0].i, group = c.attr[1].i, in = x.shape[x.ndim - 1], out = w.shape[0];
    if (bits < 1 || bits > 8) return fail(Status::attr, "bits", "bits=%lld; want 1 to 8", static_cast<long long>(bits));
    if (group < 0 || group >= kMaxSize)
        return fail(Status::attr, "group", "group=%lld; want 0, or the inputs that share a table",
                    static_cast<long long>(group));
    const int64_t packed[] = {out, ceil_div(in * bits, 8)};
    TW_TRY(want_shape(w, "w", 2, packed));
    TW_TRY(want_float_of(table, "table", x));
    const int64_t entries = int64_t{1} << bits, groups = group ? ceil_div(in, group) : 1;
    const int64_t full[] = {table.ndim == 3 && table.shape[0] == 1 ? 1 : out, groups, entries};
    const int64_t rows[] = {out, entries};
    if (group) return want_shape(table, "table", 3, full);
    return table.ndim == 2 ? want_shape(table, "table", 2, rows) : want_shape(table, "table", 1, &entries);
}

struct Lut {
    const uint8_t* w;
    const float* table;
    int64_t bytes, bits, group, row_tables, tables_per_row;  // row_tables: 0 if outputs share theirs
};

void lut_panel(const void* context, int64_t k0, int64_t kc, int64_t n0, int64_t n, float* panel) {
    constexpr int NR = Blocking<float>::NR;
    const Lut& p = *static_cast<const Lut*>(context);
    const uint32_t mask = (1u << p.bits) - 1;
    for (int64_t j = 0; j < NR; ++j) {
        if (j >= n) {
            for (int64_t k = 0; k < kc; ++k) panel[k * NR + j] = 0;
            continue;
        }
        const uint8_t* row = p.w + (n0 + j) * p.bytes;
        const float* tables = p.table + (n0 + j) * p.row_tables;
        for (int64_t k = k0; k < k0 + kc; ++k) {
            const int64_t bit = k * p.bits, byte = bit / 8;
            uint32_t both = row[byte];
            if (bit % 8 + p.bits > 8) both |= static_cast<uint32_t>(row[byte + 1]) << 8;
            const float* table = p.group ? tables + k / p.group * (int64_t{1} << p.bits) : tables;
            panel[(k - k0) * NR + j] = table[both >> (bit % 8) & mask];
        }
    }
}

Status run(const Call& c) {
    const View &x = c.in[0], &w = c.in[1], &table = c.in[2], &b = c.in[3], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    Scratch w_room(room_for(w, 1, true)), t_room(room_for(table, sizeof(float), false)),
        b_room(room_for(b, sizeof(float), false));
    if (!w_room.as<void>() || !t_room.as<void>() || !b_room.as<void>()) return no_memory();
    Lut p;
    p.w = dense<uint8_t>(w, w_room), p.table = dense<float>(table, t_room);
    p.bits = c.attr[0].i, p.group = c.attr[1].i, p.bytes = w.shape[1];
    const int64_t in = x.shape[x.ndim - 1], own = table.ndim == 1 || (table.ndim == 3 && table.shape[0] == 1);
    p.tables_per_row = p.group ? ceil_div(in, p.group) : 1;
    p.row_tables = own && w.shape[0] != 1 ? 0 : p.tables_per_row << p.bits;
    const float* const bias = dense<float>(b, b_room);
    return run_layer(x, y, c.attr[2], [&](const float* rows, int64_t m, float* to, Activation activation) {
        Gemm<float> g = gemm_of(rows, m, in, w.shape[0], to, activation);
        g.bias_col = bias;
        g.pack_b = lut_panel, g.context = &p;
        return gemm(g);
    });
}

constexpr Operand kOperands[] = {{"x"}, {"w"}, {"table"}, {"b", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    {.name = "bits", .kind = AttrKind::integer, .required = true},
    {.name = "group", .kind = AttrKind::integer},
    {.name = "activation", .kind = AttrKind::choice, .choices = TW_ACTIVATIONS, .none_ok = true}};

}  // namespace

extern const Entry op_linear_lut = {"linear_lut", kOperands, 4, kAttrs, 3, infer, run};

}  // namespace tw::TW_ISA
