"""`pareto-encoder` and `pareto-causal`: quality lost against bits per weight, with intervals and the Pareto front.

Above, the distance that ranks the tables, on a logarithmic scale; below, the loss in points of the metric a user sees:
accuracy against the unquantized model, or the share of tokens whose most likely successor is still the same.
"""

# ruff: noqa: RUF001
from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.reports import style
from bench.reports.caption import footer
from bench.reports.escape import plot_text
from bench.reports.frames import Row, Run
from bench.reports.front import pareto_front
from bench.reports.labels import Label, place
from bench.reports.plots.adapting import ticks
from bench.reports.plots.registry import Plot, plot
from bench.reports.stats import Stat
from bench.reports.tables.methods import key_of

TICKS = (1, 1.5, 2, 3, 4, 5, 6, 8, 12, 16, 32)
NEAR_FOUR = (3.9, 4.75)
STAIR: dict[str, Any] = {"color": "#777777", "lw": 1.1, "ls": "--"}
RING: dict[str, Any] = {"color": "#777777", "marker": "o", "ls": "", "ms": 9, "mfc": "none", "mew": 1.3}
NOTABLE = ("nf4", "double quantization", "none")


@dataclass(frozen=True)
class Point:
    row: Row
    bits: float
    stat: Stat  # a loss: small is good

    @property
    def loss(self) -> float:
        assert self.stat.value is not None
        return self.stat.value


def points_of(rows: list[Row], losses: list[Stat]) -> list[Point]:
    """Rows whose bits per weight and loss are known, by bits and loss."""
    found = []
    for row, loss in zip(rows, losses, strict=True):
        bits = row.number("memory", "bits_per_weight")
        if bits is not None and bits > 0 and loss.value is not None:
            found.append(Point(row, bits, loss))
    return sorted(found, key=lambda p: (p.bits, p.loss, p.row.method, p.row.task))


def scatter(axes: Axes, points: list[Point], log: bool) -> None:
    """Points in their family's colour and marker, with intervals; another library's are rings about ours."""
    for point in points:
        colour, shape = style.color(point.row.family), style.marker(point.row.family)
        low, high = point.stat.low, point.stat.high
        if low is not None and high is not None:
            floor = point.loss / 1e3 if log else low
            axes.plot([point.bits] * 2, [max(low, floor), high], color=colour, lw=1.2, alpha=0.55, zorder=2)
        if is_peer(point.row):
            axes.scatter(
                point.bits, point.loss, s=95, facecolors="none", marker=shape, edgecolors=colour, lw=1.3, zorder=5
            )
            continue
        size = 110 if shape == "*" else 40
        axes.scatter(point.bits, point.loss, s=size, c=colour, marker=shape, edgecolors="white", lw=0.6, zorder=4)


def is_peer(row: Row) -> bool:
    """Whether another library made these weights."""
    return row.method.startswith("peer-")


def stair(axes: Axes, front: list[Point]) -> None:
    xs, ys = [p.bits for p in front], [p.loss for p in front]
    axes.plot(xs, ys, **STAIR, drawstyle="steps-post", zorder=1)


