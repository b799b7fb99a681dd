"""The ``tilework`` command. Each subcommand is a module with ``main(argv)``, imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# name: (module, what it does)
COMMANDS = {
    "info": ("tilework.info", "what was built, what runs here, and why"),
    "coverage": ("tilework.coverage", "every op: its types, gradients, devices and routes"),
    "demo": ("tilework.demo", "trains a small network on handwritten digits"),
    "edges": ("tilework.edges", "finds the edges of a picture"),
    "lines": ("tilework.lines_command", "finds the straight lines of a picture"),
    "run": ("tilework.interop.onnx.command", "runs an ONNX model on arrays in .npy files"),
    "bench": ("tilework.bench.commands", "measures ops beside other libraries and the machine's peaks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; 2 and one line on standard error where it cannot."""
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="tilework",
        description="Compute kernels for n-dimensional layers.",
        epilog=f"commands:\n{listing}\n\n`tilework COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 0
    chosen = parser.parse_args(argv)
    try:
        module = importlib.import_module(COMMANDS[chosen.command][0])
        return int(module.main(chosen.arguments) or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from tilework.errors import Error

        if not isinstance(error, (Error, ImportError)):
            raise
        print(f"tilework {chosen.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
