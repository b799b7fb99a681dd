"""``python -m tilework.testing CHECK OP [SAMPLE|-] [DTYPE]``: runs a check and prints what failed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tilework.registry import ops
from tilework.testing import CHECKS, dtypes_for, run_check


def main(argv: Sequence[str]) -> int:
    if not 2 <= len(argv) <= 4 or argv[0] not in CHECKS or argv[1] not in ops():
        print(f"usage: python -m tilework.testing CHECK OP [SAMPLE|-] [DTYPE]; CHECK is one of {', '.join(CHECKS)}")
        return 2
    sample = int(argv[2]) if len(argv) > 2 and argv[2] != "-" else None
    status = 0
    for dtype in argv[3:] or dtypes_for(argv[0], ops()[argv[1]]):
        try:
            run_check(argv[0], ops()[argv[1]], dtype, sample)
            print(f"{argv[0]} {argv[1]} {dtype}: good")
        except AssertionError as failure:
            print(failure)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
