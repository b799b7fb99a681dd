/* A kernel of the user's, as tilework calls it (tw.Kernel.c): it reads in[0] .. in[n_in - 1], compact tensors on the CPU,
 * and fills out[0] .. out[n_out - 1], which tilework has allocated by the kernel's shape rule. `numbers` are its
 * attributes in the order in which the kernel names them. Returns 0, or any other number for an error. Several threads
 * may call it at once. */
#pragma once
#include <stdint.h>

#include "dlpack_abi.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t (*tw_kernel)(const DLTensor* in, int32_t n_in, DLTensor* out, int32_t n_out, const double* numbers,
                             int32_t n_numbers);

#ifdef __cplusplus
}
#endif
