"""The file of a run: JSON with raw samples, checked when it is read."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from tilework.bench import measure
from tilework.bench.problems import BenchError

SCHEMA = "tilework-bench/2"
_KEYS = (
    "schema",
    "started",
    "finished",
    "interrupted",
    "command",
    "machine",
    "build",
    "peers",
    "settings",
    "peaks",
    "device_peaks",
    "rows",
)
_KINDS = {dict: ("machine", "build", "peers", "settings", "device_peaks"), list: ("command", "peaks", "rows")}
_ROW_KEYS = (
    "problem",
    "op",
    "family",
    "name",
    "dtype",
    "direction",
    "threads",
    "device",
    "status",
    "message",
    "sweeps",
    "contestants",
    "ratios",
    "bound",
)


def check_writable(path: str, *, force: bool, instead: str = "--force") -> None:
    """Fails before an hour of measuring, not after."""
    target = Path(path)
    if target.is_dir():
        raise BenchError(f"cannot write {path}: it is a folder; want a file")
    if target.exists() and not force:
        raise BenchError(f"{path} exists; want another name, or {instead}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab"):
            pass
        if target.stat().st_size == 0:
            target.unlink()
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from None


def _rounded(value: Any) -> Any:
    """Numbers to five digits: more are noise, and the file is kept."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def save(path: str, document: dict[str, Any]) -> None:
    """Writes a run, one row a line; compressed if the name ends in .gz."""
    head = {k: v for k, v in document.items() if k != "rows"}
    text = json.dumps(_rounded(head), indent=1)[:-2] + ',\n "rows": [\n'
    text += ",\n".join("  " + json.dumps(_rounded(r), separators=(",", ":")) for r in document["rows"]) + "\n ]\n}\n"
    raw = gzip.compress(text.encode(), mtime=0) if path.endswith(".gz") else text.encode()
    part = Path(f"{path}.part")  # so that a run which is cut off never leaves half a file
    try:
        if not Path(path).exists() or Path(path).is_file():
            part.write_bytes(raw)
            part.replace(path)
        else:
            Path(path).write_bytes(raw)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from None


def load(path: str) -> dict[str, Any]:
    """Reads a run, or says what is wrong with the file."""
    try:
        raw = Path(path).read_bytes()
        document = json.loads(gzip.decompress(raw) if path.endswith(".gz") else raw)
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, RecursionError, zlib.error) as error:
        raise BenchError(f"{path} is not JSON: {str(error)[:120]}") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise BenchError(f"{path} has schema {schema!r:.60}; want {SCHEMA!r}")
    missing = [k for k in _KEYS if k not in document]
    if missing:
        raise BenchError(f"{path} lacks {', '.join(missing)}")
    for kind, keys in _KINDS.items():
        for key in keys:
            if not isinstance(document[key], kind):
                raise BenchError(f"{path} has {key} of type {type(document[key]).__name__}; want {kind.__name__}")
    for row in document["rows"]:
        if not isinstance(row, dict) or any(k not in row for k in _ROW_KEYS):
            raise BenchError(f"{path} has a row without all of {', '.join(_ROW_KEYS)}")
        if not _is_row(row):
            raise BenchError(f"{path} has a row that is none: {json.dumps(row)[:120]}")
    return dict(document)


def _is_row(row: dict[str, Any]) -> bool:
    texts = all(isinstance(row[k], str) for k in ("problem", "op", "family", "name", "dtype", "device", "status"))
    bound = row["bound"] is None or (_is_dict(row["bound"]) and {"by", "seconds"} <= set(row["bound"]))
    if not (texts and bound and _is_dict(row["contestants"]) and _is_dict(row["ratios"])):
        return False
    parts = [*row["contestants"].values(), *row["ratios"].values(), row.get("scaling", {})]
    return all(map(_is_dict, parts)) and set(row["ratios"]) <= set(row["contestants"]) and type(row["threads"]) is int


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def key(row: dict[str, Any]) -> tuple[str, int, str]:
    """What makes two rows the same measurement."""
    return row["problem"], row["threads"], row["device"]


def four_digits(value: float | None) -> float | None:
    """A sample as it is kept."""
    return None if value is None else float(f"{value:.4g}")


def pairs(taken: list[dict[str, float]]) -> list[list[float]]:
    """Samples as they are kept: seconds, and the share of the block that was waited for a CPU."""
    return [[float(f"{s['seconds']:.4g}"), float(f"{s['waited']:.2g}")] for s in taken]


def seconds_of(kept: list[list[float]]) -> list[dict[str, float]]:
    """The samples that :func:`pairs` kept."""
    return [{"seconds": s, "waited": w} for s, w in kept]


def samples(row: dict[str, Any], name: str) -> list[dict[str, float]]:
    """The raw samples of a contestant, as measured."""
    told = row["contestants"].get(name, {})
    found = seconds_of(told.get("samples", []))
    if row.get("thinned"):
        return [{**s, "round": 1.0} for s in found]
    kernels = told.get("kernel_samples") or [None] * len(found)
    return [s if k is None else {**s, "kernel": k} for s, k in zip(found, kernels, strict=False)]


def thinned(document: dict[str, Any]) -> dict[str, Any]:
    """The run with each round's fastest pass alone: every ratio and time stays, and a repository can keep the file."""

    def kept(passes: list[list[float]]) -> list[list[float]]:
        return pairs(measure.rounds(seconds_of(passes)))

    rows = []
    for row in document["rows"]:
        entries = {}
        for name, entry in row["contestants"].items():
            rest = {k: v for k, v in entry.items() if k != "kernel_samples"}
            entries[name] = {**rest, "samples": kept(entry["samples"])} if "samples" in entry else rest
        loops = {kind: kept(passes) for kind, passes in row.get("loops", {}).items()}
        alone = {"alone": kept(row["alone"])} if "alone" in row else {}
        rows.append({**row, "thinned": True, "contestants": entries, "loops": loops, **alone})
    return {**document, "rows": rows}
