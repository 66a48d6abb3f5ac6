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
from bench.reports.stats import number_text
from bench.reports.tables.training_memory import PARTS, trained_rows

MOST = 16  # bars of one model; the table has all

LABELS = {"weights": "frozen weights", "adapter": "trained weights"}


def megabytes(row: Row, part: str) -> float:
    return (row.number("training_memory", f"{part}_bytes") or 0.0) / 1e6


def batch_of(row: Row) -> str:
    """The model and the size of its training batch, as the title of a panel."""
    sizes = [(row.number("training_memory", name), name) for name in ("batch", "tokens")]
    return ", ".join([row.model, *(f"{what} {size:.0f}" for size, what in sizes if size is not None)])


def bars(axes: Axes, rows: list[Row]) -> None:
    """One bar a row, from the top; its peak is written at the end."""
    longest = max(megabytes(row, "peak") for row in rows)
    for y, row in enumerate(rows):
        left = 0.0
        for part in PARTS:
            size = megabytes(row, part)
            axes.barh(y, size, left=left, height=0.72, color=style.PARTS[part], linewidth=0)
            left += size
        axes.text(left + 0.008 * longest, y, number_text(megabytes(row, "peak")), va="center", fontsize=8)
    orders = {"speed": "lora on"}  # its training step is that of LoRA over the quantized model
    names = [
        row.order if row.method in ("fp32", "") else f"{orders.get(row.order, row.order)} {row.method}" for row in rows
    ]
    axes.set_yticks(range(len(rows)), [plot_text(name, 28) for name in names])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.08 * longest)
    axes.grid(axis="y", visible=False)


@plot("training-memory")
def training_memory(run: Run) -> Plot | None:
    """A panel for each model and size of batch, for only equal batches compare; references first, then methods."""
    rows = trained_rows(run)
    if not rows:
        return None
    names = dict.fromkeys(batch_of(r) for r in rows)
    chosen = {name: _few([r for r in rows if batch_of(r) == name]) for name in names}
    heights = [0.24 * len(some) + 0.35 for some in chosen.values()]
    figure, grid = style.figure(sum(heights) + 1.5, len(chosen), 1, gridspec_kw={"height_ratios": heights})
    for (name, some), (axes,) in zip(chosen.items(), grid, strict=True):
        bars(axes, some)
        axes.set_title(plot_text(name, 80), loc="left")
    grid[-1][0].set_xlabel("memory at the peak of a training step (MB = 10⁶ bytes)")
    title = "Training memory by what it is for"
    style.legend(figure, title, [Patch(color=style.PARTS[p], label=LABELS.get(p, p)) for p in PARTS], columns=5)
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
