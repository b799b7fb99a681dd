"""The OpenCL backend itself: devices, memory, queues, errors. Each test runs in a process of its own, with a limit."""

from __future__ import annotations

import tempfile
import textwrap
from pathlib import Path

import pytest

from opencl_process import run

pytest.importorskip("pyopencl")
pytestmark = pytest.mark.opencl


# ---------------------------------------------------------------------------------------------------- devices


def test_devices_name_what_is_there() -> None:
    run("""
        found = tw.devices()
        assert found and opencl.why_none() == ""
        assert all(d.name and d.kind in ("gpu", "cpu", "accelerator") for d in found)
        same(tw.to_device(fill(3), found[0]), fill(3))
    """)


def test_environment_picks_the_device() -> None:
    run(
        """
        x = tw.to_device(fill(3))
        assert "Portable" in x.context.devices[0].platform.name
        """,
        TILEWORK_CL_DEVICE="portable:0",
    )


def test_unknown_device_lists_those_there_are() -> None:
    run("""
        with raises(errors.DeviceError, "no OpenCL device matches 'abacus:1'", "there are:", "Portable"):
            tw.to_device(fill(3), "abacus:1")
        with raises(errors.AttrTypeError, "device is a int"):
            tw.to_device(fill(3), 3)
    """)


_NOTHING = """
    assert tw.devices() == []
    assert {reason!r} in opencl.why_none() and chr(10) not in opencl.why_none(), opencl.why_none()
    with raises(errors.DeviceError, "no OpenCL device: ", {reason!r}):
        tw.to_device(fill(3))
    assert np.array_equal(tw.relu(np.array([-1.0, 2.0])), [0, 2])
"""


def test_without_pyopencl_the_cpu_works() -> None:
    run("sys.modules['pyopencl'] = None\n" + textwrap.dedent(_NOTHING.format(reason="tilework[opencl]")))


def test_without_a_driver_the_cpu_works(tmp_path: Path) -> None:
    run(_NOTHING.format(reason="no driver is registered"), OCL_ICD_VENDORS=str(tmp_path / "missing.so"))


def test_with_a_broken_driver_the_cpu_works(tmp_path: Path) -> None:
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"\x7fELF and nothing else")
    run(_NOTHING.format(reason="no driver is registered"), OCL_ICD_VENDORS=str(broken))


def test_import_and_cpu_calls_do_not_import_pyopencl() -> None:
    run("""
        tw.conv(fill(1, 2, 5, 5), fill(3, 2, 3, 3))
        assert not any(name.startswith("pyopencl") for name in sys.modules)
    """)


def test_a_driver_without_an_icd_file_is_made_visible(tmp_path: Path) -> None:
    run(f"""
        from tilework.backends import opencl_device
        opencl_device.ICD_FOLDER = {str(tmp_path)!r}
        opencl_device._nvidia_library = lambda: "/usr/lib/libnvidia-opencl.so.1"
        with opencl_device._NvidiaMadeVisible():
            folder = os.environ["OPENCL_VENDOR_PATH"]
            assert open(folder + "/nvidia.icd").read() == "/usr/lib/libnvidia-opencl.so.1\\n"
        assert "OPENCL_VENDOR_PATH" not in os.environ and not os.path.exists(folder)
    """)


# ----------------------------------------------------------------------------------------------- moving arrays


def test_every_dtype_survives_the_round_trip() -> None:
    run("""
        import ml_dtypes
        for dtype in (*opencl.DTYPES[:3], ml_dtypes.bfloat16, *opencl.DTYPES[4:]):
            for shape in ((), (0, 3), (5,), (2, 3, 4)):
                host = np.asarray(fill(*shape) * 3, dtype)
                back = tw.to_host(tw.to_device(host))
                assert back.dtype == host.dtype and back.tobytes() == host.tobytes()
        view = fill(4, 6)[::2, ::-3].T
        assert np.array_equal(tw.to_host(tw.to_device(view)), view)
        assert tw.to_device(fill(3), dtype=np.float64).dtype == np.float64
        x = tw.to_device(fill(3))
        assert tw.to_device(x) is x and tw.to_device(fill(2), like=x).queue == x.queue
        with raises(errors.DTypeError, "a has dtype >f4"):
            tw.to_device(fill(3).astype(">f4"))
        with raises(errors.DTypeError, "a has dtype complex64"):
            tw.to_device(fill(3).astype(np.complex64))
    """)


