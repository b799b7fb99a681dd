// The built-ins of OpenCL C that the matrix products use, as NVIDIA's PTX has them, for clang without a device library.
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define ASM __asm__
#define barrier(flags) __nvvm_bar_sync(0)
#define get_local_id(axis) ((size_t)__nvvm_read_ptx_sreg_tid_x())
#define get_group_id(axis) ((size_t)__nvvm_read_ptx_sreg_ctaid_x())
#define get_num_groups(axis) ((size_t)__nvvm_read_ptx_sreg_nctaid_x())
#define get_local_size(axis) ((size_t)__nvvm_read_ptx_sreg_ntid_x())
#define get_global_id(axis) (get_group_id(axis) * get_local_size(axis) + get_local_id(axis))
#define fma(a, b, c) __builtin_elementwise_fma(a, b, c)
#define isnan(v) __builtin_isnan(v)
#define isfinite(v) __builtin_isfinite(v)
#define vload_half(i, p) ((float)(p)[i])
#define vstore_half_rte(v, i, p) ((p)[i] = (half)(v))
#define vstorea_half2_rte(v, i, p) (((__global half2 *)(p))[i] = __builtin_convertvector(v, half2))
#define select(a, b, c) ((c) ? (b) : (a))
#define mul_hi(a, b) ((uint)(((ulong)(a) * (b)) >> 32))
