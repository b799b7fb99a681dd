/* The C API of tilework: every op through one call. Plain C, a dozen functions, closed to change by the ops that come.
 *
 * Tensors are DLPack descriptors that the caller owns; results are written into memory that the caller owns. Every
 * function that can fail returns a tw_status and leaves a tw_error for the calling thread. Nothing is written before the
 * last check, nothing throws, prints or aborts. Any thread may call at any time. */
#ifndef TILEWORK_H
#define TILEWORK_H

#include <stddef.h>
#include <stdint.h>

#include "dlpack_abi.h"

#define TW_ABI_VERSION 1 /* grows by one when this header changes in a way that compiled programs notice */
#define TW_MAX_DIMS 8

#if defined(TW_BUILDING)
#define TW_API __attribute__((visibility("default")))
#else
#define TW_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tw_status {
    TW_OK = 0,
    TW_SHAPE = 1,       /* a shape that does not fit */
    TW_DTYPE = 2,       /* an element type or a device that is not taken here */
    TW_ATTR = 3,        /* an attribute that is unknown, missing, or out of its range */
    TW_INDEX = 4,       /* an index inside a tensor that points outside its target */
    TW_UNSUPPORTED = 5, /* no such op, or a combination that is not computed */
    TW_MEMORY = 6,      /* memory that could not be had */
    TW_INTERRUPTED = 7,
    TW_INTERNAL = 8,
    TW_SINGULAR = 9,    /* a matrix without an inverse, or one that is not positive definite */
    TW_ARGUMENT = 10    /* a null pointer, a wrong struct size, a handle that is no longer one */
} tw_status;

typedef struct tw_error {
    int32_t status;    /* a tw_status */
    char op[48];       /* "conv" */
    char argument[48]; /* the operand or attribute to blame, "" if none */
    char text[512];    /* what is wrong; what would be right */
} tw_error;

typedef enum tw_kind {
    TW_NONE = 0,  /* the value None, where the attribute takes it */
    TW_INT = 1,   /* value.i */
    TW_REAL = 2,  /* value.f */
    TW_BOOL = 3,  /* value.i, 0 or 1 */
    TW_TEXT = 4,  /* value.text: a choice ("relu"), "same", subscripts ("ij,jk->ik"), or a dtype ("float32") */
    TW_INTS = 5,  /* n numbers at value.ints */
    TW_PAIRS = 6  /* padding: n (before, after) pairs, 2 n numbers at value.ints */
} tw_kind;

typedef struct tw_attr {
    const char* name;
    int32_t kind; /* a tw_kind */
    int32_t n;    /* of TW_INTS and TW_PAIRS */
    union {
        int64_t i;
        double f;
        const int64_t* ints;
        const char* text; /* ends with a zero byte */
    } value;
} tw_attr;

typedef uint64_t tw_prepared; /* a handle of tw_prepare; 0 is none */

/* What to compute. Fields that a later version adds come last, so that struct_size says which are there. */
typedef struct tw_job {
    size_t struct_size;        /* sizeof(tw_job) */
    const char* op;            /* "conv" */
    const DLTensor* const* in; /* operands in the op's order; NULL where one is not given */
    int32_t n_in;              /* operands after these are not given; a variadic operand takes all of them */
    int32_t n_attrs;
    const tw_attr* attrs; /* attributes that are not named have their defaults */
    tw_prepared prepared; /* or 0; the operands it holds are NULL here, and n_attrs is 0 */
} tw_job;

/* A result's shape and element type. */
typedef struct tw_spec {
    DLDataType dtype;
    int32_t ndim;
    int64_t shape[TW_MAX_DIMS];
} tw_spec;

TW_API int32_t tw_abi_version(void);

/* The calling thread's last error. Valid until its next call. */
TW_API const tw_error* tw_last_error(void);

/* The ops by number, in no order to rely on: {"name", "x w b", "stride padding ..."}; NULL past the end. Operands that
 * may be left out end with '?', those updated in place with '!', a variadic one with '*'. */
typedef struct tw_op_info {
    const char* name;
    const char* operands;
    const char* attributes;
} tw_op_info;
TW_API int32_t tw_op_count(void);
TW_API const tw_op_info* tw_op(int32_t number);

/* Shapes and types of the results of a job: *n_out is the room at `out` before and the number of results after. Only
 * shapes and types of the operands are read; their data may be NULL. */
TW_API tw_status tw_infer(const tw_job* job, tw_spec* out, int32_t* n_out);

/* Computes a job into n_out descriptors of the inferred shapes and types. Results may have any strides, and share no
 * memory with operands or each other, but that an elementwise op may write onto exactly one of its operands. */
TW_API tw_status tw_call(const tw_job* job, const DLTensor* const* out, int32_t n_out);

/* Binds attributes and the operands that are given, and packs what the op can pack (weights); any number of threads may
 * then name the handle in their jobs. The operands' memory stays the caller's, and unchanged, until tw_release. */
TW_API tw_status tw_prepare(const tw_job* job, tw_prepared* prepared);
TW_API tw_status tw_release(tw_prepared prepared);

/* Forces an instruction set by name ("avx2"), NULL or "auto" for the best. */
TW_API tw_status tw_set_isa(const char* name);

/* Threads of every later call, for the whole process; 0 for the default (TILEWORK_NUM_THREADS, OMP_NUM_THREADS, CPUs). */
TW_API tw_status tw_set_num_threads(int32_t threads);

/* Lets the host's threads do the work: `run` calls body(context, i) for every i in [0, n), on any threads, and returns
 * when all have returned. NULL for tilework's own pool. Set it while nothing is being computed. Results have the same
 * bits with every pool and number of threads. */
typedef void (*tw_body)(void* context, int64_t i);
typedef void (*tw_run)(void* pool, int64_t n, tw_body body, void* context);
TW_API tw_status tw_set_thread_pool(tw_run run, void* pool, int32_t threads);

/* Gives cached memory back to the system. */
TW_API void tw_trim(void);

#ifdef __cplusplus
}
#endif
#endif
