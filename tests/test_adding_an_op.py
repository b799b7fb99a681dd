"""What docs/adding-an-op.md shows is a whole op: it is built from the page's own code blocks and passes every check."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tilework.registry import ops
from tilework.testing import CHECKS, applies

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "adding-an-op.md").read_text()
NEW_FILES = ("python/tilework/ops/softsign.py", "csrc/ops/softsign.cc", "kernels_cl/softsign.cl")

# An editable installation would put its own tilework in front of the one that was just built.
SITECUSTOMIZE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
"""


def block_after(text: str) -> str:
    """The first code block behind ``text`` on the page."""
    assert PAGE.count(text) == 1, text
    found = re.search(r"^```\w+\n(.*?)^```$", PAGE[PAGE.index(text) :], re.MULTILINE | re.DOTALL)
    assert found is not None, text
    return found[1]


def follow_the_page(tree: Path) -> None:
    """Three new files, and an entry in two lists."""
    for file in NEW_FILES:
        assert not (tree / file).exists()
        (tree / file).write_text(block_after(f": `{file}`\n"))
    table = tree / "csrc/ops/ops.def"
    table.write_text(table.read_text() + block_after("At the end of `csrc/ops/ops.def`"))
    listing = tree / "python/tilework/ops/__init__.pyi"
    listing.write_text(listing.read_text() + block_after("In `python/tilework/ops/__init__.pyi`"))


def _run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_the_page_names_the_new_files_once() -> None:
    for file in NEW_FILES:
        assert len(block_after(f": `{file}`\n")) > 200


@pytest.mark.slow
def test_the_op_of_the_page_is_built_and_passes_every_check(tmp_path: Path) -> None:
    tree, site = tmp_path / "tree", tmp_path / "site"
    built = shutil.ignore_patterns("build", ".git", "__pycache__", "*.so", ".*_cache", ".venv", "dist")
    shutil.copytree(ROOT, tree, ignore=built)
    follow_the_page(tree)
    isolated = importlib.util.find_spec("scikit_build_core") is None
    options = ("--no-deps", "--target", site, *(() if isolated else ("--no-build-isolation",)))
    made = _run(sys.executable, "-m", "pip", "install", "-q", *options, tree, cwd=tmp_path)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-6000:]
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)

    tests = ("tests/test_ops.py", "tests/test_registry.py")
    command = (sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", "softsign", *tests)
    done = _run(*command, cwd=tree, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = set(re.findall(r"\[softsign-(\w+)-float\d+\] PASSED", done.stdout))
    like = ops()["tanh"]  # a function with the same rules
    assert passed >= {check for check in CHECKS if applies(check, like)} - {"opencl"}, done.stdout
    assert "test_signature_agrees_with_the_cpp_table[softsign] PASSED" in done.stdout
    assert "test_op_is_one_room_on_every_floor[softsign] PASSED" in done.stdout
