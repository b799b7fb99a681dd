// The default of an attribute, in the same form as a value that was given. None wins where the spec allows it.
#include "core/attrs.h"

namespace tw {

Attr default_of(const AttrSpec& spec) {
    Attr a;  // all but the list, which has n numbers
    a.is_none = spec.none_ok && !spec.required;
    a.is_scalar = a.is_pairs = false;
    a.choice = a.n = 0;
    a.i = 0;
    a.f = 0;
    a.text = nullptr;
    if (a.is_none) return a;
    switch (spec.kind) {
        case AttrKind::integer:
        case AttrKind::boolean: a.i = spec.i; break;
        case AttrKind::real: a.f = spec.f; break;
        case AttrKind::choice:
        case AttrKind::dtype: a.choice = static_cast<int32_t>(spec.i); break;
        case AttrKind::integers:
        case AttrKind::axes:
        case AttrKind::padding:
            a.is_scalar = true;
            a.n = 1;
            a.list[0] = spec.i;
            break;
        case AttrKind::text: a.text = ""; break;
    }
    return a;
}

}  // namespace tw
