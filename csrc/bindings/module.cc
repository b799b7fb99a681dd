// The Python module: the two callable types, introspection of the op tables, and the process-wide settings.
#include <pybind11/pybind11.h>

#include "bindings/arrays.h"
#include "bindings/attributes.h"
#include "bindings/callables.h"
#include "bindings/dlpack.h"
#include "bindings/foreign.h"
#include "bindings/invoke.h"
#include "bindings/lines.h"
#include "bindings/peak.h"
#include "bindings/program.h"
#include "bindings/raise.h"
#include "core/memory.h"
#include "core/op_table.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "core/tile_kernels.h"

namespace tw::bindings {
namespace {

py::object steal(PyObject* object) {
    if (!object) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(object);
}

void check(Status status, const char* op) {
    if (status == Status::ok) return;
    raise_status(status, op);
    throw py::error_already_set();
}

// Operands as a list and attributes as a dict, the form of every call that is not on the fast path.
struct Unpacked {
    Arguments arguments{};
    const Face* face;

    Unpacked(const py::object& name, const py::list& operands, const py::dict& attrs) : face(face_named(name.ptr())) {
        if (!face) throw py::error_already_set();
        PyObject* values[kMaxOperands + kMaxAttrs + 2];
        const auto n = static_cast<Py_ssize_t>(operands.size());
        if (n > kMaxOperands || attrs.size() > kMaxAttrs + 1) throw py::value_error("too many arguments");
        for (Py_ssize_t i = 0; i < n; ++i) values[i] = PyList_GET_ITEM(operands.ptr(), i);
        py::tuple names(attrs.size());
        size_t k = 0;
        for (auto item : attrs) {
            names[k] = item.first;
            values[static_cast<size_t>(n) + k++] = item.second.ptr();
        }
        if (bind(*face, values, n, names.ptr(), arguments) == Binding::failed) throw py::error_already_set();
    }
};

py::object call(const py::object& name, const py::list& operands, const py::dict& attrs) {
    const Unpacked u(name, operands, attrs);
    return steal(invoke(*u.face, *op_table(active_tier(), u.face->id), u.arguments, nullptr));
}

py::object infer(const py::object& name, const py::list& operands, const py::dict& attrs) {
    const Unpacked u(name, operands, attrs);
    return steal(infer_only(*u.face, u.arguments));
}

const char* kind_name(AttrKind kind) {
    constexpr const char* names[] = {"integer", "real",    "boolean", "choice", "integers",
                                     "axes",    "padding", "dtype",   "text"};
    return names[static_cast<int>(kind)];
}

const char* role_name(Role role) {
    constexpr const char* names[] = {"required", "optional", "inout", "optional inout", "variadic"};
    return names[static_cast<int>(role)];
}

py::dict op_spec(const py::object& name) {
    const Face* face = face_named(name.ptr());
    if (!face) throw py::error_already_set();
    const OpDef& def = *face->def;
    py::list operands, attrs;
    for (int i = 0; i < def.n_operands; ++i)
        operands.append(py::make_tuple(def.operands[i].name, role_name(def.operands[i].role)));
    for (int i = 0; i < def.n_attrs; ++i) {
        const AttrSpec& spec = def.attrs[i];
        py::dict entry;
        entry["name"] = spec.name;
        entry["kind"] = kind_name(spec.kind);
        entry["required"] = spec.required;
        entry["none_ok"] = spec.none_ok;
        entry["choices"] = spec.choices ? py::str(spec.choices).attr("split")("|") : py::object(py::none());
        if (!spec.required) entry["default"] = steal(attribute_object(default_of(spec), spec));
        attrs.append(entry);
    }
    py::dict spec;
    spec["operands"] = operands;
    spec["attrs"] = attrs;
    spec["elementwise"] = (def.flags & kElementwise) != 0;
    spec["out_is_last"] = (def.flags & kOutIsLast) != 0;
    spec["leading_text"] = (def.flags & kLeadingText) != 0;
    return spec;
}

py::list op_names() {
    py::list names;
    for (int k = 0; k < kOps; ++k) names.append(op_table(kLeastTier, static_cast<OpId>(k))->name);
    return names;
}

py::list tiers() {
    py::list all;
    for (int k = 0; k < kTiers; ++k) {
        const auto tier = static_cast<Tier>(k);
        all.append(py::make_tuple(tier_name(tier), tier_runs(tier)));
    }
    return all;
}

py::list profile_records(int64_t first) {
    py::list records;
    const int64_t end = profile_count();
    for (int64_t i = first; i < end; ++i) {
        ProfileRecord r;
        if (!profile_get(i, r)) continue;
        records.append(py::make_tuple(r.op, r.kernel, r.tier, r.threads, static_cast<double>(r.nanoseconds) * 1e-9));
    }
    return records;
}

Tier tier_named(const py::object& name) {
    if (name.is_none()) return active_tier();
    const auto wanted = name.cast<std::string>();
    for (int k = 0; k < kTiers; ++k) {
        const auto tier = static_cast<Tier>(k);
        if (wanted == tier_name(tier) && tier_runs(tier)) return tier;
    }
    throw py::value_error("peak: tier '" + wanted + "' does not run here; want one of tiers()");
}

py::tuple peak(const std::string& kind, double seconds, int threads, int64_t bytes, const py::object& tier) {
    int k = 0;
    while (k < static_cast<int>(PeakKind::count) && kind != kPeakKinds[k]) ++k;
    if (k == static_cast<int>(PeakKind::count)) throw py::value_error("peak: there is no loop called '" + kind + "'");
    const bool moves = k >= static_cast<int>(PeakKind::read);
    if (!(seconds >= 0 && seconds <= 60) || threads < 1 || threads > 4096 ||
        (moves && (bytes < 4096 || bytes > (int64_t{1} << 40))))
        throw py::value_error(
            "peak: want 0 <= seconds <= 60, 1 <= threads <= 4096, and bytes >= 4096 for a memory loop");
    const Tier chosen = tier_named(tier);
    PeakRun run;
    {
        py::gil_scoped_release release;
        run = run_peak(chosen, static_cast<PeakKind>(k), seconds, threads, bytes);
    }
    if (run.seconds < 0) throw std::bad_alloc();
    return py::make_tuple(run.operations, run.seconds);
}

bool poll_signals() {
    const PyGILState_STATE gil = PyGILState_Ensure();
    const bool stop = PyErr_CheckSignals() != 0;  // acts on the main thread only
    PyGILState_Release(gil);
    return stop;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "tilework's compiled core: op tables, the call path, threads, tiers and memory.";
    if (!init_arrays() || !init_callables(m.ptr())) throw py::error_already_set();
    set_interrupt_poll(poll_signals);
    init_foreign(m);
    init_program(m);

    m.def("call", &call, "Runs an op by name: operands in order (None where not given), attributes and out by name.");
    m.def("infer", &infer,
          "Shapes and dtypes of the results, and the resolved attributes; operands need only shape and dtype.");
    m.def("op_spec", &op_spec, "Operands and attributes of an op as its C++ table states them.");
    m.def("op_names", &op_names, "Every op of the table, in order.");
    m.def("from_dlpack", [](const py::object& producer, const char* op, const char* argument) {
        return steal(from_dlpack(producer.ptr(), op, argument));
    }, py::arg("producer"), py::arg("op") = "from_dlpack", py::arg("argument") = "x");
    m.def("to_dlpack", [](const py::object& array) { return steal(to_dlpack(array.ptr())); });

    m.def("tiers", &tiers, "(name, whether this CPU runs it) of every tier built, worst first.");
    m.def("isa", [] { return tier_name(active_tier()); });
    m.def("tiles_take_float16", &tiles_take_f16, "Whether products of the active tier take float16 in tiles as it is.");
    m.def("isa_error", [] { return tier_error(); });
    m.def("set_isa", [](const char* name) { check(set_tier(name), "set_isa"); });
    m.def("num_threads", &num_threads);
    m.def("set_num_threads", &set_num_threads);
    m.def("set_thread_limit", &set_thread_limit);
    m.def("thread_count_reason", &thread_count_reason);
    m.def("thread_count_error", &thread_count_error);
    m.def("cache_sizes", [] {
        const CacheSizes c = cache_sizes();
        return py::make_tuple(c.l1d, c.l2, c.l3);
    });
    m.def("profile_begin", [] { return profile_begin(), profile_count(); });
    m.def("profile_end", &profile_end);
    m.def("profile_records", &profile_records);
    m.def("pool_stats", [] {
        const PoolStats s = pool_stats();
        return py::make_tuple(s.live_bytes, s.live_blocks, s.cached_bytes);
    });
    m.def("trim", &pool_trim);
    m.def("peak", &peak, py::arg("kind"), py::arg("seconds"), py::arg("threads") = 1, py::arg("bytes") = 0,
          py::arg("tier") = py::none(),
          "Runs a peak loop: (operations, or bytes read and written, of all threads; seconds).");
    define_lines(m);
    m.attr("compiler") = __VERSION__;
    m.attr("flags") = TW_BUILT;
}

}  // namespace tw::bindings
