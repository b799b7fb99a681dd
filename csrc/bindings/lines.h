// Chains and lines from the planes of edge_ways, for Python.
#pragma once
#include <pybind11/pybind11.h>

namespace tw::bindings {

void define_lines(pybind11::module_& m);

}  // namespace tw::bindings
