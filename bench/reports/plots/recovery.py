"""`recovery`: the distance to the unquantized model at which adapters start, and the loss that training leaves.

A panel for each model and task. Along: what `training.start` says, the distance of the embeddings of an encoder or
the KL of a causal model. Up: the difference of the loss that was trained on to LoRA on the unquantized weights, for
a causal model the ratio of the perplexities, with its 95 % interval. One colour for each way to start; a line joins
the ways of one method.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.reports import style
from bench.reports.caption import footer
from bench.reports.escape import plot_text
from bench.reports.frames import Row, Run
from bench.reports.labels import Label, place
from bench.reports.plots.adapting import ticks
from bench.reports.plots.registry import Plot, plot
from bench.reports.stats import Stat
from bench.reports.tables.recovery import STARTED, judged, start_of, started
from bench.schema import METRICS

FEWEST = 2  # trained adapters that are worth a panel
LOOKS = {
    "qlora": ("#555555", "o"),
    "loftq": ("#0072b2", "s"),
    "qpissa": ("#d55e00", "^"),
    "eora": ("#009e73", "D"),
    "lq": ("#f0e442", "h"),
    "chained": ("#56b4e9", "X"),
    "qa-lora": ("#cc79a7", "P"),
    "distill": ("#e69f00", "v"),
    "gradual": ("#000000", "<"),
}


@dataclass(frozen=True)
class Point:
    row: Row
    start: Stat
    end: Stat


def points(run: Run, kind: str) -> list[Point]:
    """Rows with both figures; the end is a difference of losses, or a ratio of perplexities."""
    far, trained, _ = judged(run, kind)
    found = []
    for row in started(run, kind):
        end = row.metric(trained).difference if kind == "encoder" else ratio_of(row.metric(trained))
        start = start_of(row, far)
        if start.value is not None and start.value > 0 and end.value is not None:
            found.append(Point(row, start, end))
    return found


def ratio_of(perplexity: Stat) -> Stat:
    """The paired ratio to LoRA's: its difference is that perplexity times (ratio - 1)."""
    if perplexity.value is None or perplexity.delta is None or perplexity.value <= perplexity.delta:
        return Stat()
    return perplexity.difference.map(1 / (perplexity.value - perplexity.delta), 1.0)


def panel(axes: Axes, shown: list[Point], kind: str) -> None:
    """Points with their whiskers, those of a method joined in the order of their starts."""
    axes.axhline(0.0 if kind == "encoder" else 1.0, color="#333333", lw=1.0, ls=":", zorder=1)
    for method in sorted({p.row.method for p in shown}):
        line = sorted((p.start.value or 0.0, p.end.value or 0.0) for p in shown if p.row.method == method)
        axes.plot(*zip(*line, strict=True), color="#bbbbbb", lw=0.8, zorder=2)
    for p in shown:
        colour, shape = LOOKS[p.row.order]
        if p.end.low is not None and p.end.high is not None:
            axes.plot([p.start.value or 0.0] * 2, [p.end.low, p.end.high], color=colour, lw=1.2, alpha=0.6, zorder=3)
        axes.scatter(
            p.start.value or 0.0, p.end.value or 0.0, s=42, marker=shape, c=colour, edgecolors="white", lw=0.6, zorder=4
        )
    axes.set_xscale("log")
    starts = [p.start.value or 0.0 for p in shown]
    axes.set_xlim(min(starts) / 1.4, max(starts) * 1.4)
    ticks(axes.xaxis)
    if kind == "causal":
        axes.set_yscale("log")
        ticks(axes.yaxis)


def labels(shown: list[Point]) -> list[Label]:
    """The name of each method at its point that starts farthest."""
    out = []
    for method in sorted({p.row.method for p in shown}):
        last = max((p for p in shown if p.row.method == method), key=lambda p: p.start.value or 0.0)
        out.append(Label(last.start.value or 0.0, last.end.value or 0.0, plot_text(method, 26), "#333333"))
    return out


@plot("recovery")
def recovery(run: Run) -> Plot | None:
    """A panel for each model and task with adapters that say how they started."""
    panels: dict[tuple[str, str, str], list[Point]] = {}
    for kind in ("encoder", "causal"):
        for p in points(run, kind):
            panels.setdefault((kind, p.row.model, p.row.task), []).append(p)
    panels = {key: shown for key, shown in panels.items() if len(shown) >= FEWEST}
    if not panels:
        return None
    made, grid = style.figure(3.3 * len(panels) + 1.2, len(panels), 1)
    for ((kind, model, task), shown), (axes,) in zip(panels.items(), grid, strict=True):
        far, trained, _ = judged(run, kind)
        panel(axes, shown, kind)
        unit = METRICS[far].unit or "1 − cosine"  # noqa: RUF001
        axes.set_xlabel(f"{METRICS[far].heading} before training ({unit}, log scale)")
        heading = METRICS[trained].heading
        axes.set_ylabel(f"Δ {heading} to LoRA (nats)" if kind == "encoder" else f"{heading}, × LoRA's (log scale)")  # noqa: RUF001
        axes.set_title(f"{plot_text(model)}, {plot_text(task)}", loc="left")
    orders = [o for o in STARTED if any(p.row.order == o for shown in panels.values() for p in shown)]
    entries = [Line2D([], [], color=LOOKS[o][0], marker=LOOKS[o][1], ls="", ms=7, label=o) for o in orders]
    title = "What a new adapter recovers, by how it starts"
    style.legend(made, title, entries, columns=7)
    made.supxlabel(" \n ", fontsize=style.SMALL)  # room for the footer: the layout must be final for the labels
    made.canvas.draw()
    for shown, (axes,) in zip(panels.values(), grid, strict=True):
        thin = [
            (p.start.value or 0.0, p.end.low + (p.end.high - p.end.low) * i / 20)
            for p in shown
            if p.end.low is not None and p.end.high is not None
            for i in range(21)
        ]
        place(made, axes, labels(shown), [(p.start.value or 0.0, p.end.value or 0.0) for p in shown], thin)
    rows = [p.row for shown in panels.values() for p in shown]
    notes = footer(run, rows, ("loss", f"perplexity_{run.adapted}")) + " · bars are 95 % intervals"
    held = [(row, start_of(row, judged(run, kind)[0])) for kind in ("encoder", "causal") for row in started(run, kind)]
    if at_zero := {row.order for row, start in held if start.value == 0}:
        notes += f" · not drawn, as no distance is left at the start: {', '.join(sorted(at_zero))}"
    return Plot(made, title, notes, data(run, panels))


def data(run: Run, panels: dict[tuple[str, str, str], list[Point]]) -> pd.DataFrame:
    """The numbers of the figure."""
    lines = []
    for (kind, model, task), shown in panels.items():
        far, trained, _ = judged(run, kind)
        for p in shown:
            lines.append(
                {
                    "model": model,
                    "task": task,
                    "order": p.row.order,
                    "method": p.row.method,
                    "start_metric": far,
                    "start": p.start.value,
                    "start_low": p.start.low,
                    "start_high": p.start.high,
                    "end_metric": f"{trained}_{'difference_nats' if kind == 'encoder' else 'ratio'}",
                    "end": p.end.value,
                    "end_low": p.end.low,
                    "end_high": p.end.high,
                }
            )
    return pd.DataFrame(lines)
