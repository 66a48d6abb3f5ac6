"""How every figure looks: one colour and one marker for a family, sizes, the footer and the QUICK mark, and saving.

Colours of families are those of Okabe and Ito, "Color Universal Design" (2008), which stay apart for the colour-blind;
markers tell families apart without colour. Colours of parts of the memory are from Paul Tol's muted scheme ("Colour
Schemes", SRON/EPS/TN/09-002, 2021), so that no part looks like a family.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = [
    "COLORS",
    "MARKERS",
    "PARTS",
    "WIDTH",
    "color",
    "figure",
    "finish",
    "handles",
    "ink",
    "legend",
    "marker",
    "style",
]

COLORS: Mapping[str, str] = {
    "none": "#000000",
    "uniform": "#0072B2",
    "non-uniform": "#009E73",
    "nf4": "#D55E00",
    "double quantization": "#E69F00",
    "clustering": "#CC79A7",
    "pruning": "#56B4E9",
}
MARKERS: Mapping[str, str] = {
    "none": "*",
    "uniform": "o",
    "non-uniform": "s",
    "nf4": "D",
    "double quantization": "^",
    "clustering": "P",
    "pruning": "v",
}
PARTS: Mapping[str, str] = {
    "weights": "#332288",
    "adapter": "#DDCC77",
    "gradients": "#117733",
    "optimizer": "#882255",
    "activations": "#BBBBBB",
}
OTHER = "#777777"
WIDTH = 7.5  # inches: 1125 pixels, about the width of a README, so that 9 points stay readable
DPI = 150
SMALL = 8.0  # points; the smallest text of any figure
FOOTER = 118  # characters of a line of the footer
GREY = "#555555"
SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures are equal everywhere
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "legend.title_fontsize": 9.0,
    "svg.hashsalt": "quantbench",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
}


@contextmanager
def style() -> Iterator[None]:
    """The settings of every figure, undone at the end."""
    with mpl.rc_context(), sns.axes_style("whitegrid", {"grid.color": "#E6E6E6", "axes.edgecolor": "#999999"}):
        mpl.rcParams.update(SETTINGS)  # type: ignore[arg-type]
        yield


def color(family: str) -> str:
    """The family's colour; grey for a family that is not one of ours."""
    return COLORS.get(family, OTHER)


def marker(family: str) -> str:
    return MARKERS.get(family, "X")


def figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure `height` inches tall and its axes [rows][columns], not known to pyplot."""
    made = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")  # text is laid out at the size it is drawn
    FigureCanvasAgg(made)
    axes = made.subplots(rows, columns, squeeze=False, **options)
    return made, [list(line) for line in axes]


def handles(families: Iterable[str]) -> list[Line2D]:
    """Legend entries of the families present, in the order of the palette."""
    present = set(families)
    ordered = [f for f in COLORS if f in present] + sorted(present - set(COLORS))
    return [Line2D([], [], color=color(f), marker=marker(f), ls="", ms=7, label=named(f)) for f in ordered]


def named(family: str) -> str:
    return {"none": "unquantized", "nf4": "normal float (NF)"}.get(family, family)


def legend(made: Figure, title: str, entries: list[Any], columns: int = 4) -> None:
    """The title and below it the legend, above the axes: outside the data, and the layout knows of both."""
    made.legend(
        handles=entries,
        title=title,
        title_fontproperties={"size": 11, "weight": "bold"},
        alignment="left",
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        columnspacing=1.4,
        borderpad=0.2,
    )


def ink(family: str) -> tuple[float, float, float]:
    """The family's colour darkened for text, which needs more contrast than a marker."""
    red, green, blue = mpl.colors.to_rgb(color(family))
    return red * 0.68, green * 0.68, blue * 0.68


def finish(made: Figure, title: str, footer: str, mark: str) -> Figure:
    """Title above unless the legend carries it, footer below, the QUICK or DIRTY mark across."""
    if not made.legends:
        made.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    made.supxlabel("\n".join(textwrap.wrap(footer, FOOTER)), fontsize=SMALL, color=GREY, x=0.01, ha="left")
    if mark:
        made.text(
            0.5, 0.5, mark, fontsize=64, color="#CC0000", alpha=0.13, rotation=28, ha="center", va="center", zorder=10
        )
    return made


def save(made: Figure, path: Path) -> list[Path]:
    """`path`.png and `path`.svg, their bytes decided by the figure alone: no dates, no versions."""
    made.canvas.draw()
    made.set_layout_engine("none")  # it is settled; doing it again for each format would take most of the time
    for axes in made.axes:  # the solver of the layout is exact to the last bits only, and SVG names are hashes of them
        left, low, width, height = (round(v, 6) for v in axes.get_position().bounds)
        axes.set_position((left, low, width, height))
    png, svg = path.with_name(path.name + ".png"), path.with_name(path.name + ".svg")
    made.savefig(png, dpi=DPI, metadata={"Software": None})
    made.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
