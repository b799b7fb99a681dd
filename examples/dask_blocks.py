"""Runs a prepared layer over the blocks of a dask array on two worker processes: the same bits as in one call.

    python examples/dask_blocks.py

The layer travels to the workers by pickle, where its weights are packed again.
"""

from __future__ import annotations

import sys

import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster

import tilework as tw


def main() -> int:
    """Both ways, and whether they agree."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 32), np.float32)
    w, b = rng.standard_normal((16, 32), np.float32), rng.standard_normal(16, np.float32)
    layer = tw.linear.prepare(w=w, b=b, activation="gelu")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        blocks = da.from_array(x, chunks=(16, 32))
        y = blocks.map_blocks(layer, dtype=np.float32, chunks=(16, 16)).compute()
    same = y.tobytes() == layer(x).tobytes()
    print("same bits" if same else "different bits")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
