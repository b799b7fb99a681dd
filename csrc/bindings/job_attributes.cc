// Attributes of a job by name and kind, as the op's table wants them.
#include "bindings/job_attributes.h"

#include <cstring>

#include "bindings/choices.h"
#include "core/caller.h"
#include "core/op_table.h"

namespace tw {

const char* kind_text(AttrKind kind) {
    constexpr const char* names[] = {"int", "real", "bool", "choice", "ints", "axes", "padding", "dtype", "text"};
    return names[static_cast<int>(kind)];
}

namespace {

static_assert(kMaxAttrs <= 32);

Status wrong_kind(const AttrSpec& spec, const tw_attr& given) {
    return fail(Status::attr, spec.name, "%s has kind %d; want one for %s%s%s", spec.name, given.kind,
                kind_text(spec.kind), spec.none_ok ? " or TW_NONE" : "",
                spec.kind == AttrKind::padding ? " or text" : "");
}

Status numbers_from(const tw_attr& given, const AttrSpec& spec, Attr& attr) {
    attr.is_scalar = given.kind == TW_INT;
    attr.is_pairs = given.kind == TW_PAIRS;
    attr.choice = 0;
    if (attr.is_scalar) {
        attr.n = 1;
        attr.list[0] = given.value.i;
        return Status::ok;
    }
    const int width = attr.is_pairs ? 2 : 1;
    if (given.n < 0 || given.n > kMaxInts / width)
        return fail(Status::attr, spec.name, "%s has n=%d; want 0 to %d", spec.name, given.n, kMaxInts / width);
    if (given.n > 0 && !given.value.ints)
        return fail(kBadArgument, spec.name, "%s has no numbers; want %d at value.ints", spec.name, given.n * width);
    attr.n = given.n * width;
    for (int i = 0; i < attr.n; ++i) attr.list[i] = given.value.ints[i];
    return Status::ok;
}

Status text_from(const tw_attr& given, const AttrSpec& spec, Attr& attr) {
    const char* text = given.value.text;
    if (!text) return fail(kBadArgument, spec.name, "%s has no text; want one at value.text", spec.name);
    if (spec.kind == AttrKind::choice) {
        attr.choice = choice_index(spec.choices, text);
        if (attr.choice >= 0) return Status::ok;
        return fail(Status::attr, spec.name, "%s='%.60s'; want one of %s", spec.name, text, spec.choices);
    }
    if (spec.kind == AttrKind::padding) {
        attr.is_scalar = attr.is_pairs = false;
        attr.n = 0;
        attr.choice = std::strcmp(text, "same") == 0 ? 1 : std::strcmp(text, "valid") == 0 ? 2 : 0;
        if (attr.choice) return Status::ok;
        return fail(Status::attr, spec.name, "%s='%.60s'; want 'same', 'valid' or numbers", spec.name, text);
    }
    if (spec.kind == AttrKind::dtype) {
        for (int k = 0; k < kDTypes; ++k)
            if (std::strcmp(text, kDTypeName[k]) == 0) return attr.choice = k, Status::ok;
        return fail(Status::attr, spec.name, "%s='%.60s'; want the name of an element type, as 'float32'", spec.name,
                    text);
    }
    const size_t length = std::strlen(text);
    if (length > 0x7fffffff) return fail(Status::attr, spec.name, "%s has more than 2^31 bytes", spec.name);
    attr.text = text;
    attr.n = static_cast<int32_t>(length);
    return Status::ok;
}

Status attribute_from(const tw_attr& given, const AttrSpec& spec, Attr& attr) {
    attr.is_none = given.kind == TW_NONE;
    if (attr.is_none) return spec.none_ok ? Status::ok : wrong_kind(spec, given);
    const bool is_text = given.kind == TW_TEXT, is_int = given.kind == TW_INT;
    switch (spec.kind) {
        case AttrKind::integer:
            if (!is_int) break;
            attr.i = given.value.i;
            return Status::ok;
        case AttrKind::boolean:
            if (given.kind != TW_BOOL || (given.value.i != 0 && given.value.i != 1)) break;
            attr.i = given.value.i;
            return Status::ok;
        case AttrKind::real:
            if (!is_int && given.kind != TW_REAL) break;
            attr.f = is_int ? static_cast<double>(given.value.i) : given.value.f;
            return Status::ok;
        case AttrKind::integers:
        case AttrKind::axes:
            if (!is_int && given.kind != TW_INTS) break;
            return numbers_from(given, spec, attr);
        case AttrKind::padding:
            if (is_text) return text_from(given, spec, attr);
            if (!is_int && given.kind != TW_INTS && given.kind != TW_PAIRS) break;
            return numbers_from(given, spec, attr);
        case AttrKind::choice:
        case AttrKind::dtype:
        case AttrKind::text:
            if (!is_text) break;
            return text_from(given, spec, attr);
    }
    return wrong_kind(spec, given);
}

}  // namespace

Status read_attributes(const OpDef& def, const tw_job& job, Attr* attrs) {
    if (job.n_attrs < 0 || (job.n_attrs > 0 && !job.attrs))
        return fail(kBadArgument, "", "n_attrs=%d with attrs=%p; want as many attributes as it says", job.n_attrs,
                    static_cast<const void*>(job.attrs));
    uint32_t seen = 0;
    for (int k = 0; k < job.n_attrs; ++k) {
        const tw_attr& given = job.attrs[k];
        if (!given.name) return fail(kBadArgument, "", "attribute %d has no name", k);
        int at = 0;
        while (at < def.n_attrs && !same_text(def.attrs[at].name, given.name)) ++at;
        if (at == def.n_attrs)
            return fail(Status::attr, "", "unknown attribute '%.40s'; tw_op lists those of %s", given.name, def.name);
        if (seen & (1u << at)) return fail(Status::attr, given.name, "%.40s is given twice", given.name);
        seen |= 1u << at;
        TW_TRY(attribute_from(given, def.attrs[at], attrs[at]));
    }
    for (int i = 0; i < def.n_attrs; ++i) {
        if (seen & (1u << i)) continue;
        const AttrSpec& spec = def.attrs[i];
        if (spec.required)
            return fail(Status::attr, spec.name, "%s is missing; want one of kind %s", spec.name, kind_text(spec.kind));
        attrs[i] = default_of(spec);
    }
    return Status::ok;
}

}  // namespace tw
