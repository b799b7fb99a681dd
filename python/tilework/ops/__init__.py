"""Every op by name. Importing this module registers them."""

from tilework.ops.conv import conv, conv_dw, conv_dx
from tilework.ops.elementwise import (
    add,
    div,
    erf,
    exp,
    gelu,
    gelu_dx,
    log,
    mul,
    relu,
    relu_dx,
    sigmoid,
    sigmoid_dx,
    sub,
    tanh,
    tanh_dx,
)
from tilework.ops.loss import softmax_cross_entropy, softmax_cross_entropy_dx
from tilework.ops.matmul import linear, matmul
from tilework.ops.movement import cast, concat, crop, expand, pad, reshape, transpose
from tilework.ops.optimizer import adam_step, sgd_step
from tilework.ops.pool import avg_pool, avg_pool_dx, max_pool, max_pool_dx
from tilework.ops.reduce import reduce_max, reduce_max_dx, reduce_mean, reduce_sum
from tilework.ops.softmax import log_softmax, log_softmax_dx, softmax, softmax_dx

__all__ = [
    "adam_step",
    "add",
    "avg_pool",
    "avg_pool_dx",
    "cast",
    "concat",
    "conv",
    "conv_dw",
    "conv_dx",
    "crop",
    "div",
    "erf",
    "exp",
    "expand",
    "gelu",
    "gelu_dx",
    "linear",
    "log",
    "log_softmax",
    "log_softmax_dx",
    "matmul",
    "max_pool",
    "max_pool_dx",
    "mul",
    "pad",
    "reduce_max",
    "reduce_max_dx",
    "reduce_mean",
    "reduce_sum",
    "relu",
    "relu_dx",
    "reshape",
    "sgd_step",
    "sigmoid",
    "sigmoid_dx",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_dx",
    "softmax_dx",
    "sub",
    "tanh",
    "tanh_dx",
    "transpose",
]
