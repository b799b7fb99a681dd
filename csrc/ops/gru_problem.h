// What forward and backward of a gru share.
#pragma once
#include "ops/recurrent_gates.h"
#include "ops/recurrent_problem.h"

namespace tw::TW_ISA {
namespace {

struct GruOptions {
    bool reset_after;  // r scales the product with the state, not the state
    Gate gate, cell;  // of r and z; of n
    bool plain() const { return reset_after && gate == Gate::sigmoid && cell == Gate::tanh; }
};

constexpr AttrSpec kResetAfter = {.name = "reset_after", .kind = AttrKind::boolean, .i = 1};
constexpr AttrSpec kGateActivation = {.name = "gate_activation", .kind = AttrKind::choice, .choices = kGates};
constexpr AttrSpec kCellActivation = {.name = "cell_activation", .kind = AttrKind::choice, .choices = kGates, .i = 1};

TW_INLINE GruOptions gru_options(const Attr* attr) { return {attr[0].i != 0, gate_of(attr[1]), gate_of(attr[2])}; }

}  // namespace
}  // namespace tw::TW_ISA
