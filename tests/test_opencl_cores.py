"""The kernels that GPUs would run, on PoCL: tiles in local memory, tensor cores emulated, sums without atomics."""

from __future__ import annotations

import pytest

from opencl_process import run

pytest.importorskip("pyopencl")
pytestmark = pytest.mark.opencl


_CORE = """
    from tilework.registry import ops
    from tilework.testing import Case, assert_matches_reference
    from tilework.testing.cases import mapped
    for name, sample in {cases!r}:
        made = Case(ops()[name], sample, "float32").build()
        result = ops()[name](*mapped(tw.to_device, made.args), **made.attrs)
        results = result if isinstance(result, tuple) else (result,)
        assert_matches_reference(ops()[name], made.args, made.attrs, [tw.to_host(r) for r in results])
"""


@pytest.mark.parametrize("index", ["int", "long"])
def test_local_memory_core_is_right(index: str) -> None:
    cases = [("matmul", 4), ("matmul", 8), ("matmul", 14), ("linear", 3), ("conv", 4), ("conv_dx", 4), ("conv_dw", 4)]
    cases += [("softmax", 6), ("softmax_cross_entropy", 4), ("softmax_cross_entropy_dx", 6), ("max_pool_dx", 2)]
    cases += [("reduce_sum", 9), ("reduce_max", 12), ("einsum", 3)]
    run(_CORE.format(cases=cases), seconds=300, TILEWORK_CL_CORE="S", TILEWORK_CL_INDEX=index)


def test_largest_tiles_are_right() -> None:
    run(
        """
        from tilework.backends import opencl_tiles
        opencl_tiles.WANTED_TILES = 2
        for dtype, places in ((np.float32, 4), (np.float64, 12)):
            a, b = fill(131, 45, dtype=dtype), fill(45, 150, dtype=dtype)
            got = tw.to_host(tw.matmul(tw.to_device(a), tw.to_device(b)))
            assert np.abs(got - a.astype(float) @ b).max() < 10.0**-places
        x, w = fill(2, 5, 9, 11), fill(70, 5, 3, 3)
        same(tw.conv(tw.to_device(x), tw.to_device(w), padding=1), tw.conv(x, w, padding=1))
        """,
        seconds=300,
        TILEWORK_CL_CORE="S",
    )


_PRODUCTS = """
    from tilework.backends import opencl_gemm
    queue = opencl.default_device().queue()

    def operand(rows, columns, dtype, *, transposed, aligned):
        if transposed:
            rows, columns = columns, rows
        room = -columns % 16 if aligned else 1
        whole = np.random.default_rng(0).standard_normal((rows, columns + room)) * (40 if dtype.kind in "iu" else 1)
        whole = whole.astype(dtype)
        views = [x[:, :columns] for x in (whole, tw.to_device(whole))]
        return [x.T for x in views] if transposed else views

    def close(got, a, b, eps):
        wide = [np.asarray(x, np.float64) for x in (a, b)]
        error = np.abs(np.asarray(tw.to_host(got), np.float64) - wide[0] @ wide[1])
        assert (error <= eps * (np.abs(wide[0]) @ np.abs(wide[1]))).all(), (error.max(), eps)
"""


@pytest.mark.parametrize("core", ["P", "S", "T", "W"])
def test_half_width_products_are_rounded_once(core: str) -> None:
    run(
        _PRODUCTS
        + """
    import ml_dtypes
    for dtype, eps, turned, aligned in ((np.float16, 2**-11, True, True), (ml_dtypes.bfloat16, 2**-8, False, False)):
        a, a_there = operand(70, 45, np.dtype(dtype), transposed=False, aligned=aligned)
        b, b_there = operand(45, 50, np.dtype(dtype), transposed=turned, aligned=aligned)
        y = queue.empty((70, 50), dtype)
        opencl_gemm.multiply(queue, a_there, b_there, y)
        close(y, a, b, 1.01 * eps)
    """,
        seconds=300,
        TILEWORK_CL_CORE=core,
    )


@pytest.mark.parametrize(("precision", "bits"), [("fast32", 21), ("tf32", 10)])
def test_precision_is_what_was_asked_for(precision: str, bits: int) -> None:
    run(
        _PRODUCTS
        + f"""
    a, a_there = operand(70, 45, np.dtype(np.float32), transposed=True, aligned=True)
    b, b_there = operand(45, 50, np.dtype(np.float32), transposed=False, aligned=False)
    close(tw.matmul(a_there, b_there), a, b, 2.0 ** -{bits})
    """,
        seconds=300,
        TILEWORK_CL_CORE="T",
        TILEWORK_CL_PRECISION=precision,
    )


