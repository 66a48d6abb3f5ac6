"""`training-memory`: stacked bars of the bytes at the peak of training, in MB, by regime and method."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from bench.reports import style
from bench.reports.caption import footer
from bench.reports.escape import plot_text
from bench.reports.frames import Row, Run
from bench.reports.plots.registry import Plot, plot
from bench.reports.tables.training_memory import PARTS, trained_rows

MOST = 16  # bars of one model; the table has all


def megabytes(row: Row, part: str) -> float:
    return (row.number("training_memory", f"{part}_bytes") or 0.0) / 1e6


def bars(axes: Axes, rows: list[Row]) -> None:
    """One bar a row, from the top; its peak is written at the end."""
    longest = max(megabytes(row, "peak") for row in rows)
    for y, row in enumerate(rows):
        left = 0.0
        for part in PARTS:
            size = megabytes(row, part)
            axes.barh(y, size, left=left, height=0.72, color=style.PARTS[part], linewidth=0)
            left += size
        axes.text(left + 0.008 * longest, y, f"{megabytes(row, 'peak'):.0f}", va="center", fontsize=8)
    names = [row.order if row.method in ("fp32", "") else f"{row.order} {row.method}" for row in rows]
    axes.set_yticks(range(len(rows)), [plot_text(name, 28) for name in names])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.08 * longest)
    axes.grid(axis="y", visible=False)


@plot("training-memory")
def training_memory(run: Run) -> Plot | None:
    """A panel for each model, references first, then methods by falling peak."""
    rows = trained_rows(run)
    models = sorted({r.model for r in rows})
    if not rows:
        return None
    chosen = {m: _few([r for r in rows if r.model == m]) for m in models}
    heights = [0.24 * len(chosen[m]) + 0.35 for m in models]
    figure, grid = style.figure(sum(heights) + 1.5, len(models), 1, gridspec_kw={"height_ratios": heights})
    for model, (axes,) in zip(models, grid, strict=True):
        bars(axes, chosen[model])
        axes.set_title(plot_text(model), loc="left")
    grid[-1][0].set_xlabel("memory at the peak of a training step (MB = 10⁶ bytes)")
    title = "Training memory by what it is for"
    style.legend(figure, title, [Patch(color=style.PARTS[p], label=p) for p in PARTS], columns=5)
    data = pd.DataFrame(
        [
            {"model": r.model, "task": r.task, "regime": r.order, "method": r.method}
            | {f"{part}_mb": megabytes(r, part) for part in (*PARTS, "peak")}
            for r in rows
        ]
    )
    left_out = len(rows) - sum(map(len, chosen.values()))
    note = f"{left_out} more in the table" if left_out else ""
    return Plot(figure, title, " · ".join(t for t in (footer(run, rows), note) if t), data)


def _few(rows: list[Row]) -> list[Row]:
    """At most `MOST` rows: all references, and methods evenly spread over the peaks."""
    first = [r for r in rows if r.order not in ("qlora", "speed")]
    rest = [r for r in rows if r not in first]
    room = max(MOST - len(first), 2)
    if len(rest) <= room:
        return first + rest
    return first + [rest[round(i * (len(rest) - 1) / (room - 1))] for i in range(room)]
