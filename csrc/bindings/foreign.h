// A C function of the user's that computes a node of a graph: include/tilework/kernel.h has its type.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "core/types.h"
#include "include/tilework/kernel.h"

namespace tw::bindings {

class Foreign {
public:
    Foreign(std::string name, uintptr_t address, std::vector<double> numbers);

    // What the function returns: 0 where all is well.
    int32_t run(const View* in, int n_in, View* out, int n_out) const;
    void raise_failed(int32_t code) const;  // sets the Python error
    const std::string& name() const { return name_; }

private:
    std::string name_;
    tw_kernel function_;
    std::vector<double> numbers_;
};

void init_foreign(pybind11::module_& module);

}  // namespace tw::bindings
