#include "bindings/lines.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstring>

#include "bindings/arrays.h"
#include "core/parallel.h"
#include "lines/fit.h"

namespace tw::bindings {
namespace {

// Planes that edge_ways wrote.
lines::Planes planes_of(const py::object& ways, const py::object& pixels) {
    View views[2];
    const py::object* const arrays[] = {&ways, &pixels};
    for (int i = 0; i < 2; ++i) {
        if (!is_numpy(arrays[i]->ptr()) || !view_of(arrays[i]->ptr(), views[i], "lines", "ways", nullptr)) {
            if (PyErr_Occurred()) throw py::error_already_set();
            throw py::type_error("lines: want numpy arrays");
        }
        const int64_t* const shape = views[i].shape;
        const bool good = i == 0 ? views[0].ndim == 2
                                 : views[1].ndim == 3 && shape[1] == views[0].shape[0] + lines::kFrameRows &&
                                       shape[2] == views[0].shape[1] + lines::kFrameColumns;
        if (!good || !is_contiguous(views[i]) || views[i].dtype != DType::u8 || numel(views[0]) > INT32_MAX / 2)
            throw py::value_error("lines: want ways (H, W) and pixels (C, H + 2, W + 3), uint8, of < 2^30 pixels");
    }
    const int64_t row = views[1].shape[2], channel = views[1].shape[1] * row;
    if (channel > INT32_MAX) throw py::value_error("lines: want pixels of < 2^31 bytes a channel");
    return {views[0].as<uint8_t>(),
            {views[1].as<uint8_t>() + row + 1, row, channel, views[1].shape[0]},
            views[0].shape[0],
            views[0].shape[1]};
}

template <class T>
py::array copied(const T* from, std::vector<py::ssize_t> shape, const char* dtype) {
    py::array to(py::dtype(dtype), std::move(shape));
    if (to.nbytes()) std::memcpy(to.mutable_data(), from, static_cast<size_t>(to.nbytes()));
    return to;
}

int auto_threshold(const py::object& ways, const py::object& pixels) {
    return lines::auto_threshold(planes_of(ways, pixels));
}

py::tuple draw_chains(const py::object& ways, const py::object& pixels, int64_t interval, int64_t least) {
    const lines::Planes planes = planes_of(ways, pixels);
    const lines::Chains chains = [&] {
        py::gil_scoped_release release;
        return lines::draw_chains(planes, {interval, least, 0, planes.height});
    }();
    return py::make_tuple(copied(chains.pixel.data(), {static_cast<py::ssize_t>(chains.start.back()), 2}, "int32"),
                          copied(chains.start.data(), {static_cast<py::ssize_t>(chains.start.size())}, "int64"));
}

py::tuple find_lines(const py::object& ways, const py::object& pixels, int threshold, int64_t interval,
                     double least_length, double fit_error, int64_t gap, bool validate, double log_eps, bool subpixel,
                     int64_t most) {
    const lines::Planes planes = planes_of(ways, pixels);
    std::vector<lines::Line> found;
    {
        py::gil_scoped_release release;
        clear_interrupted();
        found =
            lines::find_lines(planes, {threshold, interval, least_length, fit_error, gap, validate, log_eps, subpixel});
    }
    if (PyErr_Occurred() || PyErr_CheckSignals() != 0) throw py::error_already_set();
    const auto n = static_cast<py::ssize_t>(std::min(static_cast<int64_t>(found.size()), most));
    py::array_t<float> segments({n, py::ssize_t{4}}), width(n), nfa(n), strength(n);
    float *const ends = segments.mutable_data(), *const widths = width.mutable_data();
    float *const sure = nfa.mutable_data(), *const strong = strength.mutable_data();
    for (py::ssize_t i = 0; i < n; ++i) {
        const lines::Line& l = found[static_cast<size_t>(i)];
        ends[4 * i] = l.x1, ends[4 * i + 1] = l.y1, ends[4 * i + 2] = l.x2, ends[4 * i + 3] = l.y2;
        widths[i] = l.width, sure[i] = l.log_nfa, strong[i] = l.strength;
    }
    return py::make_tuple(segments, width, nfa, strength);
}

}  // namespace

void define_lines(py::module_& m) {
    m.def("auto_threshold", &auto_threshold, py::arg("ways"), py::arg("pixels"),
          "The least |dx| + |dy| of an edge that noise asks for.");
    m.def("draw_chains", &draw_chains, py::arg("ways"), py::arg("pixels"), py::kw_only(), py::arg("interval"),
          py::arg("least"), "Chains of edge pixels: x, y of each pixel, and where each chain starts.");
    m.def("find_lines", &find_lines, py::arg("ways"), py::arg("pixels"), py::kw_only(), py::arg("threshold"),
          py::arg("interval"), py::arg("least_length"), py::arg("fit_error"), py::arg("gap"), py::arg("validate"),
          py::arg("log_eps"), py::arg("subpixel"), py::arg("most"),
          "Ends (N, 4), widths, -log10 of the false alarms and strengths of the surest lines.");
}

}  // namespace tw::bindings
