// What a device reaches when nothing else is in the way: the bench divides kernels by it.

// Eight independent accumulators hide the latency of the multiply-adds; 1024 turns outlast the launch.
__kernel void multiply_add(__global float* result, const float half_) {
    float4 a[8];
    for (int i = 0; i < 8; ++i) a[i] = (float4)(half_ + (float)(get_global_id(0) + i));
    const float4 b = (float4)(half_);
#pragma unroll 4
    for (int turn = 0; turn < 1024; ++turn) {
#pragma unroll
        for (int i = 0; i < 8; ++i) a[i] = a[i] * b + b;
    }
    const float4 sum = a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
    result[get_global_id(0)] = sum.x + sum.y + sum.z + sum.w;
}

__kernel void nothing(void) {}
