// A compiled graph on the CPU: kernel calls on places in one arena, run one after the other without entering Python.
// program.cc makes it of what graph/native.py gives, program_run.cc runs it.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "bindings/exchange.h"
#include "bindings/foreign.h"
#include "bindings/invoke.h"
#include "core/isa.h"
#include "core/memory.h"
#include "core/number.h"
#include "core/profile.h"

namespace tw::bindings {

namespace py = pybind11;

class Program {
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

public:
    // values: (shape, dtype, strides in elements, kind, index, byte offset); constants: functions that return an array each,
    // called once; inputs, outputs: the values that are fed and given back;
    // steps: (op name or callable, operands, attributes, results, settings, alone), an operand being a value's number, a
    // float or None, a result one too or -1 where nobody takes it, settings the attributes that each run is given,
    // {attribute: its place among the run's numbers}, and alone the operands that a run does not read once they are packed.
    Program(const py::list& values, const py::list& constants, const py::list& inputs, const py::list& outputs,
            const py::list& steps, int64_t arena_bytes);
    ~Program();
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    // The results as a tuple, or None if an array is not laid out as the program needs it; then nothing was written. With
    // a type of tensors, those are taken too and the results are some.
    py::object run(const py::tuple& arrays, const py::object& outs, const std::vector<double>& numbers,
                   std::vector<Timing>* times, const py::object& tensors = py::none());
    // (seconds, kernel, threads) of every step of one run.
    py::list timed(const py::tuple& arrays, const std::vector<double>& numbers);

    size_t packed_bytes() const;
    size_t arena_bytes() const { return arena_bytes_; }
    py::list released() const;  // the constants, by index, that only packed weights are left of
    const char* tier() const { return tier_name(tier_); }

private:
    const Place& place(int64_t i) const { return places_.at(static_cast<size_t>(i)); }
    bool is_constant(int64_t i) const { return i >= 0 && place(i).kind == Kind::constant; }

    static View absent() {
        View v{};
        v.dtype = DType::none;
        return v;
    }

    // Making it.
    void add_place(const py::tuple& row);
    void add_step(const py::tuple& row);
    void add_settings(Step& s, const py::dict& settings);
    // Numbers take the dtype of the first array among the operands.
    void add_numbers(const Step& s, const std::vector<double>& numbers);
    void read_attributes(const Face& face, Step& s);
    // Checks the step by the op's shape rule, and resolves the attributes.
    void resolve(Step& s);
    // Takes the constants, a step at a time, packs what the step packs, and lets go of those that nothing else reads: of
    // weights one step's alone are there in both forms.
    void place_constants(const py::list& constants);
    // Packs the constants of a step, and says which operands it reads no more then: those that packed_size counts.
    std::vector<bool> pack(Step& s);
    void views_of(const Step& s, std::vector<View>& in) const;

    // Running it.
    // Puts the numbers of a run into its own attributes, and checks these by the shape rule.
    Status set_attributes(Frame& frame, const std::vector<double>& numbers, size_t& failed);
    std::unique_ptr<Frame> take_frame();
    // Memory of the pool, or an error that says what it was for.
    static char* take(size_t bytes, const char* purpose);
    void locate(Frame& frame, View* view, int64_t i);
    // The exchange of a type of tensors, null if it shows none.
    const Exchange* exchange_with(const py::object& tensors);
    bool take_outputs(const py::object& outs, const std::vector<View>& fed, std::vector<View>& given,
                      py::tuple& results, const Exchange* exchange);
    Status run_steps(Frame& frame, const py::tuple& arrays, size_t& failed, std::vector<Timing>* times);
    // function(inputs, outputs), arrays over the run's own memory; what it raises stays set.
    bool call_python(const Step& s, const Call& call, const py::tuple& arrays);
    py::object seen(const View& view, const py::tuple& arrays, bool writeable);

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

// Whether two arrays have the same shape and dtype.
inline bool same_kind(const View& a, const View& b) {
    return a.dtype == b.dtype && a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

void init_program(py::module_& module);

}  // namespace tw::bindings
