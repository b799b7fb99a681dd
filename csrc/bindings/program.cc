#include "bindings/program.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/exchange.h"
#include "bindings/foreign.h"
#include "bindings/invoke.h"
#include "bindings/raise.h"
#include "core/isa.h"
#include "core/memory.h"
#include "core/number.h"
#include "core/parallel.h"
#include "core/profile.h"

namespace tw::bindings {
namespace {

// Where the memory of a value is: at a byte offset of the arena, of what is fed, of what is given back, or of a constant.
enum class Kind : int { arena, input, output, constant };

struct Place {
    View view;  // data is null, but a constant's that steps read
    Kind kind;
    int64_t index;  // which input or output
    int64_t offset;
};

struct Step {
    const OpDef* def = nullptr;  // null: `foreign` or else `function` computes it, a Python callable on arrays
    const Foreign* foreign = nullptr;
    py::object function;
    py::object attributes;     // what texts among the attributes point into
    std::deque<std::string> texts;  // resolved ones
    std::vector<int64_t> in;   // places; -1: not given; -2 - k: number k of the program
    std::vector<int64_t> out;  // -1: nobody takes it
    std::vector<int64_t> alone;  // operands that run does not read where they are packed
    std::vector<Attr> attr;
    std::vector<Attr> unresolved;  // of a step some of whose attributes are given to each run
    void* packed = nullptr;
    size_t packed_bytes = 0;
};

// An attribute that each run is given.
struct Setting {
    size_t step;
    int attr;
    size_t number;
};

// What one run writes to: the calls with the addresses of its arena in them. A second run at the same time has another.
struct Frame {
    std::vector<View> in, out;
    std::vector<Call> calls;
    std::deque<std::vector<Attr>> attr;  // of steps with settings
    struct Patch {
        View* view;
        const Place* place;
    };
    std::vector<Patch> patches;  // views whose address is the caller's
    char* arena = nullptr;
};

struct Timing {
    double seconds;
    ProfileRecord record;
};

// Where constants lie that were let go of: an address that nothing reads.
alignas(64) char g_gone[64];

bool same_shape(const View& a, const View& b) {
    return a.dtype == b.dtype && a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

// An array of the caller's, a tensor if there is an exchange, as a View if it is laid out as the program wants it.
bool fits(PyObject* array, const View& want, View& view, const Exchange* exchange = nullptr) {
    const bool tensor = exchange && is_tensor(*exchange, array);
    if (!tensor && !is_numpy(array)) return false;
    if (tensor ? !view_of(*exchange, array, view, "graph", "") : !view_of(array, view, "graph", "", nullptr))
        return PyErr_Clear(), false;
    return same_shape(view, want) && (is_contiguous(view) || numel(view) == 0);
}

bool apart(const View& a, const View& b) {
    const Extent x = extent_of(a), y = extent_of(b);
    return x.high <= y.low || y.high <= x.low;
}

[[noreturn]] void rethrow() { throw py::error_already_set(); }

class Program {
public:
    // values: (shape, dtype, strides in elements, kind, index, byte offset); constants: functions that return an array each,
    // called once; inputs, outputs: the values that are fed and given back;
    // steps: (op name or callable, operands, attributes, results, settings, alone), an operand being a value's number, a
    // float or None, a result one too or -1 where nobody takes it, settings the attributes that each run is given,
    // {attribute: its place among the run's numbers}, and alone the operands that a run does not read once they are packed.
    Program(const py::list& values, const py::list& constants, const py::list& inputs, const py::list& outputs,
            const py::list& steps, int64_t arena_bytes)
        : tier_(active_tier()), arena_bytes_(static_cast<size_t>(arena_bytes)) {
        for (const auto& row : values) add_place(py::cast<py::tuple>(row));
        for (const auto& i : inputs) inputs_.push_back(i.cast<int64_t>());
        for (const auto& i : outputs) outputs_.push_back(i.cast<int64_t>());
        for (const auto& row : steps) add_step(py::cast<py::tuple>(row));
        place_constants(constants);
    }

    ~Program() {
        for (Step& s : steps_)
            if (s.packed) pool_give(s.packed, s.packed_bytes);
        for (auto& f : frames_)
            if (f->arena) pool_give(f->arena, arena_bytes_);
    }
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    // The results as a tuple, or None if an array is not laid out as the program needs it; then nothing was written. With
    // a type of tensors, those are taken too and the results are some.
    py::object run(const py::tuple& arrays, const py::object& outs, const std::vector<double>& numbers,
                   std::vector<Timing>* times, const py::object& tensors = py::none()) {
        if (arrays.size() != inputs_.size()) return py::none();
        const Exchange* exchange = nullptr;
        if (!tensors.is_none() && !(exchange = exchange_with(tensors))) return py::none();
        std::vector<View> fed(inputs_.size()), given(outputs_.size());
        for (size_t i = 0; i < inputs_.size(); ++i)
            if (!fits(PyTuple_GET_ITEM(arrays.ptr(), i), place(inputs_[i]).view, fed[i], exchange)) return py::none();
        py::tuple results(outputs_.size());
        if (!take_outputs(outs, fed, given, results, exchange)) return py::none();
        std::unique_ptr<Frame> frame = take_frame();
        for (const Frame::Patch& p : frame->patches) {
            const auto& bases = p.place->kind == Kind::input ? fed : given;
            p.view->data = static_cast<char*>(bases[static_cast<size_t>(p.place->index)].data) + p.place->offset;
        }
        size_t failed = 0;
        Status status;
        try {
            status = set_attributes(*frame, numbers, failed);
            if (status == Status::ok) status = run_steps(*frame, arrays, failed, times);
        } catch (...) {
            frames_.push_back(std::move(frame));
            throw;
        }
        frames_.push_back(std::move(frame));
        if (status != Status::ok) raise_status(status, steps_[failed].def->name), rethrow();
        return results;
    }

    py::list timed(const py::tuple& arrays, const std::vector<double>& numbers) {
        std::vector<Timing> times;
        struct Recording {
            Recording() { profile_begin(); }
            ~Recording() { profile_end(); }
        };
        py::object results;
        {
            const Recording recording;
            results = run(arrays, py::none(), numbers, &times);
        }
        py::list rows;
        if (results.is_none()) return rows;
        for (const Timing& t : times) rows.append(py::make_tuple(t.seconds, t.record.kernel, t.record.threads));
        return rows;
    }

    size_t packed_bytes() const {
        size_t sum = 0;
        for (const Step& s : steps_) sum += s.packed_bytes;
        return sum;
    }
    size_t arena_bytes() const { return arena_bytes_; }

    // The constants, by index, that only packed weights are left of.
    py::list released() const {
        py::list found;
        for (size_t i = 0; i < constants_.size(); ++i)
            if (constants_[i].is_none()) found.append(i);
        return found;
    }
    const char* tier() const { return tier_name(tier_); }

private:
    const Place& place(int64_t i) const { return places_.at(static_cast<size_t>(i)); }

    void add_place(const py::tuple& row) {
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

    void add_step(const py::tuple& row) {
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

    void add_settings(Step& s, const py::dict& settings) {
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

    // Puts the numbers of a run into its own attributes, and checks these by the shape rule.
    Status set_attributes(Frame& frame, const std::vector<double>& numbers, size_t& failed) {
        for (size_t at = 0; at < settings_.size();) {
            const Step& s = steps_[failed = settings_[at].step];
            Call& call = frame.calls[failed];
            std::copy(s.unresolved.begin(), s.unresolved.end(), call.attr);
            for (; at < settings_.size() && settings_[at].step == failed; ++at) {
                Attr& attr = call.attr[settings_[at].attr];
                const double number = numbers.at(settings_[at].number);
                attr.is_none = false;
                attr.f = number;
                if (s.def->attrs[settings_[at].attr].kind == AttrKind::integer) attr.i = static_cast<int64_t>(number);
            }
            Inferred inferred;
            if (const Status status = s.def->infer(call, inferred); status != Status::ok) return status;
            for (int i = 0; i < s.def->n_attrs; ++i)
                if (s.def->attrs[i].kind == AttrKind::text) call.attr[i] = s.attr[static_cast<size_t>(i)];
        }
        return Status::ok;
    }

    // Numbers take the dtype of the first array among the operands.
    void add_numbers(const Step& s, const std::vector<double>& numbers) {
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

    void read_attributes(const Face& face, Step& s) {
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

    // Checks the step by the op's shape rule, and resolves the attributes.
    void resolve(Step& s) {
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
            if (s.out[i] >= 0 && !same_shape(inferred.out[i], place(s.out[i]).view))
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

    bool is_constant(int64_t i) const { return i >= 0 && place(i).kind == Kind::constant; }

    // Takes the constants, a step at a time, packs what the step packs, and lets go of those that nothing else reads: of
    // weights one step's alone are there in both forms.
    void place_constants(const py::list& constants) {
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

    // Packs the constants of a step, and says which operands it reads no more then: those that packed_size counts.
    std::vector<bool> pack(Step& s) {
        if (!s.def || !s.def->packed_size) return {};
        std::vector<View> fixed(kMaxOperands), out;
        std::vector<Attr> attr = s.attr;
        for (View& v : fixed) v.dtype = DType::none;
        if (s.in[0] >= 0) fixed[0] = place(s.in[0]).view;
        for (size_t i = 0; i < s.in.size(); ++i)
            if (is_constant(s.in[i])) fixed[i] = place(s.in[i]).view;
        for (const int64_t i : s.out) out.push_back(i < 0 ? absent() : place(i).view);
        const Call job{
            s.def,       fixed.data(), static_cast<int>(s.in.size()), out.data(), static_cast<int>(out.size()),
            attr.data(), nullptr};
        const int64_t bytes = s.def->packed_size(job);
        if (bytes <= 0) return {};
        s.packed = pool_take(static_cast<size_t>(bytes));
        if (!s.packed) throw std::bad_alloc();
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

    static View absent() {
        View v{};
        v.dtype = DType::none;
        return v;
    }

    void views_of(const Step& s, std::vector<View>& in) const {
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

    std::unique_ptr<Frame> take_frame() {
        if (!frames_.empty()) {
            std::unique_ptr<Frame> frame = std::move(frames_.back());
            frames_.pop_back();
            return frame;
        }
        auto frame = std::make_unique<Frame>();
        if (arena_bytes_ > 0 && !(frame->arena = static_cast<char*>(pool_take(arena_bytes_)))) throw std::bad_alloc();
        for (const Step& s : steps_) {
            views_of(s, frame->in);
            for (const int64_t i : s.out) frame->out.push_back(i < 0 ? absent() : place(i).view);
        }
        View *in = frame->in.data(), *out = frame->out.data();
        for (Step& s : steps_) {
            for (const int64_t i : s.in) locate(*frame, in++, i);
            for (const int64_t i : s.out) locate(*frame, out++, i);
            const auto n_in = static_cast<int>(s.in.size()), n_out = static_cast<int>(s.out.size());
            Attr* const attr = s.unresolved.empty() ? s.attr.data() : frame->attr.emplace_back(s.attr).data();
            frame->calls.push_back({s.def, in - n_in, n_in, out - n_out, n_out, attr, s.packed});
        }
        return frame;
    }

    void locate(Frame& frame, View* view, int64_t i) {
        if (i < 0) return;
        const Place& p = place(i);
        if (p.kind == Kind::arena) view->data = frame.arena + p.offset;
        if (p.kind == Kind::input || p.kind == Kind::output) frame.patches.push_back({view, &p});
    }

    // The exchange of a type of tensors, null if it shows none.
    const Exchange* exchange_with(const py::object& tensors) {
        if (!tensors_.is(tensors)) {
            if (!PyType_Check(tensors.ptr()) || !exchange_of(reinterpret_cast<PyTypeObject*>(tensors.ptr()), exchange_))
                return nullptr;
            tensors_ = tensors;
        }
        return &exchange_;
    }

    bool take_outputs(const py::object& outs, const std::vector<View>& fed, std::vector<View>& given,
                      py::tuple& results, const Exchange* exchange) {
        if (!outs.is_none() && (!PyTuple_Check(outs.ptr()) || py::len(outs) != outputs_.size())) return false;
        for (size_t i = 0; i < outputs_.size(); ++i) {
            given[i] = place(outputs_[i]).view;
            if (outs.is_none()) {
                PyObject* array = exchange ? allocate(*exchange, given[i], "graph") : allocate(given[i], "graph");
                if (!array) rethrow();
                results[i] = py::reinterpret_steal<py::object>(array);
                continue;
            }
            PyObject* array = PyTuple_GET_ITEM(outs.ptr(), i);
            View view;
            if (!fits(array, given[i], view) || !is_writeable(array)) return false;
            for (const View& other : fed)
                if (!apart(view, other)) return false;
            for (size_t j = 0; j < i; ++j)
                if (!apart(view, given[j])) return false;
            given[i] = view;
            results[i] = py::reinterpret_borrow<py::object>(array);
        }
        return true;
    }

    Status run_steps(Frame& frame, const py::tuple& arrays, size_t& failed, std::vector<Timing>* times) {
        const bool release = work_ > kReleaseWork;
        PyThreadState* state = nullptr;
        if (release) {
            clear_interrupted();
            state = PyEval_SaveThread();
        }
        const bool recorded = profile_on();
        Status status = Status::ok;
        bool raised = false;
        int32_t code = 0;  // of a C function
        for (size_t i = 0; i < steps_.size() && status == Status::ok && !raised && code == 0; ++i) {
            const Step& s = steps_[i];
            failed = i;
            const int64_t begin = recorded ? monotonic_ns() : 0;
            if (s.def) {
                status = s.def->run(frame.calls[i]);
                if (release && interrupted()) status = Status::interrupted;
            } else if (s.foreign) {
                const Call& call = frame.calls[i];
                code = s.foreign->run(call.in, call.n_in, call.out, call.n_out);
            } else {
                raised = !call_python(s, frame.calls[i], arrays);
            }
            if (!recorded) continue;
            const int64_t spent = monotonic_ns() - begin;
            if (s.def) profile_add(s.def->name, tier_name(tier_), spent);
            if (!times) continue;
            times->push_back({static_cast<double>(spent) * 1e-9, {}});
            if (s.def) profile_get(profile_count() - 1, times->back().record);
        }
        if (release) PyEval_RestoreThread(state);
        if (code != 0) steps_[failed].foreign->raise_failed(code);
        if (raised || code != 0) rethrow();
        return status;
    }

    // function(inputs, outputs), arrays over the run's own memory; what it raises stays set.
    bool call_python(const Step& s, const Call& call, const py::tuple& arrays) {
        const PyGILState_STATE gil = PyGILState_Ensure();
        bool good = false;
        try {
            py::list in, out;
            for (int i = 0; i < call.n_in; ++i)
                in.append(given(call.in[i]) ? seen(call.in[i], arrays, false) : py::object(py::none()));
            for (int i = 0; i < call.n_out; ++i) out.append(seen(call.out[i], arrays, true));
            PyObject* result = PyObject_CallFunctionObjArgs(s.function.ptr(), in.ptr(), out.ptr(), nullptr);
            good = result != nullptr;
            Py_XDECREF(result);
        } catch (py::error_already_set& e) {
            e.restore();
        }
        PyGILState_Release(gil);
        return good;
    }

    py::object seen(const View& view, const py::tuple& arrays, bool writeable) {
        // Whatever the function keeps of its arrays keeps what they lie in.
        PyObject* owner = PyTuple_Pack(2, py::cast(this, py::return_value_policy::reference).ptr(), arrays.ptr());
        PyObject* array = owner ? wrap(view, owner, writeable) : nullptr;
        if (!array) rethrow();
        return py::reinterpret_steal<py::object>(array);
    }

    struct Number {
        double slot;
        DType dtype;
    };
    static constexpr double kReleaseWork = 40000;  // operations from which dropping the GIL pays (about 10 us)

    Tier tier_;
    Exchange exchange_{};
    py::object tensors_ = py::none();  // the type whose exchange that is
    std::vector<py::object> constants_;  // None: let go of
    std::vector<Place> places_;
    std::vector<int64_t> inputs_, outputs_;
    std::deque<Number> numbers_;
    std::deque<Step> steps_;
    std::vector<Setting> settings_;  // by step
    std::vector<std::unique_ptr<Frame>> frames_;  // of runs that are over, under the GIL
    size_t arena_bytes_;
    double work_ = 0;
};

}  // namespace

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
