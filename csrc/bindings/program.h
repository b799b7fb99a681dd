// A compiled graph on the CPU: kernel calls on places in one arena, run one after the other without entering Python.
#pragma once
#include <pybind11/pybind11.h>

namespace tw::bindings {

void init_program(pybind11::module_& module);

}  // namespace tw::bindings
