// Attributes: the non-tensor arguments of an op, described once and checked by kind.
#pragma once
#include <cstdint>

namespace tw {

enum class AttrKind : uint8_t {
    integer,   // 3
    real,      // 0.5
    boolean,   // True
    choice,    // one of "a|b|c"; None where the default is None
    integers,  // 2 or (2, 2)
    axes,      // None, -1 or (0, 2)
    padding,   // 1, (1, 1), ((0, 1), (2, 3)), "same" or "valid"
    dtype,     // anything numpy.dtype accepts
    text,      // "ij,jk->ik"
};

constexpr int kMaxInts = 16;

struct Attr {
    bool is_none;
    bool is_scalar;     // integers, padding: a single number was given
    bool is_pairs;      // padding: nested pairs, flattened into list
    int32_t choice;     // index into the "a|b|c" of the spec; padding: 0 none, 1 same, 2 valid; dtype: DType
    int32_t n;          // length of list, bytes of text
    int64_t i;          // integer, boolean
    double f;           // real
    int64_t list[kMaxInts];
    const char* text;   // text: UTF-8, borrowed; a resolved one lives until the thread resolves the next
};

struct AttrSpec {
    const char* name;
    AttrKind kind;
    const char* choices = nullptr;  // choice: "none|relu"
    bool required = false;
    bool none_ok = false;  // None is a value; it is also the default unless `required`
    int64_t i = 0;         // default of integer, boolean, integers, padding; index for choice
    double f = 0;          // default of real
};

Attr default_of(const AttrSpec& spec);

}  // namespace tw
