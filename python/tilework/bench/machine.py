"""What a run ran on: the machine, the build and the libraries."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from tilework import _core
from tilework.bench import peers

_BUSY = 0.5  # processes per CPU


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip().splitlines()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return ""


def _field(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def cpu_name() -> str:
    """The CPU as it names itself."""
    return _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def load_per_cpu() -> float:
    """Processes that wanted a CPU during the last minute, for each that we may use."""
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))


def warnings() -> list[str]:
    """What will make times of this machine vary."""
    found = []
    if load_per_cpu() > _BUSY:
        found.append(f"the machine is busy: {load_per_cpu():.1f} processes per CPU; intervals will be wide")
    governor = _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor not in ("", "performance"):
        found.append(f"the CPU's frequency follows its load (governor {governor}); ratios hold, times will vary")
    return found


def core_digest() -> str:
    """A short hash of the compiled library, which says whether two builds are the same."""
    return hashlib.sha256(Path(_core.__file__).read_bytes()).hexdigest()[:12]


def facts() -> dict[str, Any]:
    """The machine, as a reader of the results needs it."""
    return {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)),
        "flags": _field("/proc/cpuinfo", "flags") or _field("/proc/cpuinfo", "Features"),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "turbo_off": _first_line("/sys/devices/system/cpu/intel_pstate/no_turbo") or "unknown",
        "huge_pages": _first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "virtual": "hypervisor" in _field("/proc/cpuinfo", "flags"),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
    }


def build(worker_facts: dict[str, Any]) -> dict[str, Any]:
    """The library that was measured."""
    return {
        "tilework": worker_facts["tilework"],
        "tier": worker_facts["tier"],
        "tiers": worker_facts["tiers"],
        "caches": worker_facts["caches"],
        "compiler": worker_facts["compiler"],
        "flags": worker_facts.get("flags", ""),
        "commit": _commit(worker_facts["where"]),
        "core": core_digest(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _commit(where: str) -> str:
    """The commit of the checkout the package lies in, with a + if it was changed; ``""`` for an installed one."""
    try:
        done = subprocess.run(
            ["git", "-C", where, "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def now() -> str:
    """The time, as ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def peer_versions(wanted: list[str]) -> dict[str, dict[str, str]]:
    """For each peer its version, or why it is absent."""
    found = {}
    for name in wanted:
        reason = peers.why_absent(name)
        found[name] = {"absent": reason} if reason else {"version": peers.version(name)}
    return found
