#include "bindings/program.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/arrays.h"
#include "bindings/raise.h"

namespace tw::bindings {
namespace {

// Where constants lie that were let go of: an address that nothing reads.
alignas(64) char g_gone[64];

[[noreturn]] void rethrow() { throw py::error_already_set(); }

}  // namespace

Program::Program(const py::list& values, const py::list& constants, const py::list& inputs, const py::list& outputs,
                 const py::list& steps, int64_t arena_bytes)
    : tier_(active_tier()), arena_bytes_(static_cast<size_t>(arena_bytes)) {
    for (const auto& row : values) add_place(py::cast<py::tuple>(row));
    for (const auto& i : inputs) inputs_.push_back(i.cast<int64_t>());
    for (const auto& i : outputs) outputs_.push_back(i.cast<int64_t>());
    for (const auto& row : steps) add_step(py::cast<py::tuple>(row));
    place_constants(constants);
}

Program::~Program() {
    for (Step& s : steps_)
        if (s.packed) pool_give(s.packed, s.packed_bytes);
    for (auto& f : frames_)
        if (f->arena) pool_give(f->arena, arena_bytes_);
}

void Program::add_place(const py::tuple& row) {
    Place p{};
    const auto shape = row[0].cast<std::vector<int64_t>>(), strides = row[2].cast<std::vector<int64_t>>();
    p.view.dtype = dtype_from(row[1].ptr());
    if (p.view.dtype == DType::none) rethrow();
    p.view.ndim = static_cast<int32_t>(shape.size());
    if (shape.size() > kMaxDims) throw py::value_error("program: too many dimensions");
    std::copy(shape.begin(), shape.end(), p.view.shape);
    std::copy(strides.begin(), strides.end(), p.view.stride);
    p.kind = static_cast<Kind>(row[3].cast<int>());
    p.index = row[4].cast<int64_t>();
    p.offset = row[5].cast<int64_t>();
    places_.push_back(p);
}

void Program::add_step(const py::tuple& row) {
    steps_.emplace_back();
    Step& s = steps_.back();
    std::vector<double> numbers;
    for (const auto& operand : py::cast<py::list>(row[1])) {
        if (operand.is_none()) {
            s.in.push_back(-1);
        } else if (py::isinstance<py::float_>(operand)) {
            s.in.push_back(-2 - static_cast<int64_t>(numbers_.size() + numbers.size()));
            numbers.push_back(operand.cast<double>());
        } else {
            s.in.push_back(operand.cast<int64_t>());
        }
    }
    s.out = row[3].cast<std::vector<int64_t>>();
    s.alone = row[5].cast<std::vector<int64_t>>();
    s.attributes = row[2];
    if (!py::isinstance<py::str>(row[0])) {
        if (!numbers.empty()) throw py::value_error("program: a function takes a number; want arrays");
        s.function = row[0];
        if (py::isinstance<Foreign>(s.function)) s.foreign = s.function.cast<const Foreign*>();
        work_ += 1e9;  // of unknown length
        return;
    }
    add_numbers(s, numbers);
    const Face* face = face_named(py::object(row[0]).ptr());
    if (!face) rethrow();
    s.def = op_table(tier_, face->id);
    read_attributes(*face, s);
    add_settings(s, py::cast<py::dict>(row[4]));
    resolve(s);
}

void Program::add_settings(Step& s, const py::dict& settings) {
    for (const auto& item : settings) {
        const auto name = item.first.cast<std::string>();
        int at = s.def->n_attrs - 1;
        while (at >= 0 && name != s.def->attrs[at].name) --at;
        const AttrKind kind = at < 0 ? AttrKind::text : s.def->attrs[at].kind;
        if (kind != AttrKind::integer && kind != AttrKind::real)
            throw py::value_error("program: " + name + " of " + s.def->name + " is no number");
        settings_.push_back({steps_.size() - 1, at, item.second.cast<size_t>()});
        s.unresolved = s.attr;
    }
}

void Program::add_numbers(const Step& s, const std::vector<double>& numbers) {
    const auto first = std::find_if(s.in.begin(), s.in.end(), [](int64_t i) { return i >= 0; });
    for (const double value : numbers) {
        Number n{};
        n.dtype = first == s.in.end() ? DType::f32 : place(*first).view.dtype;
        if (is_integer(n.dtype))
            put_integer(static_cast<int64_t>(value), n.dtype, &n.slot);
        else
            put_number(value, n.dtype, &n.slot);
        numbers_.push_back(n);
    }
}

void Program::read_attributes(const Face& face, Step& s) {
    const py::dict attributes = s.attributes;
    std::vector<PyObject*> values;
    py::tuple names(attributes.size());
    size_t k = 0;
    for (auto item : attributes) {
        names[k++] = item.first;
        values.push_back(item.second.ptr());
    }
    Arguments arguments{};
    if (bind(face, values.data(), 0, names.ptr(), arguments) == Binding::failed) rethrow();
    s.attr.resize(static_cast<size_t>(face.def->n_attrs));
    if (!read_attributes_of(face, arguments, s.attr.data())) rethrow();
}

void Program::resolve(Step& s) {
    std::vector<View> in;
    views_of(s, in);
    Call call{s.def, in.data(), static_cast<int>(in.size()), nullptr, 0, s.attr.data(), nullptr};
    Inferred inferred;
    inferred.n_out = 0;
    inferred.flops = 0;
    if (const Status status = s.def->infer(call, inferred); status != Status::ok)
        raise_status(status, s.def->name), rethrow();
    if (static_cast<size_t>(inferred.n_out) != s.out.size()) throw py::value_error("program: results do not match");
    for (size_t i = 0; i < s.out.size(); ++i)
        if (s.out[i] >= 0 && !same_kind(inferred.out[i], place(s.out[i]).view))
            throw py::value_error("program: a result has another shape than the graph says");
    for (int i = 0; i < s.def->n_attrs; ++i) {
        Attr& attr = s.attr[static_cast<size_t>(i)];
        if (s.def->attrs[i].kind != AttrKind::text || attr.is_none) continue;
        attr.text = s.texts.emplace_back(attr.text, static_cast<size_t>(attr.n)).c_str();
    }
    work_ += inferred.flops;
    for (const View& v : in)
        if (given(v)) work_ += static_cast<double>(numel(v));
}

void Program::place_constants(const py::list& constants) {
    std::vector<std::vector<Place*>> places(constants.size());
    std::vector<int64_t> readers(constants.size());
    for (Place& p : places_)
        if (p.kind == Kind::constant) places[static_cast<size_t>(p.index)].push_back(&p);
    for (const Step& s : steps_)
        for (const int64_t i : s.in)
            if (is_constant(i)) ++readers[static_cast<size_t>(place(i).index)];
    constants_.assign(constants.size(), py::none());
    const auto read = [&](size_t c) {
        constants_[c] = constants[c]();
        View whole;
        if (!view_of(constants_[c].ptr(), whole, "graph", "constant", nullptr)) rethrow();
        for (Place* p : places[c]) p->view.data = static_cast<char*>(whole.data) + p->offset;
    };
    for (Step& s : steps_) {
        for (const int64_t i : s.in)
            if (is_constant(i) && !place(i).view.data) read(static_cast<size_t>(place(i).index));
        const std::vector<bool> replaced = pack(s);
        for (size_t i = 0; i < replaced.size(); ++i) {
            if (!replaced[i]) continue;
            const auto c = static_cast<size_t>(place(s.in[i]).index);
            if (--readers[c] > 0) continue;
            for (Place* p : places[c]) p->view.data = g_gone;
            constants_[c] = py::none();
        }
    }
}

std::vector<bool> Program::pack(Step& s) {
    if (!s.def || !s.def->packed_size) return {};
    std::vector<View> fixed(kMaxOperands), out;
    std::vector<Attr> attr = s.attr;
    for (View& v : fixed) v.dtype = DType::none;
    if (s.in[0] >= 0) fixed[0] = place(s.in[0]).view;
    for (size_t i = 0; i < s.in.size(); ++i)
        if (is_constant(s.in[i])) fixed[i] = place(s.in[i]).view;
    for (const int64_t i : s.out) out.push_back(i < 0 ? absent() : place(i).view);
    const Call job{s.def,       fixed.data(), static_cast<int>(s.in.size()), out.data(), static_cast<int>(out.size()),
                   attr.data(), nullptr};
    const int64_t bytes = s.def->packed_size(job);
    if (bytes <= 0) return {};
    s.packed = take(static_cast<size_t>(bytes), "packed weights");
    s.packed_bytes = static_cast<size_t>(bytes);
    s.def->pack(job, s.packed);
    std::vector<bool> replaced(s.in.size());
    for (size_t i = 0; i < s.in.size(); ++i) {
        const bool alone = std::find(s.alone.begin(), s.alone.end(), static_cast<int64_t>(i)) != s.alone.end();
        if (!alone || !is_constant(s.in[i]) || !is_contiguous(fixed[i])) continue;
        const View whole = fixed[i];
        fixed[i].dtype = DType::none;
        replaced[i] = s.def->packed_size(job) != bytes;
        fixed[i] = whole;
    }
    return replaced;
}

void Program::views_of(const Step& s, std::vector<View>& in) const {
    for (const int64_t i : s.in) {
        View v = absent();
        if (i >= 0) v = place(i).view;
        if (i <= -2) {
            const Number& n = numbers_[static_cast<size_t>(-2 - i)];
            v = View{const_cast<double*>(&n.slot), {}, {}, 0, n.dtype};
        }
        in.push_back(v);
    }
}

size_t Program::packed_bytes() const {
    size_t sum = 0;
    for (const Step& s : steps_) sum += s.packed_bytes;
    return sum;
}

py::list Program::released() const {
    py::list found;
    for (size_t i = 0; i < constants_.size(); ++i)
        if (constants_[i].is_none()) found.append(i);
    return found;
}

void init_program(py::module_& module) {
    py::class_<Program>(module, "Program", "A compiled graph: kernel calls on places in one arena.")
        .def(py::init<const py::list&, const py::list&, const py::list&, const py::list&, const py::list&, int64_t>(),
             py::arg("values"), py::arg("constants"), py::arg("inputs"), py::arg("outputs"), py::arg("steps"),
             py::arg("arena_bytes"))
        .def("run",
             [](Program& p, const py::tuple& arrays, const py::object& outs, const std::vector<double>& numbers,
                const py::object& tensors) { return p.run(arrays, outs, numbers, nullptr, tensors); },
             py::arg("arrays"), py::arg("outs") = py::none(), py::arg("numbers") = std::vector<double>(),
             py::arg("tensors") = py::none(),
             "Runs once: the results as a tuple, or None if an array is not contiguous or does not fit. With a type "
             "that "
             "shows __dlpack_c_exchange_api__, tensors of it are taken too, and the results are some.")
        .def("timed", &Program::timed, py::arg("arrays"), py::arg("numbers") = std::vector<double>(),
             "Runs once: (seconds, kernel, threads) of every step.")
        .def_property_readonly("packed_bytes", &Program::packed_bytes)
        .def_property_readonly("arena_bytes", &Program::arena_bytes)
        .def_property_readonly("released", &Program::released)
        .def_property_readonly("tier", &Program::tier);
}

}  // namespace tw::bindings