@pytest.mark.parametrize("core", ["P", "S", "T", "W"])
def test_products_of_bytes_are_exact(core: str) -> None:
    run(
        _PRODUCTS
        + """
    a, a_there = operand(70, 45, np.dtype(np.int8), transposed=False, aligned=True)
    b, b_there = operand(45, 50, np.dtype(np.uint8), transposed=True, aligned=True)
    a_zero, b_zero = np.arange(70, dtype=np.int8), np.array(200, np.uint8)
    y = queue.empty((70, 50), np.int32)
    opencl_gemm.multiply(queue, a_there, b_there, y, zeros=(tw.to_device(a_zero), tw.to_device(b_zero)))
    want = (a.astype(int) - a_zero[:, None].astype(int)) @ (b.astype(int) - int(b_zero))
    assert np.array_equal(tw.to_host(y), want)
    """,
        seconds=300,
        TILEWORK_CL_CORE=core,
    )


def test_zero_points_follow_the_batch() -> None:
    run(
        _PRODUCTS
        + """
    rng = np.random.default_rng(0)
    a = rng.integers(-128, 128, (2, 3, 5, 7)).astype(np.int8)
    b = rng.integers(0, 256, (2, 1, 7, 4)).astype(np.uint8)
    a_zero = rng.integers(-9, 9, (2, 3, 5, 1)).astype(np.int8)
    b_zero = rng.integers(0, 9, (2, 1, 1, 4)).astype(np.uint8)
    for zeros in ((a_zero, b_zero), (a_zero[0, 0, :, 0], None), (None, b_zero[0, 0, 0])):
        y = queue.empty((2, 3, 5, 4), np.int32)
        there = [None if z is None else tw.to_device(z) for z in zeros]
        opencl_gemm.multiply(queue, tw.to_device(a), tw.to_device(b), y, zeros=tuple(there))
        rows = 0 if zeros[0] is None else zeros[0].astype(int).reshape(*zeros[0].shape[:3], 1)
        columns = 0 if zeros[1] is None else zeros[1].astype(int)
        assert np.array_equal(tw.to_host(y), (a - rows) @ (b - columns))
    x, w = fill(5, 40), fill(40, 9).astype(np.float16)
    y = queue.empty((5, 9), np.float32)
    opencl_gemm.multiply(queue, tw.to_device(x), tw.to_device(w), y)
    close(y, x, w, 2.0**-20)
    """
    )


@pytest.mark.parametrize(("core", "dtype", "bits"), [("S", "float32", 20), ("W", "float16", 10)])
def test_channels_that_lie_side_by_side_are_copied_in_chunks(core: str, dtype: str, bits: int) -> None:
    run(
        f"""
    def near(got, want):
        error = np.abs(tw.to_host(got).astype(float) - want.astype(float)).max()
        assert error <= 2.0**-{bits} * np.abs(want).max(), error

    for channels, filters, size, taps, kinds in (
        (8, 16, (9, 7), 3, dict(stride=1, padding=1, dilation=1, groups=1)),
        (16, 8, (10, 9), 3, dict(stride=2, padding=((1, 0), (1, 2)), dilation=1, groups=1)),
        (16, 16, (10, 9), 3, dict(stride=2, padding=1, dilation=1, groups=2)),
        (8, 16, (9, 7), 1, dict(stride=1, padding=0, dilation=1, groups=1)),
    ):
        x, w = fill(2, *size, channels), fill(filters, channels // kinds["groups"], taps, taps)
        x, w, b = x.astype("{dtype}"), w.astype("{dtype}"), fill(filters).astype("{dtype}")
        kinds["layout"] = "NHWC"
        there = [tw.to_device(a) for a in (x, w, b)]
        y = tw.conv(x, w, b, activation="relu", **kinds)
        near(tw.conv(*there, activation="relu", **kinds), y)
        dy = fill(*y.shape).astype("{dtype}")
        near(tw.conv_dx(tw.to_device(dy), there[1], shape=size, **kinds), tw.conv_dx(dy, w, shape=size, **kinds))
        near(tw.conv_dw(tw.to_device(dy), there[0], kernel=taps, **kinds), tw.conv_dw(dy, x, kernel=taps, **kinds))
        """,
        seconds=300,
        TILEWORK_CL_CORE=core,
    )


def test_wide_indices_are_right() -> None:
    cases = [(name, i) for name in ("add", "conv", "avg_pool_dx", "concat", "pad") for i in (2, 5)]
    run(_CORE.format(cases=cases), TILEWORK_CL_INDEX="long")


def test_long_sums_are_cut_into_shares() -> None:
    run(
        """
        x, y = fill(2, 9000), fill(9000, 3)
        same(tw.matmul(tw.to_device(x), tw.to_device(y)) , x.astype(float) @ y)
        w, b = fill(3, 9000), fill(3)
        want = np.maximum(x.astype(float) @ w.T + b, 0)
        got = tw.to_host(tw.linear(tw.to_device(x), tw.to_device(w), tw.to_device(b), activation="relu"))
        assert np.allclose(got, want, atol=1e-3)
        long = fill(70000)
        assert abs(float(tw.to_host(tw.reduce_sum(tw.to_device(long)))) - long.sum(dtype=float)) < 1e-2
        assert float(tw.to_host(tw.reduce_max(tw.to_device(long)))) == long.max()
        assert np.allclose(tw.to_host(tw.softmax(tw.to_device(long[:5000]))), tw.softmax(long[:5000]), rtol=1e-5)
        """,
        seconds=300,
        TILEWORK_CL_CORE="S",
    )