def test_mixed_arrays_say_what_to_move() -> None:
    run("""
        x = tw.to_device(fill(2, 3))
        with raises(TypeError, "b is on the CPU", "tilework.to_device(b, like=a)"):
            tw.add(x, fill(2, 3))
        with raises(errors.DTypeError, "out is on the CPU"):
            tw.relu(x, out=np.empty((2, 3), np.float32))
    """)


def test_arrays_of_two_contexts_do_not_mix() -> None:
    run("""
        import pyopencl as cl
        x = tw.to_device(fill(3))
        y = tw.to_device(fill(3), cl.Context(x.context.devices))
        with raises(errors.DTypeError, "two contexts", "tilework.to_device"):
            tw.add(x, y)
        same(tw.add(x, tw.to_device(y, like=x)), 2 * fill(3))
    """)


# ------------------------------------------------------------------------------------- strides, out, empty, in place


def test_views_are_read_and_written_where_they_lie() -> None:
    run("""
        host = fill(6, 8, 10)
        x = tw.to_device(host)
        for cut in (np.s_[1:, ::2, 3:], np.s_[::-1, 5:1:-2], np.s_[2, :, ::3]):
            for order in (None, 1):
                view, want = (x[cut], host[cut]) if order is None else (x[cut].T, host[cut].T)
                same(tw.relu(view), np.maximum(want, 0))
                same(tw.mul(view, view[..., :1]), want * want[..., :1])
                same(tw.reduce_sum(view, axes=0), want.sum(0))
                same(tw.softmax(view, axis=0), np.exp(want) / np.exp(want).sum(0))
                same(tw.concat([view, view], axis=1), np.concatenate([want, want], axis=1))
                same(tw.pad(view, pads=1), np.pad(want, 1))
                same(tw.cast(view, dtype=np.float64), want)
        a, b = x[1, ::2, 1::2], x[2, :5, :].T[:5]
        same(tw.matmul(a, b), tw.to_host(a) @ tw.to_host(b))
        image = x.reshape(2, 3, 8, 10)[:, :, ::2, 1:9]
        w = fill(4, 3, 3, 3)
        same(tw.conv(image, tw.to_device(w)), tw.conv(tw.to_host(image), w))
    """)


def test_out_receives_the_result() -> None:
    run("""
        x, buffer = tw.to_device(fill(3, 4)), tw.to_device(np.zeros((6, 8), np.float32))
        for out in (buffer[:3, :4], buffer[::2, ::2], buffer[3:, 4:]):
            assert tw.softmax(x, out=out) is out
            same(out, tw.softmax(fill(3, 4)))
        assert tw.relu(x, out=x) is x
        same(x, np.maximum(fill(3, 4), 0))
        y, indices = tw.to_device(np.zeros((1, 1, 2), np.float32)), tw.to_device(np.zeros((1, 1, 2), np.int64))
        pooled = tw.max_pool(x.reshape(1, 1, 12)[..., :4], kernel=2, return_indices=True, out=(y, indices))
        assert pooled[0] is y and pooled[1] is indices
    """)


def test_unfit_out_is_refused_before_anything_is_written() -> None:
    run("""
        x, y = tw.to_device(fill(4, 4)), tw.to_device(fill(3, 4))
        with raises(errors.ShapeError, "out has shape (3, 4); want (4, 4)"):
            tw.relu(x, out=y)
        with raises(errors.DTypeError, "out has dtype float64; want float32"):
            tw.relu(x, out=tw.to_device(fill(4, 4), dtype=np.float64))
        with raises(errors.ShapeError, "out shares memory with x; want separate arrays, or exactly the same one"):
            tw.relu(x[:3], out=x[1:])
        with raises(errors.ShapeError, "out shares memory with x; want separate arrays"):
            tw.softmax(x, out=x)
        with raises(errors.ShapeError, "w shares memory with g"):
            tw.sgd_step(x, x, lr=0.1)
        from pyopencl.array import Array
        flat = Array(x.queue, (4, 4), x.dtype, data=x.base_data, strides=(0, 4))
        with raises(errors.ShapeError, "elements of out share memory"):
            tw.relu(y, out=flat[:3])
        same(x, fill(4, 4))
    """)


