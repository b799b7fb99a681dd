"""The calls that torch tests its own functions with, on tilework's ops: results, gradients, strides and refusals.

torch.testing keeps samples of its functions' arguments (OpInfo). torch_calls says what call of ``torch.ops.tilework``
each of those functions is; what an op does not document is counted: ``python tests/test_torch_samples.py`` prints it. A
result is right if it is as near to float64's as torch's own is, within a factor of two, or to a few roundings of what
goes in or comes out.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from torch_calls import CALLS, Call, UndocumentedError

torch = pytest.importorskip("torch", reason="torch is an extra that the tests do not bring")
pytest.importorskip("expecttest", reason="torch's samples want expecttest")
samples = pytest.importorskip("torch.testing._internal.common_methods_invocations")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

MOST_SAMPLES = 24  # of a function and a dtype, spread over all that torch has
DTYPES = ("float32", "bfloat16")


def entries() -> list[Any]:
    return [e for e in samples.op_db if e.name in CALLS and not (e.name == "silu" and e.variant_test_name)]


ENTRIES = {f"{e.name}:{e.variant_test_name}".rstrip(":"): e for e in entries() if e.variant_test_name != "complex"}


def call_of(entry: Any) -> Call:
    call = CALLS[entry.name]
    return functools.partial(call, name=entry.name) if _takes_name(call) else call


def _takes_name(call: Call) -> bool:
    code = getattr(call, "__code__", None)
    return code is not None and "name" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def chosen(entry: Any, dtype: str) -> list[Any]:
    """Some of torch's samples, the first and the last among them."""
    every: list[Any] = []
    for followed in (True, False) if entry.supports_autograd else (False,):
        if len(every) < 2:  # of a function with gradients more where those are few: torch spares itself some
            made = entry.sample_inputs("cpu", getattr(torch, dtype), requires_grad=followed)
            every += itertools.islice(made, 2000)
    step = max(1, -(-len(every) // MOST_SAMPLES))
    return every[::step] + ([every[-1]] if step > 1 else [])


def tensors(value: Any) -> Iterator[Any]:
    """The tensors in arguments, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)


def mapped(function: Call, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(function, v) for v in value)
    return {k: mapped(function, v) for k, v in value.items()} if isinstance(value, dict) else value


def wide(t: Any) -> Any:
    return t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t


def rounded(t: Any) -> Any:
    """float64 with every element one rounding of the dtype off."""
    if not t.is_floating_point():
        return t
    sign = torch.randint(0, 2, t.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return (t.detach().double() * (1 + sign * torch.finfo(t.dtype).eps / 2)).requires_grad_(t.requires_grad)


def arguments(sample: Any) -> tuple[Any, Any, Any]:
    return sample.input, sample.args, sample.kwargs


def results(call: Call, given: tuple[Any, Any, Any]) -> list[Any]:
    first, args, kwargs = given
    return list(tensors(call(first, *args, **kwargs)))


def gradients(made: Sequence[Any], given: Any, dy: Any) -> list[Any]:
    targets = [t for t in tensors(given) if t.requires_grad]
    if not targets or not made[0].requires_grad:
        return []
    return list(torch.autograd.grad(made[0], targets, dy.to(made[0].dtype), allow_unused=True))


def assert_as_near(mine: Any, theirs: Any, true: Any, what: str, slack: float = 0.0) -> None:
    assert mine.shape == theirs.shape, f"{what}: {tuple(mine.shape)}; want {tuple(theirs.shape)}"
    assert mine.dtype == theirs.dtype, f"{what}: {mine.dtype}; want {theirs.dtype}"
    if not mine.is_floating_point():
        assert torch.equal(mine, theirs), f"{what}: other numbers"
        return
    mine, theirs = mine.detach().double(), theirs.detach().double()
    odd = ~torch.isfinite(true) | ~torch.isfinite(theirs)
    assert torch.equal(torch.nan_to_num(mine[odd], 7.0), torch.nan_to_num(theirs[odd], 7.0)), f"{what}: not finite"
    if odd.all():
        return
    size = true[~odd].abs().max()
    eps = torch.finfo(torch.bfloat16).eps if what.endswith("bfloat16") else torch.finfo(torch.float32).eps
    allowed = 2 * (theirs - true)[~odd].abs().max() + 8 * eps * size + slack + 1e-30
    error = (mine - true)[~odd].abs().max()
    assert error <= allowed, f"{what}: {float(error):.3g} from float64's, at most {float(allowed):.3g}"


def _largest(t: Any) -> float:
    return float(torch.nan_to_num(t, 0.0, 0.0, 0.0).abs().max()) if t.numel() else 0.0


def is_refused(entry: Any, sample: Any) -> bool:
    """Whether a call is an error; an empty result of empty operands, which torch refuses, is defined."""
    try:
        made = results(call_of(entry), arguments(sample))
    except Exception:
        return True
    return all(t.numel() == 0 for t in made)


class Checked(Counter[str]):
    """How many samples were run, have gradients, and are of no op's documentation."""


def check(entry: Any, sample: Any, dtype: str, told: Checked) -> None:
    """Result, gradients and strides of one sample."""
    call, given = call_of(entry), arguments(sample)
    try:
        mine = results(call, given)
    except UndocumentedError:
        told["undocumented"] += 1
        return
    told["forward"] += 1
    exact = mapped(wide, given)
    theirs, true = (results(entry.op, g)[: len(mine)] for g in (given, exact))  # attention's weights are no result here
    what = f"{entry.name} in {dtype}"
    for m, t, w in zip(mine, theirs, true, strict=True):
        assert_as_near(m, t, w, what)
    apart = sample.noncontiguous()
    for m, t in zip(results(call, arguments(apart)), mine, strict=True):
        assert_as_near(m, t, t.detach().double() if t.is_floating_point() else t, f"strides of {what}")
    if not entry.supports_autograd or not theirs or not theirs[0].requires_grad:
        return
    dy = torch.randn(theirs[0].shape, generator=torch.Generator().manual_seed(0)).to(theirs[0].dtype)
    got, exactly = gradients(mine, given, dy), gradients(true, exact, dy)
    told["gradient"] += bool(got)
    largest = max((_largest(g) for g in exactly if g is not None), default=0.0)  # of the whole gradient
    off = mapped(rounded, given)
    beside = gradients(results(entry.op, off), off, dy)
    for m, t, w, o in zip(got, gradients(theirs, given, dy), exactly, beside, strict=False):
        if m is not None and t is not None:
            slack = 4 * _largest(o - w) + 8 * torch.finfo(m.dtype).eps * largest
            assert_as_near(m, t, w, f"a gradient of {what}", slack)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ENTRIES)
def test_torchs_own_samples(name: str, dtype: str) -> None:
    entry, told = ENTRIES[name], Checked()
    if getattr(torch, dtype) not in entry.supported_dtypes("cpu"):
        pytest.skip(f"torch has no {name} in {dtype}")
    torch.manual_seed(0)
    for sample in chosen(entry, dtype):
        check(entry, sample, dtype, told)


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e.error_inputs_func is not None])
def test_what_torch_refuses_is_refused(name: str) -> None:
    entry = ENTRIES[name]
    for wrong in entry.error_inputs("cpu"):
        assert is_refused(entry, wrong.sample_input), wrong.error_regex


