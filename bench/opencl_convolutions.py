"""Convolutions of ResNet-50 on an OpenCL device beside torch on the same card: are they right, and how fast.

A section of opencl_first_contact.py per storage and layout. Times are those of opencl_timing.py: a stopwatch over
many calls, ours and theirs in turn. What is wrong is not timed. The last row of a section sums the layers up, each as
often as the network has it; it is NaN where a layer failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import tilework as tw
from opencl_products import Row
from opencl_timing import Timed, beside, torch_beside

if TYPE_CHECKING:
    from opencl_first_contact import Probe

BATCH = 64
# Channels in and out, kernel, stride, pixels of a side, how often ResNet-50 has it.
LAYERS = (
    (3, 64, 7, 2, 224, 1),
    (64, 64, 1, 1, 56, 1),
    (64, 64, 3, 1, 56, 3),
    (64, 256, 1, 1, 56, 4),
    (256, 64, 1, 1, 56, 2),
    (256, 128, 1, 1, 56, 1),
    (128, 128, 3, 2, 56, 1),
    (256, 512, 1, 2, 56, 1),
    (128, 512, 1, 1, 28, 4),
    (512, 128, 1, 1, 28, 3),
    (128, 128, 3, 1, 28, 3),
    (512, 256, 1, 1, 28, 1),
    (256, 256, 3, 2, 28, 1),
    (512, 1024, 1, 2, 28, 1),
    (256, 1024, 1, 1, 14, 6),
    (1024, 256, 1, 1, 14, 5),
    (256, 256, 3, 1, 14, 5),
    (1024, 512, 1, 1, 14, 1),
    (512, 512, 3, 2, 14, 1),
    (1024, 2048, 1, 2, 14, 1),
    (512, 2048, 1, 1, 7, 3),
    (2048, 512, 1, 1, 7, 2),
    (512, 512, 3, 1, 7, 2),
)
DIRECTIONS = ("forward", "dx", "dw")
LIMITS = {"float16": 3e-3, "float32": 2e-5}


class Layer:
    """One convolution on both sides: operands of equal content, and a call for each direction."""

    def __init__(self, timed: Timed, torch: Any, dtype: str, layout: str, sizes: tuple[int, ...]) -> None:
        channels, filters, taps, stride, side, _ = sizes
        self.torch, self.last = torch, layout == "NHWC"
        kinds = {"stride": stride, "padding": taps // 2}
        place = {"device": "cuda" if torch.cuda.is_available() else "cpu", "dtype": getattr(torch, dtype)}
        order = torch.channels_last if self.last else torch.contiguous_format
        x = torch.randn(BATCH, channels, side, side, **place).contiguous(memory_format=order)
        w = torch.randn(filters, channels, taps, taps, **place).mul_((channels * taps**2) ** -0.5)
        w = w.contiguous(memory_format=order)
        y = torch.nn.functional.conv2d(x, w, **kinds)
        dy = torch.randn_like(y)
        self.flops = 2.0 * y.numel() * channels * taps**2

        def gradient(which: int) -> Callable[[], Any]:
            wanted = [which == i for i in range(3)]
            both = [[kinds[name]] * 2 for name in ("stride", "padding")]
            backward = torch.ops.aten.convolution_backward
            return lambda: backward(dy, x, w, None, *both, [1, 1], False, [0, 0], 1, wanted)[which]

        self.theirs = (lambda: torch.nn.functional.conv2d(x, w, **kinds), gradient(0), gradient(1))
        there = [tw.to_device(self.host(a), timed.queue.cl) for a in (x, dy)]
        weights = tw.to_device(w.contiguous().cpu().numpy(), timed.queue.cl)
        own = {**kinds, "layout": layout}
        self.ours = (
            lambda: tw.conv(there[0], weights, **own),
            lambda: tw.conv_dx(there[1], weights, shape=(side, side), **own),
            lambda: tw.conv_dw(there[1], there[0], kernel=taps, **own),
        )

    def host(self, x: Any) -> Any:
        """A tensor of torch's as numpy, in the layout that ours has."""
        return (x.permute(0, 2, 3, 1) if self.last else x).contiguous().cpu().numpy()

    def error(self, direction: int) -> float:
        """The largest difference between ours and theirs, over the largest of theirs."""
        theirs = self.theirs[direction]()
        want = (theirs.contiguous().cpu().numpy() if direction == 2 else self.host(theirs)).astype(np.float32)
        got = tw.to_host(self.ours[direction]()).astype(np.float32)
        return float(np.abs(got - want).max() / np.abs(want).max())


def _section(dtype: str, layout: str) -> Callable[[Probe], Iterator[Row]]:
    def section(probe: Probe) -> Iterator[Row]:
        torch = torch_beside()
        if torch is None:
            yield f"convolutions {dtype} {layout}", "skipped: no torch with a GPU"
            return
        torch.backends.cudnn.benchmark = True
        timed = Timed(probe.device)
        sums = np.zeros((2, len(DIRECTIONS)))
        for sizes in LAYERS:
            layer = Layer(timed, torch, dtype, layout, sizes)
            told = []
            took = np.full((len(DIRECTIONS), 2), np.nan)
            for i, name in enumerate(DIRECTIONS):

                def attempt(i: int = i, sizes: tuple[int, ...] = sizes, layer: Layer = layer, took: Any = took) -> str:
                    error = layer.error(i)
                    if not error <= LIMITS[dtype]:
                        return f"WRONG by {error:.2g}"
                    both = beside(timed, layer.ours[i], torch, layer.theirs[i], turns=3, seconds=0.015)
                    took[i] = np.array(both) * sizes[-1]
                    rates = [layer.flops / seconds / 1e12 for seconds in both]
                    return f"{rates[0]:.1f} / {rates[1]:.1f} = {both[1] / both[0]:.2f}"

                told.append(f"{name} {probe.outcome(attempt)}")
            sums += took.T
            channels, filters, taps, stride, side, count = sizes
            title = f"{count} x {taps}x{taps}/{stride} {channels} -> {filters} at {side}^2"
            yield f"conv {dtype} {layout} {title}, T/s ours / torch = ratio", "; ".join(told)
        total = (f"{name} {theirs / ours:.3f}" for name, ours, theirs in zip(DIRECTIONS, *sums, strict=True))
        yield f"all of ResNet-50, {dtype} {layout}, batch {BATCH}: ratio", "; ".join(total)

    return section


SECTIONS: dict[str, tuple[Callable[[Probe], Iterator[Row]], int, bool]] = {
    f"conv_{dtype}_{layout}": (_section(dtype, layout), 90, False)
    for dtype, layout in (("float16", "NHWC"), ("float32", "NCHW"), ("float32", "NHWC"))
}
