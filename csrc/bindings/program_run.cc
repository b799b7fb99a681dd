// Running a program: frames of calls, one for each run at the same time, with the caller's addresses put into them.
#include <algorithm>

#include "bindings/arrays.h"
#include "bindings/program.h"
#include "bindings/raise.h"
#include "core/parallel.h"

namespace tw::bindings {
namespace {

[[noreturn]] void rethrow() { throw py::error_already_set(); }

// An array of the caller's, a tensor if there is an exchange, as a View if it is laid out as the program wants it.
bool fits(PyObject* array, const View& want, View& view, const Exchange* exchange = nullptr) {
    const bool tensor = exchange && is_tensor(*exchange, array);
    if (!tensor && !is_numpy(array)) return false;
    if (tensor ? !view_of(*exchange, array, view, "graph", "") : !view_of(array, view, "graph", "", nullptr))
        return PyErr_Clear(), false;
    return same_kind(view, want) && (is_contiguous(view) || numel(view) == 0);
}

bool apart(const View& a, const View& b) {
    const Extent x = extent_of(a), y = extent_of(b);
    return x.high <= y.low || y.high <= x.low;
}

}  // namespace

py::object Program::run(const py::tuple& arrays, const py::object& outs, const std::vector<double>& numbers,
                        std::vector<Timing>* times, const py::object& tensors) {
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

py::list Program::timed(const py::tuple& arrays, const std::vector<double>& numbers) {
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

Status Program::set_attributes(Frame& frame, const std::vector<double>& numbers, size_t& failed) {
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

char* Program::take(size_t bytes, const char* purpose) {
    void* const taken = pool_take(bytes);
    if (!taken) {
        raise("AllocationError", "graph", "",
              "no memory for the %zu bytes of %s; want a smaller graph, or a larger TILEWORK_MAX_ALLOC", bytes,
              purpose);
        rethrow();
    }
    return static_cast<char*>(taken);
}

std::unique_ptr<Program::Frame> Program::take_frame() {
    if (!frames_.empty()) {
        std::unique_ptr<Frame> frame = std::move(frames_.back());
        frames_.pop_back();
        return frame;
    }
    auto frame = std::make_unique<Frame>();
    if (arena_bytes_ > 0) frame->arena = take(arena_bytes_, "what a run keeps between its steps");
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

void Program::locate(Frame& frame, View* view, int64_t i) {
    if (i < 0) return;
    const Place& p = place(i);
    if (p.kind == Kind::arena) view->data = frame.arena + p.offset;
    if (p.kind == Kind::input || p.kind == Kind::output) frame.patches.push_back({view, &p});
}

const Exchange* Program::exchange_with(const py::object& tensors) {
    if (!tensors_.is(tensors)) {
        if (!PyType_Check(tensors.ptr()) || !exchange_of(reinterpret_cast<PyTypeObject*>(tensors.ptr()), exchange_))
            return nullptr;
        tensors_ = tensors;
    }
    return &exchange_;
}

bool Program::take_outputs(const py::object& outs, const std::vector<View>& fed, std::vector<View>& given,
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

Status Program::run_steps(Frame& frame, const py::tuple& arrays, size_t& failed, std::vector<Timing>* times) {
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

bool Program::call_python(const Step& s, const Call& call, const py::tuple& arrays) {
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

py::object Program::seen(const View& view, const py::tuple& arrays, bool writeable) {
    // Whatever the function keeps of its arrays keeps what they lie in.
    PyObject* owner = PyTuple_Pack(2, py::cast(this, py::return_value_policy::reference).ptr(), arrays.ptr());
    PyObject* array = owner ? wrap(view, owner, writeable) : nullptr;
    if (!array) rethrow();
    return py::reinterpret_steal<py::object>(array);
}

}  // namespace tw::bindings