def main() -> None:
    """Prints what is covered."""
    total = Checked()
    print(f"{'function':45} {'forward':>8} {'gradient':>9} {'undocumented':>13} {'wrong':>6}")
    for (name, entry), dtype in itertools.product(ENTRIES.items(), DTYPES):
        if getattr(torch, dtype) not in entry.supported_dtypes("cpu"):
            continue
        torch.manual_seed(0)
        told = Checked()
        for sample in chosen(entry, dtype):
            try:
                check(entry, sample, dtype, told)
            except Exception as error:
                told["wrong"] += 1
                print(f"  {name} {dtype}: {type(error).__name__}: {str(error)[:200]}")
        total += told
        row = (told[k] for k in ("forward", "gradient", "undocumented", "wrong"))
        print(f"{name + ' ' + dtype:45} {next(row):8} {next(row):9} {next(row):13} {next(row):6}")
    refused, wrong = 0, 0
    for name, entry in ENTRIES.items():
        for bad in entry.error_inputs("cpu") if entry.error_inputs_func else ():
            if is_refused(entry, bad.sample_input):
                refused += 1
            else:
                wrong += 1
                print(f"  {name}: accepted what torch refuses: {bad.error_regex[:100]}")
    print(f"{len(ENTRIES)} functions: {dict(total)}; refused {refused} of {refused + wrong} invalid calls")


if __name__ == "__main__":
    main()
