// What forward and backward of an lstm share: what it has beside w, r and b, and the checks of that.
#pragma once
#include "ops/recurrent_gates.h"
#include "ops/recurrent_problem.h"

namespace tw::TW_ISA {
namespace {

struct LstmOptions {
    View c0, peep, proj;  // dtype none where not given
    double clip;  // cells stay in [-clip, clip]; 0: anywhere
    bool coupled;  // f is 1 - i
    Gate gate, cell, output;  // of i, f and o; of g; of the cell on its way to h
    View dpeep{}, dproj{};  // of the gradients
    bool full() const { return given(peep) && peep.ndim == 3; }
    bool plain() const {
        return !given(peep) && clip == 0 && !coupled && gate == Gate::sigmoid && cell == Gate::tanh &&
               output == Gate::tanh;
    }
};

constexpr int64_t kSeen = 3;  // blocks of peepholes, to i, f and o

constexpr AttrSpec kClip = {.name = "clip", .kind = AttrKind::real};
constexpr AttrSpec kCoupled = {.name = "coupled", .kind = AttrKind::boolean};
constexpr AttrSpec kGateActivation = {.name = "gate_activation", .kind = AttrKind::choice, .choices = kGates};
constexpr AttrSpec kCellActivation = {.name = "cell_activation", .kind = AttrKind::choice, .choices = kGates, .i = 1};
constexpr AttrSpec kOutputActivation = {
    .name = "output_activation", .kind = AttrKind::choice, .choices = kGates, .i = 1};

TW_INLINE LstmOptions lstm_options(const View& c0, const View& peep, const View& proj, const Attr* attr) {
    return {c0,       peep,    proj, attr[0].f, attr[1].i != 0, gate_of(attr[2]), gate_of(attr[3]), gate_of(attr[4]),
            absent(), absent()};
}

// peep (D, 3H) or (D, 3H, H), proj (D, P, H) and the clip.
Status check_lstm(const Layer& p, const View& peep, const View& proj, const Attr& clip) {
    if (!(clip.f >= 0)) return fail(Status::attr, "clip", "clip=%g; want 0 for none, or a largest cell", clip.f);
    const int64_t seen[] = {p.directions, kSeen * p.hidden, p.hidden}, of_proj[] = {p.directions, p.outputs, p.hidden};
    TW_TRY(check_optional(peep, "peep", p.x, given(peep) && peep.ndim == 3 ? 3 : 2, seen));
    TW_TRY(check_optional(proj, "proj", p.x, 3, of_proj));
    if (given(proj) && p.outputs == 0)
        return fail(Status::shape, "proj", "proj has shape %s; want (D, P, H) with P of 1 or more",
                    shape_text(proj).text);
    return Status::ok;
}

}  // namespace
}  // namespace tw::TW_ISA
