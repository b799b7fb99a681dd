// The C API: jobs as Calls, attributes by name, handles that know when they are no longer one. Knows nothing of Python.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "bindings/job_attributes.h"
#include "bindings/known_jobs.h"
#include "core/caller.h"
#include "core/cpus.h"
#include "core/host_pool.h"
#include "core/isa.h"
#include "core/memory.h"
#include "core/op_table.h"
#include "core/parallel.h"
#include "include/tilework/tilework.h"

namespace tw {
namespace {

static_assert(static_cast<int>(Status::singular) == TW_SINGULAR && sizeof(tw_error) == sizeof(ErrorText) &&
              offsetof(tw_error, text) == offsetof(ErrorText, text));
static_assert(kMaxDims == TW_MAX_DIMS);

tw_status report(Status status, const char* op) {
    if (status == Status::ok) return TW_OK;
    ErrorText& error = last_error();
    if (status == Status::interrupted)
        fail(status, "", "stopped before all parts were computed; want a thread pool that runs every part");
    std::snprintf(error.op, sizeof error.op, "%s", op ? op : "");
    return static_cast<tw_status>(status);
}

// ---- handles -------------------------------------------------------------------------------------------------------

// Operands and attributes that are fixed, and what the op packed of them.
struct Prepared {
    const OpDef* def;  // of the tier that was active
    View in[kMaxOperands];
    Attr attr[kMaxAttrs];
    void* packed;
    size_t packed_bytes, own_bytes;
};

// A handle is (generation, slot). A slot in use has an odd generation; releasing makes it even, so that a handle that was
// released, or never was one, is told from one that is. Slots come in chunks that are never given back.
struct Slot {
    std::atomic<uint32_t> generation{0};
    std::atomic<Prepared*> prepared{nullptr};
};
constexpr uint32_t kSlots = 256, kChunks = 4096;
constinit std::atomic<Slot*> g_chunks[kChunks];

Slot* slot_at(uint32_t index) {
    Slot* chunk = index / kSlots < kChunks ? g_chunks[index / kSlots].load(std::memory_order_acquire) : nullptr;
    return chunk ? chunk + index % kSlots : nullptr;
}

Slot* slot_of(tw_prepared handle) {
    Slot* slot = slot_at(static_cast<uint32_t>(handle));
    const auto generation = static_cast<uint32_t>(handle >> 32);
    return slot && (generation & 1) && slot->generation.load(std::memory_order_acquire) == generation ? slot : nullptr;
}

tw_prepared claim_slot(Prepared* prepared) {
    for (uint32_t c = 0; c < kChunks; ++c) {
        Slot* chunk = g_chunks[c].load(std::memory_order_acquire);
        if (!chunk) {
            Slot* made = new (std::nothrow) Slot[kSlots];
            if (!made) return 0;
            if (g_chunks[c].compare_exchange_strong(chunk, made)) {
                chunk = made;
            } else {
                delete[] made;
            }
        }
        for (uint32_t i = 0; i < kSlots; ++i) {
            uint32_t generation = chunk[i].generation.load(std::memory_order_relaxed);
            if ((generation & 1) || !chunk[i].generation.compare_exchange_strong(generation, generation + 1)) continue;
            chunk[i].prepared.store(prepared, std::memory_order_release);
            return (static_cast<tw_prepared>(generation + 1) << 32) | (c * kSlots + i);
        }
    }
    return 0;
}

void destroy(Prepared* prepared) {
    if (prepared->packed) pool_give(prepared->packed, prepared->packed_bytes);
    pool_give(prepared, prepared->own_bytes);
}

// ---- jobs ----------------------------------------------------------------------------------------------------------

// A job read: the op, its operands and attributes.
struct Request {
    const OpDef* def = nullptr;
    const void* packed = nullptr;
    int n_in = 0;
    View in[kMaxInputs + kMaxOperands];
    Attr attr[kMaxAttrs];

