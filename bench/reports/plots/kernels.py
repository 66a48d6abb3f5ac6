"""Plots of the kernel benchmark: speed-up against the number of rows with the crossover, and the roofline.

Colour is the family of the format, as everywhere; the line tells formats of one family apart, and other libraries are
grey. The crossover is where the line between two measured numbers of rows passes 1 on logarithmic axes.
"""

# ruff: noqa: RUF001
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from bench.reports import style
from bench.reports.escape import plot_text
from bench.reports.frames import dig
from bench.reports.kernel_frames import Cell, Record, caption_of, cells_of
from bench.reports.plots.registry import Plot
from bench.reports.stats import read_stat
from quant import METHODS

__all__ = ["crossover", "roofline", "speedups"]

PANELS = 6
LINES = ("-", "--", "-.", ":")
GREYS = ("#555555", "#888888", "#AAAAAA", "#BBBBBB", "#CCCCCC")
TICKS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8)
Looks = dict[str, tuple[str, str, str]]


def looks(subjects: Sequence[tuple[str, str]]) -> Looks:
    """Colour, line and marker of each (subject, method); what is no method of ours is grey."""
    out: Looks = {}
    seen: dict[str, int] = {}
    for name, method in subjects:
        family = METHODS[method].family if name == method and method in METHODS else ""
        i = seen[family] = seen.get(family, -1) + 1
        colour = style.color(family) if family else GREYS[i % len(GREYS)]
        out[name] = (colour, LINES[i % len(LINES)], style.marker(family) if family else "x")
    return out


def crossover(points: Sequence[tuple[int, float]]) -> float | None:
    """The rows at which the speed-up falls through 1 for the last time, None when it never does.

    >>> round(crossover([(1, 4.0), (16, 2.0), (64, 0.5)]), 1)
    32.0
    """
    ordered = sorted(points)
    found = None
    for (m, a), (n, b) in pairwise(ordered):
        if a > 1 >= b:
            share = math.log(a) / (math.log(a) - math.log(b))
            found = math.exp(math.log(m) + share * (math.log(n) - math.log(m)))
    return found


def products(records: Sequence[Record], levels: Sequence[str]) -> list[Cell]:
    return [c for c in cells_of(records) if c.operation == "matmul" and c.level in levels]


