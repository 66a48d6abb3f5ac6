"""`layer-heatmap`: how far each layer's signal to quantization noise is from that of the method's middle layer, in dB.

The middle itself is named beside the method: methods of other widths differ by tens of dB, layers by few. Layers stand
side by side, by their matrix first and by depth within it, so that a weak matrix shows as a red band and a weak depth
as a repeated red column.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from bench.reports import style
from bench.reports.caption import machine
from bench.reports.escape import plot_text
from bench.reports.frames import Row, Run
from bench.reports.layers import split
from bench.reports.plots.registry import Plot, plot
from bench.reports.stats import number_or_none

NO_NAMES = {"xticklabels": False, "yticklabels": False}  # ours are set below
MOST = 12  # methods of one model

WEIGHTS_ALONE = (
    "of the weights alone: error feedback and scaling (GPTQ, SparseGPT, LNQ, AWQ) give it up for the error of outputs"
)


def sqnr(row: Row) -> dict[str, float]:
    """SQNR in dB of each layer that has one."""
    layers = row.table("weights", "layers")
    values = {str(n): number_or_none(v.get("sqnr_db")) for n, v in layers.items() if isinstance(v, dict)}
    return {name: value for name, value in values.items() if value is not None}


def few(rows: list[Row]) -> list[Row]:
    """At most `MOST` methods: from each family by turns, the nearest to four bits first; sorted by bits per weight."""

    def distance(row: Row) -> tuple[float, str]:
        return abs((row.number("memory", "bits_per_weight") or 99.0) - 4.25), row.method

    families = [sorted((r for r in rows if r.family == f), key=distance) for f in style.COLORS if f != "none"]
    turns = [family[i] for i in range(MOST) for family in families if i < len(family)]
    return sorted(turns[:MOST], key=lambda r: (-(r.number("memory", "bits_per_weight") or 0.0), r.method))


def frame_of(rows: list[Row]) -> pd.DataFrame:
    """Methods as rows, layers as columns ordered by matrix (as met in the first block) and depth."""
    table = pd.DataFrame({row.method: sqnr(row) for row in rows}).T
    first: dict[str, int] = {}
    for name in sorted(table.columns, key=lambda n: split(n)[1]):
        first.setdefault(split(name)[0], len(first))
    return table[sorted(table.columns, key=lambda n: (first[split(n)[0]], split(n)[1], n))]


def panel(axes: Axes, table: pd.DataFrame, rows: list[Row], scale: Normalize) -> None:
    """One model; a white line between matrices, their names below."""
    middle = table.median(axis=1)
    away = table.sub(middle, axis=0).astype(float)
    sns.heatmap(away, ax=axes, cmap="RdBu", norm=scale, cbar=False, rasterized=True, **NO_NAMES)
    names = [f"{plot_text(str(m), 24)}  {middle[m]:.1f} dB" for m in table.index]
    axes.set_yticks(np.arange(len(table)) + 0.5, names, rotation=0, fontsize=8)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(style.ink(row.family))
    matrices = [split(str(n))[0] for n in table.columns]
    starts = [i for i, m in enumerate(matrices) if i == 0 or m != matrices[i - 1]]
    for start in starts[1:]:
        axes.axvline(start, color="white", lw=2.5)
    centres = [(a + b) / 2 for a, b in zip(starts, [*starts[1:], len(matrices)], strict=True)]
    below = [plot_text(matrices[i].replace("attention.", "attn.").replace("self_attn.", ""), 18) for i in starts]
    crowded = len(below) > 8 or max(map(len, below)) * len(below) > 74
    axes.set_xticks(centres, below, rotation=20 if crowded else 0, ha="right" if crowded else "center", fontsize=8)
    axes.tick_params(length=0)


@plot("layer-heatmap")
def layer_heatmap(run: Run) -> Plot | None:
    """A panel for each model whose records have figures for each layer."""
    rows = {(r.model, r.method): r for r in reversed(run.select("beneath", "speed", "qlora")) if sqnr(r)}
    models = sorted({model for model, _ in rows})
    chosen = {m: few([rows[key] for key in sorted(rows) if key[0] == m]) for m in models}
    chosen = {m: some for m, some in chosen.items() if some}
    if not chosen:
        return None
    tables = {m: frame_of(some) for m, some in chosen.items()}
    away = [t.sub(t.median(axis=1), axis=0).to_numpy(dtype=float).ravel() for t in tables.values()]
    reach = float(np.nanquantile(np.abs(np.concatenate(away)), 0.98)) or 1.0
    scale = Normalize(-reach, reach)
    heights = [0.23 * len(t) + 0.55 for t in tables.values()]
    figure, grid = style.figure(sum(heights) + 1.1, len(tables), 1, gridspec_kw={"height_ratios": heights})
    for (model, table), (axes,) in zip(tables.items(), grid, strict=True):
        panel(axes, table, chosen[model], scale)
        depth = len({split(str(n))[1] for n in table.columns})
        few_of = f"{len(table)} of {sum(m == model for m, _ in rows)} methods"
        title = f"{plot_text(model)}: {table.shape[1]} layers, {depth} blocks from left to right; {few_of}"
        axes.set_title(title, loc="left")
    grid[-1][0].set_xlabel("layer, by matrix and depth")
    mesh = grid[0][0].collections[0]
    bar = figure.colorbar(mesh, ax=[line[0] for line in grid], shrink=0.8, pad=0.02, extend="both")
    bar.set_label("SQNR against the method's middle layer (dB): blue is better kept")
    bar.outline.set_visible(False)  # type: ignore[operator]
    long = [
        {"model": m, "method": method, "layer": layer, "sqnr_db": table.loc[method, layer]}
        for m, table in tables.items()
        for method in table.index
        for layer in table.columns
    ]
    footer = f"{machine(run)} · {WEIGHTS_ALONE}"
    return Plot(figure, "Signal to quantization noise, layer by layer", footer, pd.DataFrame(long))