    Call call() { return {def, in, n_in, nullptr, 0, attr, packed}; }
};

Status check_job(const tw_job* job) {
    if (!job) return fail(kBadArgument, "", "job is NULL; want a tw_job");
    if (job->struct_size != sizeof(tw_job))
        return fail(kBadArgument, "", "struct_size is %zu; want sizeof(tw_job), %zu", job->struct_size, sizeof(tw_job));
    if (job->n_in < 0 || (job->n_in > 0 && !job->in))
        return fail(kBadArgument, "", "n_in=%d with in=%p; want as many operands as it says", job->n_in,
                    static_cast<const void*>(job->in));
    return Status::ok;
}

Status find_def(const tw_job& job, const Prepared*& prepared, const OpDef*& def) {
    prepared = nullptr;
    if (job.prepared) {
        Slot* slot = slot_of(job.prepared);
        if (!slot)
            return fail(kBadArgument, "", "prepared is no handle, or one that was released; want one of tw_prepare");
        prepared = slot->prepared.load(std::memory_order_acquire);
        def = prepared->def;
        if (job.op && std::strcmp(job.op, def->name) != 0)
            return fail(kBadArgument, "", "prepared is for %s; want one for %.60s", def->name, job.op);
        return Status::ok;
    }
    const OpId id = find_op(job.op);
    if (id == OpId::count)
        return fail(Status::unsupported, "", "there is no op called '%.60s'; tw_op lists them", job.op ? job.op : "");
    def = op_table(active_tier(), id);
    return Status::ok;
}

enum class Absent { refused, allowed };

Status read_operands(const tw_job& job, const Prepared* prepared, bool shape_only, Absent absent, Request& r) {
    const OpDef& def = *r.def;
    const bool variadic = def.operands[0].role == Role::variadic;
    if (job.n_in > (variadic ? kMaxInputs : def.n_operands))
        return fail(kBadArgument, "", "n_in=%d; want at most %d", job.n_in, variadic ? kMaxInputs : def.n_operands);
    if (variadic && (job.n_in < def.n_operands || prepared || absent == Absent::allowed))
        return fail(Status::unsupported, def.operands[0].name, "want %s and every other operand, and nothing prepared",
                    def.operands[0].name);
    r.n_in = variadic ? job.n_in : def.n_operands;
    for (int i = 0; i < r.n_in; ++i) {
        const int named = i - (r.n_in - def.n_operands);
        const Operand& operand = def.operands[named > 0 ? named : 0];
        const DLTensor* tensor = i < job.n_in ? job.in[i] : nullptr;
        const bool fixed = prepared && given(prepared->in[i]);
        if (tensor) {
            if (fixed) return fail(kBadArgument, operand.name, "%s is prepared; want NULL for it", operand.name);
            TW_TRY(view_from(*tensor, r.in[i], operand.name, shape_only));
        } else if (fixed) {
            r.in[i] = prepared->in[i];
        } else if (absent == Absent::allowed || may_be_absent(operand.role)) {
            r.in[i].dtype = DType::none;
        } else {
            return fail(kBadArgument, operand.name, "%s is missing; want a tensor", operand.name);
        }
    }
    return Status::ok;
}

Status read_job(const tw_job* job, const Prepared* prepared, bool shape_only, Request& r) {
    TW_TRY(read_operands(*job, prepared, shape_only, Absent::refused, r));
    if (!prepared) return read_attributes(*r.def, *job, r.attr);
    if (job->n_attrs)
        return fail(kBadArgument, "", "n_attrs=%d with prepared; want 0, the attributes are prepared too",
                    job->n_attrs);
    std::memcpy(r.attr, prepared->attr, sizeof(Attr) * static_cast<size_t>(r.def->n_attrs));
    r.packed = prepared->packed;
    return Status::ok;
}

const char* name_in(const tw_job* job, const Request& r) { return r.def ? r.def->name : job && job->op ? job->op : ""; }

Status infer(Request& r, Call& call, Inferred& inferred) {
    inferred.n_out = 0;
    inferred.flops = 0;
    call = r.call();
    return r.def->infer(call, inferred);
}

Status infer_specs(const tw_job* job, tw_spec* out, int32_t* n_out, Request& r) {
    if (!n_out || (*n_out > 0 && !out)) return fail(kBadArgument, "", "out or n_out is NULL");
    Call call;
    Inferred inferred;
    const Prepared* prepared;
    TW_TRY(check_job(job));
    TW_TRY(find_def(*job, prepared, r.def));
    TW_TRY(read_job(job, prepared, true, r));
    TW_TRY(infer(r, call, inferred));
    const int32_t room = *n_out;
    *n_out = inferred.n_out;
    if (inferred.n_out > room) return fail(kBadArgument, "", "n_out=%d; there are %d results", room, inferred.n_out);
    for (int i = 0; i < inferred.n_out; ++i) {
        const View& v = inferred.out[i];
        out[i] = {data_type_of(v.dtype), v.ndim, {}};
        for (int d = 0; d < v.ndim; ++d) out[i].shape[d] = v.shape[d];
    }
    return Status::ok;
}

Status run(const Call& call) {
    clear_interrupted();
    const Status status = run_recorded(call);
    return interrupted() ? Status::interrupted : status;  // a kernel that was stopped may call that a want of memory
}

Status compute(const tw_job* job, const DLTensor* const* out, int32_t n_out, Request& r) {
    const Prepared* prepared;
    TW_TRY(check_job(job));
    TW_TRY(find_def(*job, prepared, r.def));
    if (KnownJob* known = known_job(*r.def, *job, out, n_out)) {
        const Status status = run(call_of(*known));
        leave(*known);
        return status;
    }
    Call call;
    Inferred inferred;
    TW_TRY(read_job(job, prepared, false, r));
    TW_TRY(infer(r, call, inferred));
    TW_TRY(check_inout(call));
    if (n_out != inferred.n_out || (n_out > 0 && !out))
        return fail(kBadArgument, "", "n_out=%d with out=%p; want %d results", n_out, static_cast<const void*>(out),
                    inferred.n_out);
    View results[kMaxOutputs];
    for (int i = 0; i < n_out; ++i) {
        if (!out[i]) return fail(kBadArgument, "out", "out[%d] is NULL; want a tensor", i);
        TW_TRY(view_from(*out[i], results[i], "out"));
        TW_TRY(check_out(call, results[i], inferred.out[i], "out"));
    }
    TW_TRY(check_outs_apart(results, n_out));
    call.out = results;
    call.n_out = n_out;
    keep_job(*job, out, call);
    return run(call);
}

Status prepare(const tw_job* job, tw_prepared* result, Request& r) {
    const Prepared* prepared;
    TW_TRY(check_job(job));
    if (!result) return fail(kBadArgument, "", "prepared is NULL; want a place for the handle");
    *result = 0;
    if (job->prepared) return fail(kBadArgument, "", "the job has a handle already; want prepared=0");
    TW_TRY(find_def(*job, prepared, r.def));
    TW_TRY(read_operands(*job, nullptr, false, Absent::allowed, r));
    TW_TRY(read_attributes(*r.def, *job, r.attr));
    size_t texts = 0;
    for (int i = 0; i < r.def->n_attrs; ++i)
        if (r.def->attrs[i].kind == AttrKind::text && !r.attr[i].is_none) texts += static_cast<size_t>(r.attr[i].n) + 1;
    const size_t bytes = sizeof(Prepared) + texts;
    void* memory = pool_take(bytes);
    if (!memory) return fail(Status::memory, "", "no memory for %zu bytes", bytes);
    auto* made = new (memory) Prepared{r.def, {}, {}, nullptr, 0, bytes};
    std::memcpy(made->in, r.in, sizeof(View) * static_cast<size_t>(r.n_in));
    std::memcpy(made->attr, r.attr, sizeof(Attr) * static_cast<size_t>(r.def->n_attrs));
    char* text = static_cast<char*>(memory) + sizeof(Prepared);
    for (int i = 0; i < r.def->n_attrs; ++i) {
        if (r.def->attrs[i].kind != AttrKind::text || r.attr[i].is_none) continue;
        const size_t n = static_cast<size_t>(r.attr[i].n) + 1;
        std::memcpy(text, r.attr[i].text, n);
        made->attr[i].text = text;
        text += n;
    }
    const Call call{r.def, r.in, r.n_in, nullptr, 0, r.attr, nullptr};
    const int64_t packed = r.def->packed_size ? r.def->packed_size(call) : 0;
    if (packed > 0) {
        made->packed_bytes = static_cast<size_t>(packed);
        made->packed = pool_take(made->packed_bytes);
        if (!made->packed) {
            destroy(made);
            return fail(Status::memory, "", "no memory for packed operands of %lld bytes",
                        static_cast<long long>(packed));
        }
        r.def->pack(call, made->packed);
    }
    *result = claim_slot(made);
    if (*result) return Status::ok;
    destroy(made);
    return fail(Status::memory, "", "no memory for a handle");
}

// ---- the list of ops -----------------------------------------------------------------------------------------------

constinit std::atomic<const tw_op_info*> g_infos[kOps];

const char* role_mark(Role role) {
    constexpr const char* marks[] = {"", "?", "!", "!?", "*"};
    return marks[static_cast<int>(role)];
}

const tw_op_info* make_info(const OpDef& def) {
    constexpr size_t kRoom = 4096;
    auto* info = static_cast<tw_op_info*>(std::malloc(sizeof(tw_op_info) + 2 * kRoom));
    if (!info) return nullptr;
    char* operands = reinterpret_cast<char*>(info + 1);
    char* attributes = operands + kRoom;
    operands[0] = attributes[0] = 0;
    const auto add = [](char* text, const char* name, const char* separator, const char* more) {
        const size_t n = std::strlen(text);
        std::snprintf(text + n, kRoom - n, "%s%s%s%s", n ? " " : "", name, separator, more);
    };
    for (int i = 0; i < def.n_operands; ++i) add(operands, def.operands[i].name, "", role_mark(def.operands[i].role));
    for (int i = 0; i < def.n_attrs; ++i)
        add(attributes, def.attrs[i].name, ":",
            def.attrs[i].kind == AttrKind::choice ? def.attrs[i].choices : kind_text(def.attrs[i].kind));
    *info = {def.name, operands, attributes};
    return info;
}

}  // namespace
}  // namespace tw

