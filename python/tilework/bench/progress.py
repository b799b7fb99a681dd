"""What is being measured, on standard error: a live line with rich on a terminal, plain lines when piped."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from tilework.bench import table


class Progress:
    """Hears of a run: how many rows it has, what begins and what a row gave."""

    def __init__(self) -> None:
        self._done = self._total = 0
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, what: str, value: Any) -> None:
        if what == "rows":
            self._done, self._total = 0, value
            if self._bar is not None:
                self._bar.reset(self._task, total=value)
            else:
                self._open()
        elif what == "begin":
            problem, threads, device, sweep = value
            where = table.threads_text(threads) if device == "cpu" else device
            self._done += 1
            self._say(f"{problem.text}, {where}" + (f", sweep {sweep + 1}" if sweep else ""))
        elif what == "peaks":
            self._say(f"peaks, {table.threads_text(value)}" if isinstance(value, int) else f"peaks, {value}")
        elif what == "refused":
            self._print(f"{value[0]} takes no part: {value[1]}")
        elif what == "row":
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done)
            if value["status"] in ("wrong", "error"):
                self._print(f"{value['status']}: {value['problem']}: {value['message']}")

    def _open(self) -> None:
        if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeRemainingColumn

        columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=self._total)
        self._bar.start()

    def _say(self, text: str) -> None:
        if self._bar is not None:
            from rich.markup import escape

            self._bar.update(self._task, description=escape(table.shortened(text, 70)))
        else:
            print(f"[{self._done}/{self._total}] {text}", file=sys.stderr, flush=True)

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Takes the live line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
