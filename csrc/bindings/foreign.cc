#include "bindings/foreign.h"

#include <pybind11/stl.h>

#include <utility>

#include "bindings/arrays.h"
#include "bindings/dlpack.h"
#include "bindings/raise.h"

namespace tw::bindings {

Foreign::Foreign(std::string name, uintptr_t address, std::vector<double> numbers)
    : name_(std::move(name)), function_(reinterpret_cast<tw_kernel>(address)), numbers_(std::move(numbers)) {}

int32_t Foreign::run(const View* in, int n_in, View* out, int n_out) const {
    DLTensor read[kMaxInputs], filled[kMaxOutputs];
    for (int i = 0; i < n_in; ++i) read[i] = tensor_of(const_cast<View&>(in[i]));
    for (int i = 0; i < n_out; ++i) filled[i] = tensor_of(out[i]);
    return function_(read, n_in, filled, n_out, numbers_.data(), static_cast<int32_t>(numbers_.size()));
}

void Foreign::raise_failed(int32_t code) const {
    raise("Error", name_.c_str(), "", "the C function returned %d; want 0", static_cast<int>(code));
}

namespace {

void views_of(const py::list& arrays, View* views, size_t most, const Foreign& f, bool written) {
    if (arrays.size() > most) throw py::value_error(f.name() + ": too many arrays");
    for (size_t i = 0; i < arrays.size(); ++i) {
        PyObject* const array = arrays[i].ptr();
        if (!is_numpy(array) || (written && !is_writeable(array))) throw py::type_error(f.name() + ": want arrays");
        if (!view_of(array, views[i], f.name().c_str(), "x", nullptr)) throw py::error_already_set();
    }
}

void call(const Foreign& f, const py::list& in, const py::list& out) {
    View read[kMaxInputs], filled[kMaxOutputs];
    views_of(in, read, kMaxInputs, f, false);
    views_of(out, filled, kMaxOutputs, f, true);
    int32_t code = 0;
    {
        const py::gil_scoped_release released;
        code = f.run(read, static_cast<int>(in.size()), filled, static_cast<int>(out.size()));
    }
    if (code == 0) return;
    f.raise_failed(code);
    throw py::error_already_set();
}

}  // namespace

void init_foreign(py::module_& module) {
    py::class_<Foreign>(module, "Foreign", "A C function on arrays: called with a list to read and a list to fill.")
        .def(py::init<std::string, uintptr_t, std::vector<double>>(), py::arg("name"), py::arg("address"),
             py::arg("numbers"))
        .def("__call__", call, py::arg("operands"), py::arg("results"));
}

}  // namespace tw::bindings
