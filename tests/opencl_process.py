"""Code that runs on an OpenCL device in a process of its own, with a limit: a driver may hang or crash."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

PREAMBLE = """
import os, sys
import numpy as np
import tilework as tw
from tilework import errors
from tilework.backends import opencl, opencl_queue

def raises(error, *pieces):
    class Check:
        def __enter__(self):
            return self
        def __exit__(self, kind, value, trace):
            assert isinstance(value, error), f"{kind}: {value}"
            for piece in pieces:
                assert piece in str(value), f"{piece!r} is not in: {value}"
            return True
    return Check()

def fill(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)

def same(device_array, want):
    got = tw.to_host(device_array)
    assert got.shape == np.shape(want) and np.allclose(got, want, rtol=1e-5, atol=1e-5), (got, want)
"""


def run(code: str, seconds: float = 120, **environment: str) -> None:
    """Runs ``code`` after the preamble in a new process, which must end well within ``seconds``."""
    cache = Path(tempfile.gettempdir(), f"tilework-pocl-{os.getuid()}")
    cache.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PREAMBLE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={"POCL_CACHE_DIR": str(cache), **os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-4000:]