def test_empty_arrays_need_no_kernel() -> None:
    run("""
        x = tw.to_device(np.zeros((0, 3), np.float32))
        assert tw.relu(x).shape == (0, 3) and tw.add(x, 1.0).shape == (0, 3) and tw.softmax(x).shape == (0, 3)
        assert tw.matmul(x, tw.to_device(fill(3, 4))).shape == (0, 4)
        same(tw.reduce_sum(x, axes=0), np.zeros(3))
        same(tw.matmul(tw.to_device(fill(2, 0)), tw.to_device(fill(0, 5))), np.zeros((2, 5)))
        assert tw.to_host(tw.concat([x, x])).shape == (0, 3)
    """)


def test_optimizers_update_views_in_place() -> None:
    run("""
        host, grads = fill(8, 6), fill(8, 6) ** 2
        w, g = tw.to_device(host), tw.to_device(grads)
        assert tw.sgd_step(w[::2, 1:4], g[::2, 1:4], lr=0.5) is None
        host[::2, 1:4] -= 0.5 * grads[::2, 1:4]
        same(w, host)
    """)


# ----------------------------------------------------------------------------------------------- index contents


def test_bad_indices_are_found_before_anything_is_written() -> None:
    run("""
        logits, out = tw.to_device(fill(4, 3)), tw.to_device(np.full((4,), 7, np.float32))
        labels = tw.to_device(np.array([0, 2, 5, -1]))
        with raises(IndexError, "labels has 5"):
            tw.softmax_cross_entropy(logits, labels, reduction="none", out=out)
        same(out, np.full(4, 7))
        dy, indices = tw.to_device(fill(1, 1, 3)), tw.to_device(np.array([[[0, 9, 1]]]))
        with raises(errors.IndexContentError, "indices has 9"):
            tw.max_pool_dx(dy, indices, shape=6)
    """)


# -------------------------------------------------------------------------------------------------------- queues


def test_user_contexts_and_queues_are_used() -> None:
    run("""
        import pyopencl as cl
        import pyopencl.array
        context = cl.Context(cl.get_platforms()[0].get_devices()[:1])
        for properties in (0, cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE):
            queue = cl.CommandQueue(context, properties=properties)
            x = pyopencl.array.to_device(queue, fill(50, 50))
            y = x
            for _ in range(5):
                y = tw.mul(tw.add(y, x), 0.5)
            assert y.queue == queue
            same(y, fill(50, 50))
        bare = x.with_queue(None)
        same(tw.relu(bare), np.maximum(fill(50, 50), 0))
    """)


def test_arrays_of_two_queues_are_ordered() -> None:
    run("""
        import pyopencl as cl
        x = tw.to_device(fill(300, 300))
        other = cl.CommandQueue(x.context)
        y = tw.to_device(fill(300, 300), other)
        for _ in range(20):
            z = tw.matmul(tw.mul(x, 2.0), tw.mul(y, 0.5))
        a = fill(300, 300).astype(np.float64)
        bound = 2 * np.finfo(np.float32).eps * 300**0.5 * (np.abs(a) @ np.abs(a))  # docs/numerics.md
        assert np.all(np.abs(tw.to_host(z) - a @ a) <= bound)
    """)


def test_threads_may_call_at_once() -> None:
    run("""
        import threading
        x, wrong = tw.to_device(fill(40, 40)), []
        def work(scale):
            for _ in range(50):
                y = tw.to_host(tw.mul(x, scale))
                if not np.array_equal(y, fill(40, 40) * np.float32(scale)):
                    wrong.append(scale)
        threads = [threading.Thread(target=work, args=(s,)) for s in (1.0, 2.0, 3.0, 4.0)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert not wrong, wrong
    """)


