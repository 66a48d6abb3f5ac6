"""`weight-error`: the density of one layer's weights with the method's levels under it, and the density of the error.

One method for each family, the one nearest to four bits per weight, all of the same model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.reports import style
from bench.reports.caption import machine
from bench.reports.escape import plot_text
from bench.reports.frames import Row, Run
from bench.reports.plots.registry import Plot, plot
from bench.reports.stats import number_or_none, number_text

NEEDED = ("edges", "weight_density", "error_edges", "error_density")


def histogram_of(row: Row) -> dict[str, Any]:
    """The row's histogram if it is whole: one edge more than densities, all finite; else empty."""
    found = row.table("weights", "histogram")
    out: dict[str, Any] = {"layer": found.get("layer"), "levels": numbers(found.get("levels")) or []}
    for name in NEEDED:
        values = numbers(found.get(name))
        if not values:
            return {}
        out[name] = values
    whole = all(len(out[f"{e}edges"]) == len(out[f"{d}_density"]) + 1 for e, d in (("", "weight"), ("error_", "error")))
    return out if whole else {}


def numbers(raw: Any) -> list[float] | None:
    """A list of finite numbers as floats, or None for anything else."""
    values = [number_or_none(v) for v in raw] if isinstance(raw, list) else []
    known = [v for v in values if v is not None]
    return known if known and len(known) == len(values) else None


def chosen(run: Run) -> list[tuple[Row, dict[str, Any]]]:
    """One (row, histogram) for each family, in the order of the palette, of the model that has most of them."""
    found: dict[str, dict[str, tuple[float, str, Row, dict[str, Any]]]] = {}
    for row in run.select("beneath", "speed", "qlora"):
        histogram, bits = histogram_of(row), row.number("memory", "bits_per_weight")
        if not histogram or bits is None or row.family == "none":
            continue
        of_model = found.setdefault(row.model, {})
        candidate = (round(abs(bits - 4.25), 6), row.method, row, histogram)
        if row.family not in of_model or candidate[:2] < of_model[row.family][:2]:
            of_model[row.family] = candidate
    if not found:
        return []
    best = min(found, key=lambda model: (-len(found[model]), model))
    order = [*style.COLORS, *sorted(set(found[best]) - set(style.COLORS))]
    return [found[best][family][2:] for family in order if family in found[best]]


def density(axes: Axes, edges: list[float], values: list[float], color: str) -> None:
    axes.stairs(values, edges, fill=True, color=color, alpha=0.35)
    axes.stairs(values, edges, color=color, lw=1.0)
    axes.set_ylim(0, 1.18 * max(values) or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", visible=False)


def levels_rug(axes: Axes, levels: list[float], edges: list[float], color: str) -> int:
    """Levels inside the shown range as ticks from the axis up; how many there are."""
    inside = [v for v in levels if edges[0] <= v <= edges[-1]]
    if inside:
        axes.vlines(inside, 0, 0.16, transform=axes.get_xaxis_transform(), color=color, lw=1.1, zorder=4)
    return len(inside)


@plot("weight-error")
def weight_error(run: Run) -> Plot | None:
    """Left the weights and the levels, right the errors of the same layer, all errors on one scale."""
    shown = chosen(run)
    if not shown:
        return None
    figure, grid = style.figure(1.25 * len(shown) + 1.2, len(shown), 2, sharex="col")
    reach = max(_reach(h["error_edges"], h["error_density"]) for _, h in shown)
    for (row, h), (left, right) in zip(shown, grid, strict=True):
        hue, ink = style.color(row.family), style.ink(row.family)
        density(left, h["edges"], h["weight_density"], hue)
        count = levels_rug(left, h["levels"], h["edges"], "#222222")
        density(right, h["error_edges"], h["error_density"], hue)
        rms = row.number("weights", "relative_error")
        bits = number_text(row.number("memory", "bits_per_weight"), 4)
        left.set_title(f"{plot_text(row.method, 28)}, {bits} bits", loc="left", color=ink)
        right.set_title(f"relative error {number_text(rms)}", loc="left", color=ink)
        note = f"{count} levels" if count else "no levels"
        left.text(0.985, 0.9, note, transform=left.transAxes, ha="right", va="top", fontsize=8, color=style.GREY)
        right.set_xlim(-reach, reach)
        left.set_ylabel("density")
    grid[-1][0].set_xlabel("weight (ticks: levels at the median scale)")
    grid[-1][1].set_xlabel("error = restored − weight")  # noqa: RUF001
    layers = sorted({plot_text(h["layer"], 60) for _, h in shown if h["layer"]})
    notes = f"{plot_text(shown[0][0].model)}, layer {', '.join(layers)} · {machine(run)}"
    return Plot(figure, "Weights, levels and errors: one method for each family", notes, data(shown))


def _reach(edges: list[float], values: list[float]) -> float:
    """The largest magnitude below which lies 99.5 % of the error's mass."""
    mass = np.asarray(values) * np.diff(edges)
    size = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
    order = np.argsort(size, kind="stable")
    inside = np.cumsum(mass[order]) >= 0.995 * mass.sum()
    return float(size[order][int(np.argmax(inside))])


def data(shown: list[tuple[Row, dict[str, Any]]]) -> pd.DataFrame:
    """In long form: what, method, left and right edge in units of the weights, density per that unit."""
    lines: list[dict[str, object]] = []
    for row, h in shown:
        for what, edges, values in (
            ("weight", h["edges"], h["weight_density"]),
            ("error", h["error_edges"], h["error_density"]),
        ):
            base = {"model": row.model, "method": row.method, "family": row.family, "layer": h["layer"], "what": what}
            lines += [
                base | {"left": a, "right": b, "density": d}
                for a, b, d in zip(edges[:-1], edges[1:], values, strict=True)
            ]
        base = {"model": row.model, "method": row.method, "family": row.family, "layer": h["layer"], "what": "level"}
        lines += [base | {"left": v, "right": v} for v in h["levels"]]
    return pd.DataFrame(lines)
