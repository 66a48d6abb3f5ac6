"""`adapting`: what a regime of adapting buys against the training memory it needs, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bench.reports import style
from bench.reports.caption import footer
from bench.reports.escape import plot_text
from bench.reports.frames import Row, Run
from bench.reports.labels import Label, place
from bench.reports.plots.registry import Plot, plot
from bench.reports.stats import Stat
from bench.schema import METRICS, REFERENCES


def judged(run: Run, model: str) -> tuple[str, str]:
    """(metric, label of its axis) that says how well this model was adapted."""
    if run.kinds[model] == "encoder":
        return "accuracy", "accuracy (%)"
    name = f"perplexity_{run.adapted}"
    return name, f"{METRICS[name].heading} (log scale)"


MB = 1e6
FEWEST = 3  # trained models that are worth a panel
FAR = 20


@dataclass(frozen=True)
class Regime:
    row: Row
    stat: Stat
    memory: float | None  # MB at the peak of training; None for a model that was not trained


def regimes(run: Run, model: str, task: str) -> list[Regime]:
    """References in their order, then QLoRA by method, those with a figure."""
    metric = judged(run, model)[0]
    order = {name: i for i, name in enumerate((*REFERENCES, "qlora"))}
    rows = [r for r in run.select(*order) if (r.model, r.task) == (model, task)]
    rows.sort(key=lambda r: (order[r.order], r.method))
    found = []
    for row in rows:
        stat, peak = row.metric(metric), row.number("training_memory", "peak_bytes")
        trained = peak if row.order != "untouched" else None
        if stat.value is not None:
            found.append(Regime(row, stat, None if trained is None else trained / MB))
    return found


def panel(axes: Axes, shown: list[Regime], log: bool) -> None:
    """Points where memory is known; the untouched model as a line across."""
    for regime in shown:
        stat, row = regime.stat, regime.row
        if regime.memory is None:
            if row.order == "untouched":
                axes.axhline(stat.value or 0.0, color="#333333", lw=1.0, ls=":", zorder=1)
            continue
        colour = style.color(row.family)
        if stat.low is not None and stat.high is not None:
            axes.plot([regime.memory] * 2, [stat.low, stat.high], color=colour, lw=1.2, alpha=0.6, zorder=2)
        shape = style.marker(row.family)
        size = 120 if shape == "*" else 42
        axes.scatter(
            regime.memory, stat.value or 0.0, s=size, marker=shape, c=colour, edgecolors="white", lw=0.6, zorder=4
        )
    peaks = [r.memory for r in shown if r.memory is not None]
    axes.set_xscale("log")
    axes.set_xlim(min(peaks) / 1.25, max(peaks) * 1.3)
    ticks(axes.xaxis)
    if log:
        axes.set_yscale("log")
        ticks(axes.yaxis)


def ticks(axis: object) -> None:
    """Plain numbers at 1, 1.5, 2, 3, 5, 7 of each decade, fewer over many of them; evenly spaced within an octave."""
    low, high = axis.get_view_interval()  # type: ignore[attr-defined]
    subs = (1, 1.5, 2, 3, 5, 7) if high < 30 * low else (1, 3) if high < 1e4 * low else (1,)
    locator = MaxNLocator(4) if high < 2 * low else LogLocator(10, subs=subs)
    axis.set_major_locator(locator)  # type: ignore[attr-defined]
    axis.set_minor_locator(NullLocator())  # type: ignore[attr-defined]
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))  # type: ignore[attr-defined]
    axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]


def names(figure: Figure, axes: Axes, shown: list[Regime]) -> None:
    """References by their regime, QLoRA points by their method."""
    labels, points, whiskers = [], [], []
    for regime in shown:
        if regime.memory is None or regime.stat.value is None:
            continue
        text = regime.row.method if regime.row.order == "qlora" else regime.row.order
        labels.append(Label(regime.memory, regime.stat.value, plot_text(text, 26), style.ink(regime.row.family)))
        points.append((regime.memory, regime.stat.value))
        low, high = regime.stat.low, regime.stat.high
        if low is not None and high is not None:
            whiskers += [(regime.memory, low + (high - low) * i / 20) for i in range(21)]
    place(figure, axes, labels, points, whiskers)


@plot("adapting")
def adapting(run: Run) -> Plot | None:
    """A panel for each model and task."""
    pairs = sorted({(r.model, r.task) for r in run.select(*REFERENCES, "qlora") if r.model in run.kinds})
    panels = {pair: regimes(run, *pair) for pair in pairs}
    panels = {pair: shown for pair, shown in panels.items() if sum(r.memory is not None for r in shown) >= FEWEST}
    if not panels:
        return None
    everything, panels = panels, {pair: near(run, pair[0], shown) for pair, shown in panels.items()}
    left_out = [r.row.method for pair, shown in everything.items() for r in shown if r not in panels[pair]]
    figure, grid = style.figure(3.3 * len(panels) + 1.2, len(panels), 1)
    for ((model, task), shown), (axes,) in zip(panels.items(), grid, strict=True):
        kind = run.kinds[model]
        panel(axes, shown, log=kind == "causal")
        axes.set_ylabel(judged(run, model)[1])
        axes.set_title(f"{plot_text(model)}, {plot_text(task)}", loc="left")
    grid[-1][0].set_xlabel("peak training memory (MB, log scale)")
    families = {r.row.family for shown in panels.values() for r in shown if r.memory is not None}
    entries = style.handles(families)
    if any(r.row.order == "untouched" for shown in panels.values() for r in shown):
        entries.append(Line2D([], [], color="#333333", lw=1.0, ls=":", label="untouched model"))
    title = "What adapting buys: reference regimes and QLoRA"
    style.legend(figure, title, entries)
    figure.supxlabel(" \n ", fontsize=style.SMALL)  # room for the footer: the layout must be final for the labels
    figure.canvas.draw()
    for shown, (axes,) in zip(panels.values(), grid, strict=True):
        names(figure, axes, shown)
    rows = [r.row for shown in panels.values() for r in shown]
    notes = footer(run, rows, ("accuracy", f"perplexity_{run.adapted}")) + " · bars are 95 % intervals"
    if left_out:
        notes += f" · over {FAR} times the best perplexity, not drawn: {', '.join(plot_text(m) for m in left_out)}"
    return Plot(figure, title, notes, data(run, everything))


def near(run: Run, model: str, shown: list[Regime]) -> list[Regime]:
    """Without the perplexities that would leave no room for the others."""
    if run.kinds[model] == "encoder":
        return shown
    best = min(r.stat.value for r in shown if r.stat.value is not None)
    return [r for r in shown if r.stat.value is not None and r.stat.value <= FAR * best]


def data(run: Run, panels: dict[tuple[str, str], list[Regime]]) -> pd.DataFrame:
    lines = []
    for (model, task), shown in panels.items():
        metric = judged(run, model)[0]
        for r in shown:
            lines.append(
                {
                    "model": model,
                    "task": task,
                    "regime": r.row.order,
                    "method": r.row.method,
                    "metric": metric + ("_percent" if metric == "accuracy" else ""),
                    "value": r.stat.value,
                    "low": r.stat.low,
                    "high": r.stat.high,
                    "training_peak_mb": r.memory,
                }
            )
    return pd.DataFrame(lines)
