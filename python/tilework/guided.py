"""The guided filter: pictures smoothed within the edges of others."""

from __future__ import annotations

import math

import numpy as np

from tilework import ops
from tilework.arrays import Array
from tilework.devices import to_device
from tilework.errors import AttrError, ShapeError
from tilework.wants import own_errors, want_array, want_number

Plane = tuple[Array, Array]  # a channel (H, W), float32, and its means over windows


@own_errors()
def guided_filter(
    image: Array, guide: Array | None = None, *, radius: int, epsilon: float, out: Array | None = None
) -> Array:
    """Smooths image (H, W) or (H, W, 3), of any pixels, within the edges of ``guide``, by default its own: float32.

    In every window of 2 ``radius`` + 1 pixels each channel of the result is the linear function of the guide, (H, W) or
    (H, W, 3), nearest to that of the image; ``epsilon`` is the variance of the guide below which a window counts as
    flat. Sums are those of :data:`filter2d`. As ``cv2.ximgproc.guidedFilter`` but for what lies outside the picture.
    K. He, J. Sun and X. Tang, "Guided image filtering", 2013.
    """
    guide = image if guide is None else guide
    _check(image, guide, radius, epsilon)
    taps = np.full(2 * radius + 1, 1 / (2 * radius + 1), np.float32)
    taps = taps if isinstance(image, np.ndarray) else to_device(taps, like=image)

    def mean(x: Array) -> Array:
        return ops.filter2d(ops.filter2d(x, taps.reshape(1, -1)), taps.reshape(-1, 1))

    def planes(picture: Array) -> list[Plane]:
        channels = [picture] if len(picture.shape) == 2 else [picture[..., c] for c in range(3)]
        plain = [ops.cast(channel, dtype="float32") for channel in channels]
        return [(plane, mean(plane)) for plane in plain]

    def together(a: Plane, b: Plane) -> Array:
        return ops.sub(mean(ops.mul(a[0], b[0])), ops.mul(a[1], b[1]))

    x = planes(guide)
    every = range(len(x))
    pairs = {(i, k): together(x[i], x[k]) for i in every for k in every[i:]}
    # Gauss: rows of the covariances to a triangle, and what of which row each has lost.
    rows = {(i, k): ops.add(pair, float(epsilon)) if i == k else pair for (i, k), pair in pairs.items()}
    lost = {}
    for i in every:
        for k in every[i + 1 :]:
            lost[i, k] = ops.div(rows[i, k], rows[i, i])
            for j in every[k:]:
                rows[k, j] = ops.sub(rows[k, j], ops.mul(lost[i, k], rows[i, j]))

    def filtered(p: Plane, right: list[Array], out: Array | None) -> Array:
        for (i, k), share in lost.items():
            right[k] = ops.sub(right[k], ops.mul(share, right[i]))
        offset = p[1]
        y: Array | None = None
        slopes: dict[int, Array] = {}
        for i in reversed(every):
            for k, slope in slopes.items():
                right[i] = ops.sub(right[i], ops.mul(rows[i, k], slope))
            slopes[i] = ops.div(right[i], rows[i, i])
            offset = ops.sub(offset, ops.mul(slopes[i], x[i][1]))
            term = ops.mul(mean(slopes[i]), x[i][0])
            y = term if y is None else ops.add(y, term)
        return ops.add(y, mean(offset), out=out)

    if image is guide:
        sides = [(x[c], [pairs[min(i, c), max(i, c)] for i in every]) for c in every]
    else:
        sides = [(p, [together(other, p) for other in x]) for p in planes(image)]
    if len(sides) == 1:
        return filtered(*sides[0], out)
    found = [filtered(*side, None) for side in sides]
    return ops.concat([y.reshape(*y.shape, 1) for y in found], axis=2, out=out)


def _check(image: Array, guide: Array, radius: int, epsilon: float) -> None:
    want_array("guided_filter", image=image, guide=guide)
    want_number("guided_filter", epsilon=epsilon)
    size, wanted = tuple(image.shape[:2]), "(H, W) or (H, W, 3)"
    for name, picture in (("image", image), ("guide", guide)):
        if len(size) != 2 or tuple(picture.shape) not in (size, (*size, 3)):
            raise ShapeError(f"guided_filter: {name} has shape {tuple(picture.shape)}; want {wanted}", argument=name)
        wanted = f"{size} or {(*size, 3)}"
    if isinstance(radius, bool) or not isinstance(radius, int) or not 1 <= radius <= 127:
        raise AttrError(f"guided_filter: radius={radius!r}; want 1 to 127", argument="radius")
    if not 0 < epsilon < math.inf:
        raise AttrError(f"guided_filter: epsilon={epsilon}; want a number above 0", argument="epsilon")