def speedups(records: Sequence[Record]) -> Plot | None:
    """A panel for each shape, the largest first: speed-up over the dense bfloat16 layer against rows."""
    cells = [c for c in products(records, ("layer", "rival")) if c.stat("speedup").value]
    shapes = list(dict.fromkeys(c.shape for c in cells))[:PANELS]
    cells = [c for c in cells if c.shape in shapes]
    if not cells:
        return None
    names = list(dict.fromkeys((c.subject, c.method) for c in cells))
    look = looks(names)
    columns = min(2, len(shapes))
    lines = -(-len(shapes) // columns)
    figure, axes = style.figure(2.7 * lines + 1.4, lines, columns, sharex=True)
    flat = [a for row in axes for a in row]
    data = []
    for place, shape in zip(flat, shapes, strict=False):
        place.axhline(1, color="#333333", lw=1.0, zorder=1)
        for name, method in names:
            mine = [c for c in cells if c.shape == shape and c.subject == name]
            data += curve(place, mine, look[name], name, method)
        rows = sorted({c.m for c in cells if c.shape == shape})
        log_axes(place, rows)
        place.set_title(f"{shape[0]} × {shape[1]}", loc="left")
    for place in flat[len(shapes) :]:
        place.set_visible(False)
    for row in axes:
        row[0].set_ylabel("speed-up (×)")
    for place in axes[-1]:
        place.set_xlabel("rows of x")
    entries = [
        Line2D([], [], color=c, ls=ls, marker=mk, ms=5, label=plot_text(n, 24)) for n, (c, ls, mk) in look.items()
    ]
    entries.append(Line2D([], [], ls="", marker="|", ms=11, mew=1.5, color="#333333", label="crossover"))
    title = "Speed-up over the dense bf16 layer"
    style.legend(figure, title, entries, columns=3)
    return Plot(figure, title, caption_of([c.record for c in cells]), pd.DataFrame(data))


def curve(
    place: Axes, cells: Sequence[Cell], look: tuple[str, str, str], name: str, method: str
) -> list[dict[str, object]]:
    """One line with its band and the mark of its crossover; the rows of the CSV."""
    colour, line, marker = look
    cells = sorted(cells, key=lambda c: c.m)
    stats = [c.stat("speedup") for c in cells]
    points = [(c.m, s.value) for c, s in zip(cells, stats, strict=True) if s.value]
    place.plot([m for m, _ in points], [v for _, v in points], color=colour, ls=line, marker=marker, ms=4, lw=1.4)
    banded = [(c.m, s.low, s.high) for c, s in zip(cells, stats, strict=True) if s.low and s.high]
    if len(banded) > 1:
        xs, lows, highs = (list(values) for values in zip(*banded, strict=True))
        place.fill_between(xs, lows, highs, color=colour, alpha=0.15, lw=0)
    crossed = crossover(points)
    if crossed is not None:
        place.plot([crossed], [1], ls="", marker="|", ms=11, mew=1.5, color=colour, zorder=4)
    return [
        {
            "n": c.shape[0],
            "k": c.shape[1],
            "m": c.m,
            "subject": name,
            "method": method,
            "speedup": s.value,
            "speedup_low": s.low,
            "speedup_high": s.high,
            "crossover_m": crossed,
        }
        for c, s in zip(cells, stats, strict=True)
    ]


def log_axes(place: Axes, rows: Sequence[int]) -> None:
    place.set_xscale("log", base=2)
    place.set_yscale("log", base=2)
    place.xaxis.set_major_locator(FixedLocator(list(rows)))
    place.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    place.tick_params(axis="x", labelsize=8)
    low, high = place.get_ylim()
    place.yaxis.set_major_locator(FixedLocator([t for t in TICKS if low <= t <= high] or [1]))
    place.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    for axis in (place.xaxis, place.yaxis):
        axis.set_minor_locator(NullLocator())


def roofline(records: Sequence[Record]) -> Plot | None:
    """Operations a second against operations a byte, at the largest square shape, below the measured ceilings."""
    cells = [c for c in products(records, ("baseline", "layer", "rival")) if c.number("flop_per_s")]
    squares = [c.shape for c in cells if c.shape[0] == c.shape[1]] or [c.shape for c in cells]
    if not squares:
        return None
    shape = max(squares)
    cells = [c for c in cells if c.shape == shape]
    names = list(dict.fromkeys((c.subject, c.method) for c in cells))
    look = looks([n for n in names if n[0] != "dense-bf16"]) | {"dense-bf16": ("#000000", "-", "*")}
    figure, ((place,),) = style.figure(5.0)
    data: list[dict[str, object]] = []
    for name, method in names:
        mine = sorted((c for c in cells if c.subject == name), key=lambda c: c.m)
        xs = [(c.number("flop") or 0) / (c.number("moved_bytes") or 1) for c in mine]
        ys = [(c.number("flop_per_s") or 0) / 1e12 for c in mine]
        colour, line, marker = look[name]
        place.plot(xs, ys, color=colour, ls=line, marker=marker, ms=5, lw=1.0)
        data += [
            {"n": shape[0], "k": shape[1], "m": c.m, "subject": name, "method": method}
            | {"flop_per_byte": x, "flop_per_s": y * 1e12}
            for c, x, y in zip(mine, xs, ys, strict=True)
        ]
    ends = place.get_xlim()
    copies = [read_stat(dig(c.record, "ceilings", "copy_bytes_per_s")).value or 0 for c in cells]
    peaks = [read_stat(dig(c.record, "ceilings", "product_flop_per_s")).value or 0 for c in cells]
    bandwidth, peak = max(copies), max(peaks)
    xs = [2 ** (i / 8) for i in range(-16, 8 * 16)]
    xs = [x for x in xs if min(ends[0], 1) * 0.5 < x < max(ends[1] * 2, 2 * peak / max(bandwidth, 1))]
    place.plot(xs, [min(peak, x * bandwidth) / 1e12 for x in xs], color="#333333", lw=1.6, zorder=1)
    place.set_xscale("log")
    place.set_yscale("log")
    for axis in (place.xaxis, place.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_formatter(NullFormatter())
    place.set_xlabel("operations a byte that must be moved")
    place.set_ylabel("TFLOP/s")
    entries = [
        Line2D([], [], color=c, ls=ls, marker=mk, ms=5, label=plot_text(n, 24)) for n, (c, ls, mk) in look.items()
    ]
    entries.append(Line2D([], [], color="#333333", lw=1.6, label="measured ceilings"))
    title = f"Roofline at {shape[0]} × {shape[1]}, a point for each number of rows"
    style.legend(figure, title, entries, columns=3)
    return Plot(figure, title, caption_of([c.record for c in cells]), pd.DataFrame(data))