extern "C" {

int32_t tw_abi_version(void) { return TW_ABI_VERSION; }

const tw_error* tw_last_error(void) { return reinterpret_cast<const tw_error*>(&tw::last_error()); }

int32_t tw_op_count(void) { return tw::kOps; }

const tw_op_info* tw_op(int32_t number) {
    if (number < 0 || number >= tw::kOps) return nullptr;
    auto& place = tw::g_infos[number];
    if (const tw_op_info* info = place.load(std::memory_order_acquire)) return info;
    const tw_op_info* made = tw::make_info(*tw::op_table(tw::kLeastTier, static_cast<tw::OpId>(number)));
    const tw_op_info* former = nullptr;
    if (!made || place.compare_exchange_strong(former, made)) return made;
    std::free(const_cast<tw_op_info*>(made));
    return former;
}

tw_status tw_infer(const tw_job* job, tw_spec* out, int32_t* n_out) {
    tw::Request request;
    const tw::Status status = tw::infer_specs(job, out, n_out, request);
    return tw::report(status, tw::name_in(job, request));
}

tw_status tw_call(const tw_job* job, const DLTensor* const* out, int32_t n_out) {
    tw::Request request;
    const tw::Status status = tw::compute(job, out, n_out, request);
    return status == tw::Status::ok ? TW_OK : tw::report(status, tw::name_in(job, request));
}

tw_status tw_prepare(const tw_job* job, tw_prepared* prepared) {
    tw::Request request;
    const tw::Status status = tw::prepare(job, prepared, request);
    return tw::report(status, tw::name_in(job, request));
}

tw_status tw_release(tw_prepared handle) {
    tw::Slot* slot = tw::slot_of(handle);
    auto generation = static_cast<uint32_t>(handle >> 32);
    if (slot) {
        tw::Prepared* prepared = slot->prepared.load(std::memory_order_acquire);
        if (slot->generation.compare_exchange_strong(generation, generation + 1)) {
            tw::destroy(prepared);
            return TW_OK;
        }
    }
    return tw::report(tw::fail(tw::kBadArgument, "", "no handle, or one that was released already"), "tw_release");
}

tw_status tw_set_isa(const char* name) { return tw::report(tw::set_tier(name), "tw_set_isa"); }

tw_status tw_set_num_threads(int32_t threads) {
    if (threads < 0 || threads > tw::kMaxThreads)
        return tw::report(tw::fail(tw::kBadArgument, "threads", "threads=%d; want 0 to %d", threads, tw::kMaxThreads),
                          "tw_set_num_threads");
    tw::set_num_threads(threads ? threads : tw::thread_default().threads);
    return TW_OK;
}

tw_status tw_set_thread_pool(tw_run run, void* pool, int32_t threads) {
    if (run && (threads < 1 || threads > tw::kMaxThreads))
        return tw::report(tw::fail(tw::kBadArgument, "threads", "threads=%d; want 1 to %d", threads, tw::kMaxThreads),
                          "tw_set_thread_pool");
    tw::set_host_pool(run, pool, threads);
    return TW_OK;
}

void tw_trim(void) { tw::pool_trim(); }

}  // extern "C"