def test_two_runs_give_the_same_bits() -> None:
    run(
        """
        x = tw.to_device(fill(2, 8, 12, 12))
        dy = tw.to_device(fill(2, 8, 12, 12))
        runs = [tw.to_host(tw.conv_dw(dy, x, kernel=3, padding=1)).tobytes() for _ in range(3)]
        assert len(set(runs)) == 1
        places = tw.to_device(np.random.default_rng(1).integers(0, 9, (2, 8, 12, 12)))
        runs = [tw.to_host(tw.max_pool_dx(dy, places, shape=(3, 3))).tobytes() for _ in range(3)]
        assert len(set(runs)) == 1
        """,
        seconds=300,
        TILEWORK_CL_CORE="S",
    )


def test_attention_in_fragments_is_right() -> None:
    """Masks, caps and ragged rows, in shares and whole, forward and backward; small blocks build in less time."""
    run(
        """
        from tilework.backends import opencl_attention
        from tilework.backends.opencl_attention import Block
        from tilework.registry import ops
        from tilework.testing import Case, assert_matches_reference
        from tilework.testing.cases import mapped
        for table in (opencl_attention.FORWARD, opencl_attention.OF_QUERIES, opencl_attention.OF_KEYS):
            table[64] = Block(2, 1, 16, 2)
        opencl_attention.THIN[64] = Block(1, 1, 16, 2)
        opencl_attention.MIN_KEYS = 16
        for name, sample in (("attention", 2), ("attention", 3), ("attention_dx", 2), ("attention_dx", 3)):
            made = Case(ops()[name], sample, "float16").build()
            result = ops()[name](*mapped(tw.to_device, made.args), **made.attrs)
            host = [tw.to_host(r) for r in (result if isinstance(result, tuple) else (result,))]
            assert_matches_reference(ops()[name], made.args, made.attrs, host, narrow_factors=True)
        """,
        seconds=300,
        TILEWORK_CL_CORE="T",
    )


def test_norms_of_long_lines_are_right() -> None:
    """Lines that stay in memory, in one piece and in rows, whose first elements are no guide; parameters in shares."""
    run(
        """
        def near(got, want):
            for g, w in zip(got, want, strict=True):
                error = np.abs(tw.to_host(g).astype(float) - w) / np.maximum(np.abs(w), np.abs(w).max() / 10)
                assert error.max() < 2e-5, error.max()
        x, dy = fill(3, 2, 33, 50), fill(2, 3, 33, 50).reshape(3, 2, 33, 50)
        x[0] = 7  # a mean far from the others'
        w, b, m, v = (np.abs(fill(2)) + i for i in range(4))
        there = [tw.to_device(a) for a in (x, w, b, m, v)]
        want = tw.batch_norm(x, w, b, m.copy(), v.copy(), training=True, return_stats=True)
        near(tw.batch_norm(*there, training=True, return_stats=True), want)
        args = (dy, x, *want[1:], w)
        near(tw.batch_norm_dx(*map(tw.to_device, args), training=True, return_dw=True),
             tw.batch_norm_dx(*args, training=True, return_dw=True))
        x, dy, w = fill(700, 20), fill(20, 700).reshape(700, 20), fill(20)
        args = (dy, x, *tw.layer_norm(x, w, w, return_stats=True)[1:], w)
        near(tw.layer_norm_dx(*map(tw.to_device, args), return_dw=True), tw.layer_norm_dx(*args, return_dw=True))
        """,
        seconds=300,
        TILEWORK_CL_CORE="S",
    )


def test_lstm_in_fragments_is_right() -> None:
    """Two directions, sequences beyond one group's, and states, beside the CPU in float32."""
    run(
        """
        rng = np.random.default_rng(0)
        d, t, n, i, h = 2, 3, 70, 16, 32
        shapes = ((t, n, i), (d, 4 * h, i), (d, 4 * h, h), (d, 4 * h), (d, n, h), (d, n, h))
        given = [(rng.standard_normal(s) * 0.4).astype(np.float16) for s in shapes]
        want = tw.lstm(*(a.astype(np.float32) for a in given), return_saved=True)
        for g, w in zip(tw.lstm(*map(tw.to_device, given), return_saved=True), want, strict=True):
            assert np.abs(tw.to_host(g).astype(np.float32) - w).max() < 2e-3, np.abs(tw.to_host(g) - w).max()
        """,
        seconds=300,
        TILEWORK_CL_CORE="T",
    )
