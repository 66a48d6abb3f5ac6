"""`speed`: how many times faster than the fp32 model each method is, with intervals, and how far fp32 is from itself.

The grey band is the fp32 model timed against itself in the rounds of every method, at batch 1 or in a prefill, the
median of their intervals: a method inside it is not told from fp32.
"""

# ruff: noqa: RUF001
from __future__ import annotations

from statistics import median

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.reports import style
from bench.reports.caption import footer
from bench.reports.escape import plot_text
from bench.reports.frames import Row, Run
from bench.reports.plots.registry import Plot, plot
from bench.reports.tables.speed import PATHS, timed_rows

HEADINGS = {
    "forward_b1": "batch 1",
    "prefill": "prefill",
    "train_step": "training step",
    "forward_b1_bf16": "batch 1 in bf16",
    "prefill_bf16": "prefill in bf16",
}
TICKS = (0.03, 0.125, 0.5, 1, 2, 8)
CLOSE_TICKS = (0.25, 0.5, 1, 2, 4)


def panel(axes: Axes, path: str, place: dict[str, float], shown: list[Row], models: list[str]) -> None:
    """One path: a row for each method, models beside each other, filled and open."""
    ends: list[float] = [0.8, 1.25]
    for row in shown:
        stat = row.speedup(f"{path}_ratio")
        if stat.value is None:
            continue
        i = models.index(row.model)
        y = place[row.method] + (i - (len(models) - 1) / 2) * 0.36 / max(len(models) - 1, 1)
        colour, shape = style.color(row.family), style.marker(row.family)
        if stat.low is not None and stat.high is not None:
            axes.plot([stat.low, stat.high], [y, y], color=colour, lw=1.2, zorder=2)
            ends += [stat.low, stat.high]
        fill = colour if i == 0 else "white"
        size = 55 if shape == "*" else 22
        axes.scatter(stat.value, y, s=size, marker=shape, facecolor=fill, edgecolor=colour, lw=1.0, zorder=3)
        ends.append(stat.value)
    band = noise(shown, "noise" if path.startswith("forward_b1") else "noise_prefill")
    if band is not None:
        axes.axvspan(*band, color="#999999", alpha=0.28, lw=0, zorder=0)
    axes.axvline(1, color="#333333", lw=1.0, zorder=1)
    axes.set_xscale("log", base=2)
    low, high = min(ends) / 1.12, max(ends) * 1.12
    axes.set_xlim(low, high)
    ticks = TICKS if high > 16 * low else CLOSE_TICKS
    axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if 1.15 * low <= t <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.set_title(HEADINGS[path], loc="left")


def noise(rows: list[Row], which: str) -> tuple[float, float] | None:
    """The middle of the ratios of fp32 to itself over all rows: medians of their lower and of their upper ends."""
    stats = [row.stat("speed", which) for row in rows]
    ends = [(s.low, s.high) for s in stats if s.low is not None and s.high is not None]
    if not ends:
        return None
    return median(low for low, _ in ends), median(high for _, high in ends)


@plot("speed")
def speed(run: Run) -> Plot | None:
    """A panel for each path, a row for each method by family and bits."""
    rows = [r for r in timed_rows(run) if any(r.speedup(f"{p}_ratio").value is not None for p in PATHS)]
    if not rows:
        return None
    paths = [p for p in PATHS if any(r.speedup(f"{p}_ratio").value is not None for r in rows)]
    families = list(style.COLORS)
    order = {r.method: (r.family, r.number("memory", "bits_per_weight") or 0.0, r.method) for r in rows}
    index = {f: i for i, f in enumerate(families)}
    methods = sorted(order, key=lambda m: (index.get(order[m][0], len(index)), -order[m][1], m))
    models = sorted({r.model for r in rows})
    place = {m: float(i) for i, m in enumerate(methods)}
    figure, (line,) = style.figure(0.185 * len(methods) + 1.9, 1, len(paths), sharey=True)
    for axes, path in zip(line, paths, strict=True):
        panel(axes, path, place, rows, models)
        axes.grid(axis="y", color="#F0F0F0")
    line[0].set_yticks(range(len(methods)), [plot_text(m, 28) for m in methods], fontsize=8.0)
    for tick, method in zip(line[0].get_yticklabels(), methods, strict=True):
        tick.set_color(style.ink(order[method][0]))
    line[0].set_ylim(len(methods) - 0.4, -0.6)
    fills = ("#555555", "white", "white", "white")
    entries = [
        *style.handles({r.family for r in rows}),
        *(
            Line2D([], [], ls="", marker="o", mfc=fills[min(i, 3)], mec="#555555", label=plot_text(m, 20))
            for i, m in enumerate(models)
            if len(models) > 1
        ),
        Patch(color="#999999", alpha=0.28, lw=0, label="fp32 against itself"),
    ]
    title = "Speed-up over fp32 in the same run (×, log scale; right is faster)"
    style.legend(figure, title, entries)
    notes = " · ".join(t for t in (footer(run, rows), sizes(rows, paths), "whiskers are 95 % intervals") if t)
    return Plot(figure, title, notes, data(rows))


def sizes(rows: list[Row], paths: list[str]) -> str:
    ns = sorted({n for r in rows for p in paths if (n := r.speedup(f"{p}_ratio").n) is not None})
    return f"n = {ns[0]} to {ns[-1]} rounds" if len(ns) > 1 else f"n = {ns[0]} rounds" if ns else ""


def data(rows: list[Row]) -> pd.DataFrame:
    lines = []
    for row in rows:
        out: dict[str, object] = {"model": row.model, "method": row.method, "family": row.family}
        for path in PATHS:
            stat = row.speedup(f"{path}_ratio")
            out |= {f"{path}_speedup": stat.value, f"{path}_speedup_low": stat.low, f"{path}_speedup_high": stat.high}
        lines.append(out)
    return pd.DataFrame(lines)