def test_fork_after_use_is_an_error_in_the_child() -> None:
    run(
        """
        x = tw.to_device(fill(3))
        same(tw.relu(x), np.maximum(fill(3), 0))
        child = os.fork()
        if child == 0:
            try:
                for call in (lambda: tw.relu(x), lambda: tw.to_device(fill(3)), lambda: tw.to_host(x), tw.synchronize):
                    with raises(errors.DeviceError, "forked", "spawn"):
                        call()
                assert tw.devices() == []
                assert np.array_equal(tw.relu(fill(3)), np.maximum(fill(3), 0))
            except BaseException as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        seconds=60,
    )


# -------------------------------------------------------------------------------------------------------- errors


def test_build_error_names_kernel_options_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "bad.clh").write_text("#define TWO 2\n")
    (tmp_path / "bad.cl").write_text('#include "bad.clh"\n__kernel void good(void) {}\n\nsyntax error\n')
    before = set(Path(tempfile.gettempdir()).glob("*.cl"))
    run(f"""
        from pathlib import Path
        from tilework.backends import opencl_programs
        x = tw.to_device(fill(3))
        opencl_programs.source_folder = lambda: Path({str(tmp_path)!r})
        queue = opencl._queues("relu", [x])[0]
        with raises(errors.DeviceError, "kernel good of bad.cl does not build", "-DTWO=3", "bad.cl:4:"):
            queue.launch("bad.cl", "good", 1, 1, (), TWO=3)
    """)
    assert set(Path(tempfile.gettempdir()).glob("*.cl")) <= before


def test_missing_kernel_is_a_device_error() -> None:
    run("""
        queue = opencl.default_device().queue()
        with raises(errors.DeviceError, "kernel nonsense is not in check.cl"):
            queue.launch("check.cl", "nonsense", 1, 1, (), DTYPE=np.dtype(np.int32))
    """)


def test_running_out_of_memory_names_the_bytes_and_leaves_the_device_usable() -> None:
    run("""
        device = opencl.default_device()
        with raises(MemoryError, "bytes asked for", str(1 << 46)):
            device.queue().empty((1 << 44,), np.float32)
        x = tw.to_device(fill(1 << 10))
        with raises(errors.AllocationError, "expand: ", str(4 << 32)):
            tw.expand(tw.to_device(fill(1)), shape=(1 << 32,))
        same(tw.relu(x), np.maximum(fill(1 << 10), 0))
    """)


def test_freed_memory_is_given_back_before_giving_up() -> None:
    run("""
        device = opencl.default_device()
        queue = device.queue()
        device.memory_limit = 1 << 20
        for size in (1 << 19, 3 << 18, 1 << 18, 7 << 17):
            queue.empty((size,), np.uint8)
        kept = queue.empty((1 << 19,), np.uint8)
        with raises(errors.AllocationError, "tilework holds"):
            queue.empty((3 << 18,), np.uint8)
    """)


_FAILING = """
    import pyopencl as cl
    queue = opencl.default_device().queue()
    x = tw.to_device(fill(3))
    original, held = queue.device.programs.kernel, []

    def failing(*request):
        kernel = original(*request)
        def enqueue(*args):
            held.append(queue.pool.held_blocks)
            if len(held) <= {times}:
                raise cl.MemoryError(cl._cl._ErrorRecord("", int(cl.status_code.{code}), "clEnqueueNDRangeKernel"))
            return kernel(*args)
        return enqueue

    queue.empty((1 << 20,), np.uint8)
    queue.device.programs.kernel = failing
"""


def test_launch_is_repeated_once_with_the_memory_that_was_held() -> None:
    run(
        _FAILING.format(times=1, code="MEM_OBJECT_ALLOCATION_FAILURE")
        + """
    same(tw.relu(x), np.maximum(fill(3), 0))
    assert held[0] > 0 and held[1] == 0, held
    """
    )
    run(
        _FAILING.format(times=2, code="MEM_OBJECT_ALLOCATION_FAILURE")
        + """
    with raises(errors.AllocationError, "relu: kernel", "MEM_OBJECT_ALLOCATION_FAILURE"):
        tw.relu(x)
    """
    )


def test_fault_of_an_earlier_kernel_is_told_from_a_lack_of_memory() -> None:
    run(
        _FAILING.format(times=2, code="OUT_OF_RESOURCES")
        + """
    with raises(errors.DeviceError, "relu: kernel", "OUT_OF_RESOURCES", "TILEWORK_CL_SYNC=1"):
        tw.relu(x)
    assert len(held) == 1
    """
    )


def test_steady_state_allocates_nothing() -> None:
    run("""
        x = tw.to_device(fill(100, 100))
        pool = opencl.default_device().queue().pool
        for _ in range(3):
            tw.softmax(tw.matmul(x, x))
        held = pool.managed_bytes
        for _ in range(50):
            tw.softmax(tw.matmul(x, x))
        assert pool.managed_bytes == held
    """)


def test_synchronous_mode_gives_the_same_results() -> None:
    run("same(tw.relu(tw.to_device(fill(9))), np.maximum(fill(9), 0))", TILEWORK_CL_SYNC="1")


def test_unknown_core_is_an_error() -> None:
    run(
        """
        with raises(errors.DeviceError, "TILEWORK_CL_CORE='Q'; want P"):
            tw.to_device(fill(3))
        """,
        TILEWORK_CL_CORE="Q",
    )


# ----------------------------------------------------------------------------------------------------- graphs


def test_a_graph_runs_on_a_device_and_keeps_its_variables_there() -> None:
    run("""
        w, b = fill(4, 3), fill(4)
        v = tw.Variable(fill(5, 3), "v")
        def f(x):
            y = tw.relu(tw.linear(x, w) + b)
            tw.sgd_step(v, x, lr=0.5)
            return y.transpose(1, 0).reshape(2, 10), tw.grad(lambda x: tw.reduce_sum(tw.tanh(x) * x))(x), v + 0.0, x
        x = fill(5, 3)
        want = tw.trace(f, x).compile()(x)
        v.value = fill(5, 3)
        exe = tw.trace(f, x).compile(device="opencl")
        got = exe(tw.to_device(x))
        for a, b in zip(got, want):
            same(a, b)
        same(v.value, want[2])
        with raises(tw.DTypeError, "x is on cpu; want a device array"):
            exe(x)
    """)


def test_repeated_calls_see_what_changed() -> None:
    """Other contents, memory shared otherwise, another sign of zero: a plan is for calls like its own."""
    run("""
        x, z = (fill(5, 7) * n for n in (1, 2))
        a, b = tw.to_device(x), tw.to_device(z)
        first = tw.add(a, b)
        assert len(opencl.default_device().queue().plans) == 1
        second = tw.add(b, b)
        third = tw.add(b, a, out=tw.to_device(x * 0))
        same(first, x + z), same(second, z + z), same(third, z + x)
        for _ in range(3):
            tw.add(a, b, out=a)  # in place
        same(a, x + 3 * z)
        with raises(errors.ShapeError, "out shares memory with x"):
            tw.softmax(a, out=a)
        with raises(errors.ShapeError):
            tw.add(a, b[:2, :3])
        for slope in (0.0, -0.0, 0.5):
            for values in (x, -x):
                got = tw.to_host(tw.leaky_relu(tw.to_device(values), alpha=slope))
                assert got.tobytes() == tw.leaky_relu(values, alpha=slope).tobytes(), slope
        for values in (x, z):  # a copy of its own before the rows
            same(tw.softmax(tw.to_device(values).T, axis=-1), tw.softmax(values.T, axis=-1))
        for values in (x, z):
            same(tw.concat([tw.to_device(values), b]), np.concatenate([values, z]))
        for last in (4, 4, 5):  # indices are read every time, before anything is written
            at = tw.to_device(np.array([1, last]))
            if last < 5:
                same(tw.embedding(b, at), z[[1, last]])
            else:
                with raises(errors.IndexContentError, "has 5 at position 1"):
                    tw.embedding(b, at)
    """)
