/* y = relu(x w^T + b), asked for by shape, computed, and computed again with w packed once. */
#include <stdio.h>
#include <string.h>
#include <tilework/tilework.h>

#define CHECK(call)                                                                                \
    do {                                                                                           \
        if ((call) != TW_OK) {                                                                     \
            const tw_error* e = tw_last_error();                                                   \
            return printf("%s: %s (%s, %d)\n", e->op, e->text, e->argument, (int)e->status), 1;    \
        }                                                                                          \
    } while (0)

int main(void) {
    float x[2][3] = {{1, 2, 3}, {4, 5, 6}}, w[4][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}, {-1, -1, -1}};
    float b[4] = {10, 20, 30, 0}, y[2][4], again[2][4];
    int64_t x_shape[] = {2, 3}, w_shape[] = {4, 3}, b_shape[] = {4}, y_shape[] = {2, 4};
    DLDataType f32 = {kDLFloat, 32, 1};
    DLDevice cpu = {kDLCPU, 0};
    DLTensor xt = {x, cpu, 2, f32, x_shape, NULL, 0}, wt = {w, cpu, 2, f32, w_shape, NULL, 0};
    DLTensor bt = {b, cpu, 1, f32, b_shape, NULL, 0}, yt = {y, cpu, 2, f32, y_shape, NULL, 0};
    const DLTensor *in[] = {&xt, &wt, &bt}, *weights[] = {NULL, &wt, &bt}, *input[] = {&xt}, *out[] = {&yt};
    tw_attr relu = {"activation", TW_TEXT, 0, {.text = "relu"}};
    tw_job job = {sizeof job, "linear", in, 3, 1, &relu, 0};

    tw_spec spec;
    int32_t n_out = 1;
    CHECK(tw_infer(&job, &spec, &n_out));
    printf("%d result of shape (%d, %d)\n", n_out, (int)spec.shape[0], (int)spec.shape[1]);
    CHECK(tw_call(&job, out, 1));
    for (int i = 0; i < 8; ++i) printf("%g ", ((float*)y)[i]);

    tw_job packing = {sizeof packing, "linear", weights, 3, 1, &relu, 0};
    tw_prepared layer;
    CHECK(tw_prepare(&packing, &layer));
    tw_job rest = {sizeof rest, "linear", input, 1, 0, NULL, layer};
    yt.data = again;
    CHECK(tw_call(&rest, out, 1));
    CHECK(tw_release(layer));
    printf("\n%s, ABI %d, %d ops\n", memcmp(y, again, sizeof y) ? "differ" : "same", (int)tw_abi_version(),
           tw_op_count() > 100);

    x_shape[1] = 2;
    return tw_call(&job, out, 1) == TW_SHAPE && strcmp(tw_last_error()->op, "linear") == 0 ? 0 : 1;
}