def plain_ticks(axes: Axes) -> None:
    """Decades without mathematical markup, which is switched off because names may hold dollar signs."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def bits_scale(axes: Axes, points: list[Point]) -> None:
    bits = [p.bits for p in points]
    low, high = min(bits) * 0.88, max(bits) * 1.15
    axes.set_xscale("log", base=2)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([t for t in TICKS if low <= t <= high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def close_up(points: list[Point]) -> list[Point]:
    """The crowd around four bits, worth a panel of its own when there are enough; without those far off in quality."""
    crowd = [p for p in points if NEAR_FOUR[0] <= p.bits <= NEAR_FOUR[1]]
    middle = median(p.loss for p in crowd) if crowd else 0.0
    crowd = [p for p in crowd if p.loss <= 5 * middle]
    return crowd if len(crowd) >= 5 else []


def pareto(run: Run, kind: str) -> Plot | None:
    """The figure of one kind of model; several models or tasks of a kind share it."""
    name, metric = run.ranking(kind)
    rows = [r for r in run.select("beneath", kind=kind) if r.metric(name).value is not None]
    ranked = points_of(rows, [r.metric(name) for r in rows])
    upper = [p for p in ranked if p.loss > 0]
    if not upper:
        return None
    judged, judged_label, losses = lost(kind, rows, run.text)
    lower, near = points_of(rows, losses), close_up(upper)
    heights = [3.6, *([4.6] if near else []), *([2.3] if lower else [])]
    figure, grid = style.figure(sum(heights) + 1.3, len(heights), 1, gridspec_kw={"height_ratios": heights})
    panels = [line[0] for line in grid]
    front = [upper[i] for i in pareto_front([(p.bits, p.loss) for p in upper])]
    quality = f"{metric.heading}\n({metric.unit or '1 − cosine'}, log scale)"
    for axes, shown in zip(panels, [upper, *([near] if near else [])], strict=False):
        scatter(axes, shown, log=True)
        plain_ticks(axes)
        axes.set_ylabel(quality)
    ticks(panels[0].yaxis)
    bits_scale(panels[0], ranked)
    stair(panels[0], front)
    if near:
        low, high = min(p.loss for p in near), max(p.loss for p in near)
        panels[1].set_xlim(min(p.bits for p in near) - 0.08, max(p.bits for p in near) + 0.1)
        panels[1].set_ylim(low * (low / high) ** 0.12, high * (high / low) ** 0.12)
        panels[1].yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 3, 5)))
        stair(panels[1], front)
        panels[1].set_title("close-up around 4 bits (linear in bits)", loc="left", color=style.GREY)
    if lower:
        scatter(panels[-1], lower, log=False)
        bits_scale(panels[-1], ranked)
        panels[-1].axhline(0, color="#333333", lw=0.9, zorder=1)
        panels[-1].set_ylabel(judged_label)
        _fold(panels[-1], lower)
    panels[-1].set_xlabel("stored bits per quantized weight (log scale)")
    entries = [*style.handles({p.row.family for p in (*upper, *lower)}), Line2D([], [], **STAIR, label="Pareto front")]
    if any(is_peer(p.row) for p in (*upper, *lower)):
        entries.append(Line2D([], [], **RING, label="hollow: another library's"))
    title = f"Quality lost against size: {', '.join(sorted({plot_text(r.model) for r in rows}))}"
    style.legend(figure, title, entries)
    figure.supxlabel(" \n ", fontsize=style.SMALL)  # room for the footer: the layout must be final for the labels
    figure.canvas.draw()
    outside = [p for p in upper if p not in near]
    worst = sorted(outside, key=lambda p: -p.loss)[:4]
    chosen = [p for p in outside if p in worst or p in front or p.row.family in NOTABLE]
    label(figure, panels[0], [p for p in front if p in outside], chosen, upper, front)
    if near:
        label(figure, panels[1], [p for p in front if p in near], near, near, front)
    zero = len(ranked) - len(upper)
    note = f"{zero} with no distance at all not drawn above" if zero else ""
    notes = " · ".join(t for t in (footer(run, rows, (name, judged)), note, "bars are 95 % intervals") if t)
    return Plot(figure, title, notes, data(rows, front, name, judged))


def lost(kind: str, rows: list[Row], text: str) -> tuple[str, str, list[Stat]]:
    """(metric, label of the axis, losses in points) of the lower panel."""
    if kind == "encoder":
        return "accuracy", "accuracy lost\n(points)", [r.metric("accuracy").difference.map(-1.0) for r in rows]
    name = f"top1_{text}"
    return name, "top-1 changed\n(% of tokens)", [r.metric(name).map(-1.0, 100.0) for r in rows]


def label(
    figure: Figure, axes: Axes, first: list[Point], others: list[Point], drawn: list[Point], front: list[Point]
) -> None:
    """Names of the front, then of the families one asks about, then of all for which there is room."""
    rest = sorted((p for p in others if p not in first), key=lambda p: (p.row.family not in NOTABLE, -p.loss))
    names = [Label(p.bits, p.loss, plot_text(p.row.method), style.ink(p.row.family)) for p in (*first, *rest)]
    thin = [along for p in drawn for along in whisker(p)]
    place(figure, axes, names, [(p.bits, p.loss) for p in drawn], thin, corners(front))


def corners(front: list[Point]) -> list[tuple[float, float]]:
    """The places between which the stair of the front is level or upright."""
    level = [[(a.bits, a.loss), (b.bits, a.loss)] for a, b in pairwise(front)]
    return [*(place for pair in level for place in pair), *((p.bits, p.loss) for p in front[-1:])]


def whisker(point: Point) -> list[tuple[float, float]]:
    """Places along the interval of a point, closer together than a label is high."""
    low, high = point.stat.low, point.stat.high
    if low is None or high is None or low <= 0:
        return []
    return [(point.bits, low * (high / low) ** (i / 12)) for i in range(13)]


def _fold(axes: Axes, points: list[Point]) -> None:
    """Keep the frame on the values; far intervals are cut at it."""
    losses = [p.loss for p in points]
    room = max(0.08 * (max(losses) - min(losses)), 1.0)
    axes.set_ylim(min(losses) - room, max(losses) + room)


def data(rows: list[Row], front: list[Point], *metrics: str) -> pd.DataFrame:
    """What the figure shows, and what a reader may want beside it."""
    on_front = {(p.row.model, p.row.task, p.row.method) for p in front}
    lines = []
    for row in rows:
        line = {"model": row.model, "task": row.task, "method": row.method, "family": row.family}
        out: dict[str, object] = {**line, "bits_per_weight": row.number("memory", "bits_per_weight")}
        for metric in metrics:
            stat = row.metric(metric)
            key = key_of(metric)
            out |= {key: stat.value, f"{key}_low": stat.low, f"{key}_high": stat.high}
            if metric == "accuracy":
                d = stat.difference
                out |= {"accuracy_delta_points": d.value, "accuracy_delta_low": d.low, "accuracy_delta_high": d.high}
        out["on_front"] = (row.model, row.task, row.method) in on_front
        lines.append(out)
    return pd.DataFrame(lines)


@plot("pareto-encoder")
def encoder(run: Run) -> Plot | None:
    return pareto(run, "encoder")


@plot("pareto-causal")
def causal(run: Run) -> Plot | None:
    return pareto(run, "causal")
