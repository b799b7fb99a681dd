"""Optimizers beside float64 and torch, the trainer's step, clipping, checkpoints, and reductions from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import safetensors, train
from tilework.arrays import Array

OPTIMIZERS = {
    "SGD": (train.SGD(lr=0.1), "SGD", {}),
    "momentum": (train.SGD(lr=0.1, momentum=0.9, dampening=0.2), "SGD", {"momentum": 0.9, "dampening": 0.2}),
    "nesterov": (
        train.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        "SGD",
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "Adam": (train.Adam(lr=0.1, weight_decay=0.01), "Adam", {"weight_decay": 0.01}),
    "AdamW": (train.AdamW(lr=0.1), "AdamW", {}),
    "AMSGrad": (train.Adam(lr=0.1, amsgrad=True), "Adam", {"amsgrad": True}),
    "AdamW AMSGrad": (train.AdamW(lr=0.1, amsgrad=True), "AdamW", {"amsgrad": True}),
    "RMSProp": (train.RMSProp(lr=0.1), "RMSprop", {}),
    "RMSProp centered": (
        train.RMSProp(lr=0.1, centered=True, momentum=0.9, weight_decay=0.1),
        "RMSprop",
        {"centered": True, "momentum": 0.9, "weight_decay": 0.1},
    ),
}
STEPS = 12


def _gradients() -> Array:
    return np.random.default_rng(1).standard_normal((STEPS, 5, 7))


def _run(optimizer: train.Optimizer) -> Array:
    w = np.random.default_rng(0).standard_normal((5, 7))
    state = {slot: np.zeros_like(w) for slot in optimizer.slots()}
    for step, g in enumerate(_gradients(), 1):
        optimizer.update(w, g, state, optimizer.numbers(step))
    return w


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_torchs(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is the peer")
    optimizer, theirs, options = OPTIMIZERS[name]
    w = torch.nn.Parameter(torch.from_numpy(np.random.default_rng(0).standard_normal((5, 7))))
    stepper = getattr(torch.optim, theirs)([w], lr=0.1, **options)
    for g in _gradients():
        w.grad = torch.from_numpy(g.copy())
        stepper.step()
    np.testing.assert_allclose(_run(optimizer), w.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_velocities_part_only_when_the_rate_changes() -> None:
    kinds: tuple[Any, ...] = ("gradients", "steps", "moves")
    for nesterov in (False, True):
        same = [_run(train.SGD(lr=0.1, momentum=0.9, nesterov=nesterov, velocity=k)) for k in kinds]
        np.testing.assert_allclose(same[1], same[0], rtol=1e-12)
        np.testing.assert_allclose(same[2], same[0], rtol=1e-12)
    results = []
    for kind in kinds:
        w, v = np.ones(3), np.zeros(3)
        for lr in (0.1, 0.01):
            tw.sgd_step(w, np.ones(3), v, lr=lr, momentum=0.5, velocity=kind)
        results.append(float(w[0]))
    assert results[0] == pytest.approx(1 - 0.1 - 0.01 * 1.5)
    assert results[1] == results[2] == pytest.approx(1 - 0.1 - (0.05 + 0.01))


def test_lion_steps_by_signs() -> None:
    w, m = np.zeros(3), np.zeros(3)
    lion = train.Lion(lr=0.5)
    lion.update(w, np.array([2.0, -3.0, 0.0]), {"m": m}, lion.numbers(1))
    np.testing.assert_array_equal(w, [-0.5, 0.5, 0.0])
    np.testing.assert_allclose(m, [0.02, -0.03, 0.0])


# ----------------------------------------------------------------------------------------------------- the trainer


def _params() -> dict[str, Any]:
    random = np.random.default_rng(0)
    layers = [(random.standard_normal((8, 6)), np.zeros(8)), (random.standard_normal((1, 8)), np.zeros(1))]
    return {"layers": [{"w": w.astype(np.float32), "b": b.astype(np.float32)} for w, b in layers]}


def _loss(params: Any, x: Array, target: Array) -> Array:
    first, second = params["layers"]
    hidden = tw.tanh(tw.linear(x, first["w"], first["b"]))
    return train.mean_square(tw.linear(hidden, second["w"], second["b"]), target)


def _batch(seed: int) -> tuple[Array, Array]:
    x = np.random.default_rng(seed).standard_normal((16, 6)).astype(np.float32)
    return x, x[:, :1] * x[:, 1:2]


def test_a_trainer_learns_and_keeps_the_given_parameters() -> None:
    params = _params()
    trainer = train.Trainer(_loss, params, train.Adam(lr=0.03), clip=train.Clip(global_norm=1.0))
    losses = [float(trainer.step(*_batch(k % 4))) for k in range(120)]
    assert losses[-1] < 0.3 * losses[0]
    assert params["layers"][0]["w"].tobytes() == _params()["layers"][0]["w"].tobytes()
    assert float(trainer.evaluate(_loss, *_batch(0))) < losses[0]


def test_a_step_is_the_gradient_and_the_update() -> None:
    trainer = train.Trainer(_loss, _params(), train.SGD(lr=0.5))
    value, gradients = tw.value_and_grad(_loss)(_params(), *_batch(0))
    stepped = trainer.step(*_batch(0))
    assert float(stepped) == pytest.approx(float(value), rel=1e-6)
    want = _params()["layers"][0]["w"] - 0.5 * gradients["layers"][0]["w"]
    np.testing.assert_allclose(trainer.params["layers"][0]["w"], want, rtol=1e-5, atol=1e-6)


def test_clipping_limits_what_it_names() -> None:
    gradients = [np.float32([3, -4]), np.float32([0, 0.5])]
    by_value, _ = train.Clip(value=1.0)(gradients)
    np.testing.assert_array_equal(by_value[0], [1, -1])
    by_norm, _ = train.Clip(norm=1.0)(gradients)
    np.testing.assert_allclose(by_norm[0], [0.6, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(by_norm[1], gradients[1])
    together, norm = train.Clip(global_norm=1.0)(gradients)
    assert norm == pytest.approx(np.sqrt(25.25))
    assert np.sqrt(sum(float(np.sum(g * g)) for g in together)) == pytest.approx(1.0)
    with pytest.raises(tw.AttrError, match="norm=0"):
        train.Clip(norm=0)


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    optimizer = train.RMSProp(lr=0.01, centered=True, momentum=0.5)
    straight = train.Trainer(_loss, _params(), optimizer)
    for k in range(4):
        straight.step(*_batch(k))
    straight.save(path, note="half way")
    for k in range(4, 8):
        straight.step(*_batch(k))
    other = train.Trainer(_loss, _params(), optimizer)
    assert other.load(path)["note"] == "half way"
    for k in range(4, 8):
        other.step(*_batch(k))
    for one, two in zip(straight.params["layers"], other.params["layers"], strict=True):
        assert one["w"].tobytes() == two["w"].tobytes()


def test_a_foreign_or_damaged_checkpoint_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    trainer = train.Trainer(_loss, _params(), train.Adam())
    trainer.save(path)
    whole = path.read_bytes()
    for data, text in (
        (b"", "cannot hold a header"),
        (b"\xff" * 8 + whole[8:], "cannot hold a header"),
        (whole[:-5], "want .* bytes inside"),
        (whole[:8] + b"[" + whole[9:], "damaged"),
    ):
        path.write_bytes(data)
        with pytest.raises(tw.FormatError, match=text):
            trainer.load(path)
    path.write_bytes(whole)
    with pytest.raises(tw.FormatError, match="is of Adam"):
        train.Trainer(_loss, _params(), train.SGD()).load(path)
    path.write_bytes(safetensors.dumps({"w": np.ones(3)}))
    with pytest.raises(tw.FormatError, match="no checkpoint"):
        trainer.load(path)


def test_gradients_are_reduced_by_what_the_user_gives() -> None:
    """Two workers with half a batch each, whose gradients are averaged, train like one with the whole batch."""
    x, target = _batch(0)
    halves = [(x[:8], target[:8]), (x[8:], target[8:])]
    whole = train.Trainer(_loss, _params(), train.SGD(lr=0.1), clip=train.Clip(global_norm=0.5))
    whole.step(x, target)
    partial = [tw.value_and_grad(_loss)(_params(), *half)[1] for half in halves]
    other = [g for layer in partial[1]["layers"] for g in layer.values()]

    def mean(gradients: list[Array]) -> list[Array]:
        return [(a + b) / 2 for a, b in zip(gradients, other, strict=True)]

    worker = train.Trainer(_loss, _params(), train.SGD(lr=0.1), clip=train.Clip(global_norm=0.5), reduce=mean)
    worker.step(*halves[0])
    for one, two in zip(whole.params["layers"], worker.params["layers"], strict=True):
        np.testing.assert_allclose(two["w"], one["w"], rtol=1e-5, atol=1e-6)
    short = train.Trainer(_loss, _params(), train.SGD(), reduce=lambda g: g[1:])
    with pytest.raises(tw.AttrTypeError, match="reduce returned 3 arrays; want 4"):
        short.step(x, target)


def test_losses_have_their_values() -> None:
    y, t = np.float64([0.5, -2.0, 3.0]), np.float64([0.0, 0.0, 1.0])
    assert train.mean_square(y, t) == pytest.approx((0.25 + 4 + 4) / 3)
    assert train.mean_absolute(y, t) == pytest.approx(4.5 / 3)
    assert train.huber(y, t) == pytest.approx((0.125 + 1.5 + 1.5) / 3)
    assert train.hinge(y, np.float64([1, -1, 1])) == pytest.approx(0.5 / 3)
    want = np.mean(np.log1p(np.exp(y)) - y * t)
    assert train.sigmoid_cross_entropy(y, t) == pytest.approx(want)


def _faults(folder: Path) -> Any:
    x, params = np.ones(3, np.float32), {"w": np.ones(3, np.float32)}

    def loss(p: Any, x: Any) -> Any:
        return tw.reduce_sum(p["w"] * x)

    def trainer(optimizer: Any = None, loss: Any = loss, params: Any = params, **how: Any) -> Any:
        return train.Trainer(loss, params, optimizer or train.SGD(), **how)

    yield lambda: trainer(loss=3), "loss is a int; want a function"
    yield lambda: trainer(params={}), "params hold no array"
    yield lambda: trainer(optimizer=3), "optimizer is a int"
    yield lambda: trainer(optimizer=train.Optimizer()), "is no optimizer by itself"
    yield lambda: trainer(clip=3), "clip is a int"
    yield lambda: trainer(reduce=3), "reduce is a int"
    yield lambda: trainer(has_aux=3), "has_aux is a int"
    yield lambda: trainer(threads=0), "want 1 to 1024"
    for odd in (float("nan"), float("inf"), "a", None, True):
        yield lambda n=odd: train.SGD(lr=n), "lr=.*; want a finite number"
    yield lambda: train.SGD(nesterov=1), "nesterov=1; want a bool"  # type: ignore[arg-type]
    yield lambda: train.Clip(norm="a"), "norm='a'; want a number above 0"  # type: ignore[arg-type]
    yield lambda: trainer().step({1, 2}), "a batch holds what no graph depends on"
    yield lambda: trainer(reduce=lambda g: None).step(x), "reduce returned a NoneType"
    yield lambda: trainer(reduce=lambda g: []).step(x), "reduce returned 0 arrays"
    yield lambda: trainer(reduce=lambda g: ["a"]).step(x), "reduce returned a str for params.w"
    yield lambda: trainer().save(3), "save: path=3"
    yield lambda: trainer().load(3), "load: path=3"
    yield lambda: trainer().save(folder / "x", steps="9"), "steps='9'; want a text of another name"
    yield lambda: trainer().save(folder / "x", a=3), "a=3; want a text"


def test_what_is_no_trainer_is_refused(tmp_path: Path) -> None:
    for call, text in _faults(tmp_path):
        with pytest.raises(tw.Error, match=text):
            call()


def test_what_is_no_parameter_is_named() -> None:
    with pytest.raises(tw.DTypeError, match=r"params.n is int64"):
        train.Trainer(_loss, {"n": np.arange(3)}, train.SGD())


@pytest.mark.opencl
def test_a_device_takes_the_same_steps() -> None:
    if not tw.devices():
        pytest.skip("no OpenCL device")
    here = train.Trainer(_loss, _params(), train.AdamW(lr=0.03))
    there = train.Trainer(_loss, _params(), train.AdamW(lr=0.03), device="opencl")
    for k in range(3):
        one, two = float(here.step(*_batch(k))), float(there.step(*_batch(k)))
        assert one == pytest.approx(two, rel=1e-4)
