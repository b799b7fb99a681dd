#include "bindings/lines.h"

#include <pybind11/numpy.h>

#include <cstring>

#include "bindings/arrays.h"
#include "core/parallel.h"
#include "lines/fit.h"

namespace tw::bindings {
namespace {

// Planes that edge_gradients wrote.
lines::Planes planes_of(const py::object& ways, const py::object& gradient) {
    View views[2];
    const py::object* const arrays[] = {&ways, &gradient};
    for (int i = 0; i < 2; ++i) {
        if (!is_numpy(arrays[i]->ptr()) || !view_of(arrays[i]->ptr(), views[i], "lines", "ways", nullptr)) {
            if (PyErr_Occurred()) throw py::error_already_set();
            throw py::type_error("lines: want numpy arrays");
        }
        const bool same = views[i].ndim == 2 + i && views[i].shape[0] == views[0].shape[0] &&
                          views[i].shape[1] == views[0].shape[1] && (i == 0 || views[i].shape[2] == 2);
        if (!same || !is_contiguous(views[i]) || views[i].dtype != (i == 0 ? DType::u8 : DType::i16) ||
            numel(views[i]) > INT32_MAX)
            throw py::value_error("lines: want ways (H, W), uint8, and gradient (H, W, 2), int16, of < 2^30 pixels");
    }
    return {views[0].as<uint8_t>(), views[1].as<int16_t>(), views[0].shape[0], views[0].shape[1]};
}

template <class T>
py::array copied(const T* from, std::vector<py::ssize_t> shape, const char* dtype) {
    py::array to(py::dtype(dtype), std::move(shape));
    if (to.nbytes()) std::memcpy(to.mutable_data(), from, static_cast<size_t>(to.nbytes()));
    return to;
}

int auto_threshold(const py::object& ways, const py::object& gradient) {
    return lines::auto_threshold(planes_of(ways, gradient));
}

py::tuple draw_chains(const py::object& ways, const py::object& gradient, int64_t interval, int64_t least) {
    const lines::Planes planes = planes_of(ways, gradient);
    const lines::Chains chains = [&] {
        py::gil_scoped_release release;
        return lines::draw_chains(planes, {interval, least, 0, planes.height});
    }();
    return py::make_tuple(copied(chains.pixel.data(), {static_cast<py::ssize_t>(chains.start.back()), 2}, "int32"),
                          copied(chains.start.data(), {static_cast<py::ssize_t>(chains.start.size())}, "int64"));
}

py::array find_lines(const py::object& ways, const py::object& gradient, int threshold, int64_t interval,
                     double least_length, double fit_error, int64_t gap, bool validate, double log_eps, bool subpixel) {
    const lines::Planes planes = planes_of(ways, gradient);
    std::vector<lines::Line> found;
    {
        py::gil_scoped_release release;
        clear_interrupted();
        found =
            lines::find_lines(planes, {threshold, interval, least_length, fit_error, gap, validate, log_eps, subpixel});
    }
    if (PyErr_Occurred() || PyErr_CheckSignals() != 0) throw py::error_already_set();
    static_assert(sizeof(lines::Line) == 7 * sizeof(float));
    return copied(found.data(), {static_cast<py::ssize_t>(found.size()), 7}, "float32");
}

}  // namespace

void define_lines(py::module_& m) {
    m.def("auto_threshold", &auto_threshold, py::arg("ways"), py::arg("gradient"),
          "The least |dx| + |dy| of an edge that noise asks for.");
    m.def("draw_chains", &draw_chains, py::arg("ways"), py::arg("gradient"), py::kw_only(), py::arg("interval"),
          py::arg("least"), "Chains of edge pixels: x, y of each pixel, and where each chain starts.");
    m.def("find_lines", &find_lines, py::arg("ways"), py::arg("gradient"), py::kw_only(), py::arg("threshold"),
          py::arg("interval"), py::arg("least_length"), py::arg("fit_error"), py::arg("gap"), py::arg("validate"),
          py::arg("log_eps"), py::arg("subpixel"),
          "x1, y1, x2, y2, width, -log10 of the false alarms and strength of each line.");
}

}  // namespace tw::bindings
