"""The table of plots, and writing them: PNG, SVG and the numbers they show as CSV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from bench.reports.caption import watermark
from bench.reports.escape import csv_text, plot_text
from bench.reports.frames import Run
from bench.reports.style import finish, save, style

__all__ = ["PLOTS", "Plot", "plot", "write_plots"]


@dataclass(frozen=True)
class Plot:
    """A drawn figure with its title, footer, and the numbers it shows, units in the names of the columns."""

    figure: Figure
    title: str
    footer: str
    data: pd.DataFrame


Drawer = Callable[[Run], Plot | None]
PLOTS: dict[str, Drawer] = {}


def plot(name: str) -> Callable[[Drawer], Drawer]:
    """Register the function that draws the plot `name`; it returns None when there is nothing to show."""

    def enter(draw: Drawer) -> Drawer:
        PLOTS[name] = draw
        return draw

    return enter


def write_plots(out: Path, run: Run) -> list[Path]:
    """Write every registered plot that has something to show; the paths, in order."""
    out.mkdir(parents=True, exist_ok=True)
    suffix = "-quick" if run.quick else ""
    written: list[Path] = []
    for name in sorted(PLOTS):
        with style():
            drawn = PLOTS[name](run)
            if drawn is None:
                continue
            finish(drawn.figure, plot_text(drawn.title, 70), plot_text(drawn.footer, 300), watermark(run))
            written += save(drawn.figure, out / (name + suffix))
        data = drawn.data.map(lambda v: csv_text(v) if isinstance(v, str) else v)
        path = out / f"{name}{suffix}.csv"
        path.write_text(data.to_csv(index=False, lineterminator="\n"), encoding="utf-8")
        written.append(path)
    return written
