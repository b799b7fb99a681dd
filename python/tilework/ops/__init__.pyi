# The table of contents: every op by name and family. Adding an op is one line here; __init__.py reads this file.

FAMILIES: dict[str, str]  # op: the module it is in

from tilework.ops.activation import (
    abs as abs,
    activation_dx as activation_dx,
    clip as clip,
    elu as elu,
    hard_sigmoid as hard_sigmoid,
    hard_swish as hard_swish,
    leaky_relu as leaky_relu,
    mish as mish,
    neg as neg,
    rsqrt as rsqrt,
    silu as silu,
    softplus as softplus,
    sqrt as sqrt,
)
from tilework.ops.adaptive_pool import (
    adaptive_avg_pool as adaptive_avg_pool,
    adaptive_avg_pool_dx as adaptive_avg_pool_dx,
    adaptive_max_pool as adaptive_max_pool,
    global_avg_pool as global_avg_pool,
    global_max_pool as global_max_pool,
)
from tilework.ops.arg_reduce import (
    argmax as argmax,
    argmin as argmin,
    top_k as top_k,
)
from tilework.ops.arithmetic import (
    bitwise_and as bitwise_and,
    bitwise_not as bitwise_not,
    bitwise_or as bitwise_or,
    bitwise_xor as bitwise_xor,
    maximum as maximum,
    minimum as minimum,
    mod as mod,
    pow as pow,
    shift_left as shift_left,
    shift_right as shift_right,
)
from tilework.ops.attention import (
    attention as attention,
    attention_dx as attention_dx,
)
from tilework.ops.batch_norm import (
    batch_norm as batch_norm,
    batch_norm_dx as batch_norm_dx,
)
from tilework.ops.bilateral import bilateral as bilateral
from tilework.ops.blur import (
    box_blur as box_blur,
    gaussian_blur as gaussian_blur,
)
from tilework.ops.canny import (
    canny as canny,
    canny_gradients as canny_gradients,
)
from tilework.ops.cast import bitcast as bitcast, cast as cast
from tilework.ops.comparison import (
    equal as equal,
    greater as greater,
    greater_equal as greater_equal,
    isinf as isinf,
    isnan as isnan,
    less as less,
    less_equal as less_equal,
    logical_and as logical_and,
    logical_not as logical_not,
    logical_or as logical_or,
    logical_xor as logical_xor,
    not_equal as not_equal,
    where as where,
)
from tilework.ops.contours import trace_contours as trace_contours
from tilework.ops.conv import conv as conv
from tilework.ops.conv_gradients import (
    conv_dw as conv_dw,
    conv_dx as conv_dx,
)
from tilework.ops.conv_integer import (
    conv_int8 as conv_int8,
    conv_integer as conv_integer,
    qlinear_conv as qlinear_conv,
)
from tilework.ops.conv_transpose import conv_transpose as conv_transpose
from tilework.ops.deform_conv import (
    deform_conv as deform_conv,
    deform_fold as deform_fold,
    deform_unfold as deform_unfold,
    deform_unfold_dmask as deform_unfold_dmask,
    deform_unfold_doffset as deform_unfold_doffset,
)
from tilework.ops.distance import distance_transform as distance_transform
from tilework.ops.dropout import dropout as dropout
from tilework.ops.edge_ways import edge_ways as edge_ways
from tilework.ops.einsum import (
    bilinear as bilinear,
    dot as dot,
    einsum as einsum,
    einsum_dx as einsum_dx,
    gram as gram,
    outer as outer,
    tensordot as tensordot,
    vecdot as vecdot,
)
from tilework.ops.elementwise import (
    add as add,
    div as div,
    erf as erf,
    exp as exp,
    gelu as gelu,
    gelu_dx as gelu_dx,
    log as log,
    mul as mul,
    relu as relu,
    relu_dx as relu_dx,
    sigmoid as sigmoid,
    sigmoid_dx as sigmoid_dx,
    sub as sub,
    tanh as tanh,
    tanh_dx as tanh_dx,
)
from tilework.ops.embedding import (
    embedding as embedding,
    embedding_dw as embedding_dw,
)
from tilework.ops.embedding_bag import (
    embedding_bag as embedding_bag,
    embedding_bag_dw as embedding_bag_dw,
)
from tilework.ops.factor import (
    cholesky as cholesky,
    lu as lu,
)
from tilework.ops.filter import filter2d as filter2d
from tilework.ops.flow import flow_search as flow_search
from tilework.ops.flow_refine import flow_refine as flow_refine
from tilework.ops.fused import fused as fused
from tilework.ops.gather import (
    gather as gather,
    gather_elements as gather_elements,
    gather_nd as gather_nd,
    scatter_elements as scatter_elements,
    scatter_nd as scatter_nd,
)
from tilework.ops.getitem import getitem as getitem
from tilework.ops.gradient import (
    laplacian as laplacian,
    scharr as scharr,
    sobel as sobel,
    spatial_gradient as spatial_gradient,
)
from tilework.ops.grid_sample import grid_sample as grid_sample
from tilework.ops.group_norm import (
    group_norm as group_norm,
    group_norm_dx as group_norm_dx,
    instance_norm as instance_norm,
)
from tilework.ops.gru import (
    gru as gru,
    gru_dx as gru_dx,
)
from tilework.ops.histogram import (
    equalize_hist as equalize_hist,
    histogram as histogram,
    look_up as look_up,
)
from tilework.ops.hough import hough_votes as hough_votes
from tilework.ops.integral import (
    integral as integral,
    integral_squares as integral_squares,
)
from tilework.ops.inverse import (
    det as det,
    inv as inv,
    slogdet as slogdet,
)
from tilework.ops.inverted_residual import inverted_residual as inverted_residual
from tilework.ops.label import label as label
from tilework.ops.layer_norm import (
    layer_norm as layer_norm,
    layer_norm_dx as layer_norm_dx,
    mean_variance_norm as mean_variance_norm,
    rms_norm as rms_norm,
    rms_norm_dx as rms_norm_dx,
)
from tilework.ops.linear_int4 import linear_int4 as linear_int4
from tilework.ops.linear_int8 import linear_int8 as linear_int8
from tilework.ops.linear_lut import linear_lut as linear_lut
from tilework.ops.local_correlation import (
    local_correlation as local_correlation,
    local_correlation_dx as local_correlation_dx,
)
from tilework.ops.local_response_norm import (
    local_response_norm as local_response_norm,
    local_response_norm_dx as local_response_norm_dx,
)
from tilework.ops.loss import (
    softmax_cross_entropy as softmax_cross_entropy,
    softmax_cross_entropy_dx as softmax_cross_entropy_dx,
)
from tilework.ops.lp_norm import (
    lp_norm as lp_norm,
    lp_norm_dx as lp_norm_dx,
)
from tilework.ops.lp_pool import (
    global_lp_pool as global_lp_pool,
    lp_pool as lp_pool,
    lp_pool_dx as lp_pool_dx,
)
from tilework.ops.lstm import (
    lstm as lstm,
    lstm_dx as lstm_dx,
)
from tilework.ops.matmul import (
    linear as linear,
    matmul as matmul,
)
from tilework.ops.matmul_integer import (
    matmul_integer as matmul_integer,
    qlinear_matmul as qlinear_matmul,
)
from tilework.ops.median import median_blur as median_blur
from tilework.ops.morphology import (
    dilate as dilate,
    erode as erode,
)
from tilework.ops.movement import (
    concat as concat,
    crop as crop,
    expand as expand,
    pad as pad,
    reshape as reshape,
    transpose as transpose,
)
from tilework.ops.multi_head_attention import multi_head_attention as multi_head_attention
from tilework.ops.non_max_suppression import non_max_suppression as non_max_suppression
from tilework.ops.optimizer import (
    adam_step as adam_step,
    lion_step as lion_step,
    rmsprop_step as rmsprop_step,
    sgd_step as sgd_step,
)
from tilework.ops.paged_attention import paged_attention as paged_attention
from tilework.ops.pixel import (
    absdiff as absdiff,
    rgb_to_gray as rgb_to_gray,
)
from tilework.ops.pool import (
    avg_pool as avg_pool,
    avg_pool_dx as avg_pool_dx,
    max_pool as max_pool,
)
from tilework.ops.pyramid import (
    pyramid_down as pyramid_down,
    pyramid_up as pyramid_up,
)
from tilework.ops.quantize import (
    dequantize_linear as dequantize_linear,
    dynamic_quantize_linear as dynamic_quantize_linear,
    quantize_linear as quantize_linear,
    quantize_rows as quantize_rows,
)
from tilework.ops.random import (
    bernoulli as bernoulli,
    random_normal as random_normal,
    random_uniform as random_uniform,
)
from tilework.ops.reduce import (
    reduce_max as reduce_max,
    reduce_max_dx as reduce_max_dx,
    reduce_mean as reduce_mean,
    reduce_sum as reduce_sum,
)
from tilework.ops.reduce_prod import (
    reduce_min as reduce_min,
    reduce_prod as reduce_prod,
)
from tilework.ops.resize import resize as resize
from tilework.ops.rnn import (
    rnn as rnn,
    rnn_dx as rnn_dx,
)
from tilework.ops.roi_align import (
    roi_align as roi_align,
    roi_align_dx as roi_align_dx,
)
from tilework.ops.rotary_embedding import rotary_embedding as rotary_embedding
from tilework.ops.rounding import (
    ceil as ceil,
    floor as floor,
    round as round,
    sign as sign,
    trunc as trunc,
)
from tilework.ops.scan import (
    cumprod as cumprod,
    cumsum as cumsum,
)
from tilework.ops.softmax import (
    log_softmax as log_softmax,
    log_softmax_dx as log_softmax_dx,
    logsumexp as logsumexp,
    softmax as softmax,
    softmax_dx as softmax_dx,
)
from tilework.ops.solve import (
    cholesky_solve as cholesky_solve,
    lu_solve as lu_solve,
    solve as solve,
    triangular_solve as triangular_solve,
)
from tilework.ops.swiglu import (
    geglu as geglu,
    geglu_dx as geglu_dx,
    swiglu as swiglu,
    swiglu_dx as swiglu_dx,
)
from tilework.ops.threshold import threshold as threshold
from tilework.ops.triangle import (
    tril as tril,
    triu as triu,
)
from tilework.ops.trigonometry import (
    acos as acos,
    acosh as acosh,
    asin as asin,
    asinh as asinh,
    atan as atan,
    atanh as atanh,
    cos as cos,
    cosh as cosh,
    sin as sin,
    sinh as sinh,
    tan as tan,
)
from tilework.ops.unfold import (
    fold as fold,
    unfold as unfold,
)
from tilework.ops.unpool import (
    max_pool_dx as max_pool_dx,
    max_unpool as max_unpool,
    max_unpool_dx as max_unpool_dx,
)
from tilework.ops.warp import (
    warp_affine as warp_affine,
    warp_perspective as warp_perspective,
)
