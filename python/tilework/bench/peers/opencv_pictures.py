"""OpenCV on 8-bit pictures, by the vision ops of tilework, whose bits are OpenCV's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], Any]
_KINDS = {
    "binary": "THRESH_BINARY",
    "binary_inv": "THRESH_BINARY_INV",
    "trunc": "THRESH_TRUNC",
    "tozero": "THRESH_TOZERO",
    "tozero_inv": "THRESH_TOZERO_INV",
}


def call(cv2: Any, op: str, operands: tuple[Any, ...], a: dict[str, Any]) -> Call | None:
    """The call of an op with resolved attributes, or None."""
    make = _CALLS.get(op)
    return make(cv2, operands, a) if make else None


def _blurred(cv2: Any, image: Any, sigma: float) -> Any:
    size = round(6 * sigma + 1) | 1
    return cv2.GaussianBlur(image, (size, size), sigma)


def _edges(cv2: Any, operands: tuple[Any, ...], a: dict[str, Any]) -> Call:
    image, options = operands[0], {"apertureSize": a["ksize"], "L2gradient": a["l2"]}
    if a["sigma"] == 0:
        return lambda: cv2.Canny(image, a["low"], a["high"], **options)
    return lambda: cv2.Canny(_blurred(cv2, image, a["sigma"]), a["low"], a["high"], **options)


def _gradient_edges(cv2: Any, operands: tuple[Any, ...], a: dict[str, Any]) -> Call:
    dx, dy = operands
    return lambda: cv2.Canny(dx, dy, a["low"], a["high"], L2gradient=a["l2"])


def _extreme(function: str) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Call]:
    def make(cv2: Any, operands: tuple[Any, ...], a: dict[str, Any]) -> Call:
        around = np.ones(tuple(a["kernel"]), np.uint8)
        return lambda: getattr(cv2, function)(operands[0], around)

    return make


def _spatial(cv2: Any, operands: tuple[Any, ...], a: dict[str, Any]) -> Call | None:
    return (lambda: cv2.spatialGradient(operands[0])) if operands[0].ndim == 2 else None


def _counts(cv2: Any, operands: tuple[Any, ...], a: dict[str, Any]) -> Call:
    image = operands[0] if operands[0].ndim == 2 else operands[0].reshape(1, -1)
    return lambda: cv2.calcHist([image], [0], None, [256], [0, 256]).reshape(-1).astype(np.int32)


_CALLS: dict[str, Callable[[Any, tuple[Any, ...], dict[str, Any]], Call | None]] = {
    "canny": _edges,
    "canny_gradients": _gradient_edges,
    "gaussian_blur": lambda cv2, o, a: lambda: _blurred(cv2, o[0], a["sigma"]),
    "sobel": lambda cv2, o, a: lambda: cv2.Sobel(o[0], cv2.CV_16S, a["dx"], a["dy"], ksize=a["ksize"]),
    "scharr": lambda cv2, o, a: lambda: cv2.Scharr(o[0], cv2.CV_16S, a["dx"], a["dy"]),
    "laplacian": lambda cv2, o, a: lambda: cv2.Laplacian(o[0], cv2.CV_16S, ksize=a["ksize"]),
    "spatial_gradient": _spatial,
    "dilate": _extreme("dilate"),
    "erode": _extreme("erode"),
    "threshold": lambda cv2, o, a: (
        lambda: cv2.threshold(o[0], a["value"], a["high"], getattr(cv2, _KINDS[a["kind"]]))[1]
    ),
    "histogram": _counts,
    "equalize_hist": lambda cv2, o, a: (lambda: cv2.equalizeHist(o[0])) if o[0].ndim == 2 else None,
}
PICTURES = frozenset(_CALLS)
