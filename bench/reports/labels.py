"""Names beside points without overlaps: for each label the first free place of a few around its point.

A place is free when the text's box, in pixels, touches no earlier label, no marker and not the frame. A label that
finds no place is left out: the data file beside the figure has every name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

__all__ = ["Label", "place"]

STEPS = ((0.0, 1.0), (0.8, 0.8), (1.0, 0.0), (0.8, -0.8), (0.0, -1.0), (-0.8, -0.8), (-1.0, 0.0), (-0.8, 0.8))
REACHES = (9.0, 15.0, 24.0, 36.0, 50.0, 66.0)  # points from the marker to the text
SIZE = 8  # points
MARKER = 4.0  # half a marker, in points
LINE_FROM = 14.0  # farther labels get a thin line to their point


@dataclass(frozen=True)
class Label:
    """The text for the point (x, y) in data coordinates."""

    x: float
    y: float
    text: str
    color: str | tuple[float, float, float]


def place(
    made: Figure,
    axes: Axes,
    labels: Sequence[Label],
    points: Sequence[tuple[float, float]],
    thin: Sequence[tuple[float, float]] = (),
    edges: Sequence[tuple[float, float]] = (),
) -> int:
    """Draw the labels in their order, the first have the choice; the number of those placed.

    They keep clear of the markers at `points`, of what runs through the places `thin` and of the line of level and
    upright pieces through `edges`.

    The layout must be final: limits set, and `made` drawn once.
    """
    pixel = made.dpi / 72
    half = MARKER * pixel
    at = [axes.transData.transform(point) for point in points]
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in at]
    lines = [axes.transData.transform(point) for point in thin]
    taken += [Bbox.from_extents(x - pixel, y - pixel, x + pixel, y + pixel) for x, y in lines]
    corners = [axes.transData.transform(point) for point in edges]
    for (x0, y0), (x1, y1) in pairwise(corners):
        left, right, low, high = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        taken.append(Bbox.from_extents(left - pixel, low - pixel, right + pixel, high + pixel))
    frame = axes.get_window_extent()
    placed = 0
    for label in labels:
        width, height = _size(made, axes, label.text)
        x, y = axes.transData.transform((label.x, label.y))
        for reach, (dx, dy) in product(REACHES, STEPS):
            left = x + dx * reach * pixel - width * (1 - _side(dx)) / 2
            low = y + dy * reach * pixel - height * (1 - _side(dy)) / 2
            box = Bbox.from_bounds(left - 1, low - 1, width + 2, height + 2)
            inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                _draw(axes, label, dx, dy, reach)
                placed += 1
                break
    return placed


def _side(step: float) -> int:
    return (step > 0) - (step < 0)


def _size(made: Figure, axes: Axes, text: str) -> tuple[float, float]:
    """Width and height of a label in pixels."""
    probe = axes.text(0.5, 0.5, text, fontsize=SIZE, transform=axes.transAxes)
    extent = probe.get_window_extent(made.canvas.get_renderer())  # type: ignore[attr-defined]
    probe.remove()
    return float(extent.width), float(extent.height)


def _draw(axes: Axes, label: Label, dx: float, dy: float, reach: float) -> None:
    line = {"arrowstyle": "-", "lw": 0.5, "color": "#999999", "shrinkA": 0, "shrinkB": 3}
    axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(dx * reach, dy * reach),
        textcoords="offset points",
        ha=("center", "left", "right")[_side(dx)],
        va=("center", "bottom", "top")[_side(dy)],
        fontsize=SIZE,
        color=label.color,
        arrowprops=line if reach > LINE_FROM else None,
        zorder=6,
    )
