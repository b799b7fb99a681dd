"""What a worker and the process that commands it agree on."""

PROTOCOL = 2  # changes when a request or an answer does: `ab` may meet an older installation

CLEAN = 0.02  # share of a block that threads may have waited for a CPU


class WorkerLostError(Exception):
    """A worker died or did not answer; the text says how."""
