"""`sensitivity`: matrices by depth, coloured by how far quantizing each of them alone moves what the model says.

The colour is the logarithm of the KL divergence, the same scale for all methods. Beside each method stand the sum over
its matrices, which predicts that of quantizing all of them as long as the changes are small, and the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter

from bench.reports import style
from bench.reports.escape import plot_text
from bench.reports.layers import split
from bench.reports.lines import read_lines

__all__ = ["FILE", "frame_of", "write"]

FILE = "sensitivity.jsonl"

SMALLEST = 1e-8  # nats a token: float32 logits do not tell smaller divergences from none


def frame_of(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row a record: model, method, matrix, block, bits_per_weight, relative_error, kl with its interval."""
    rows = []
    for record in found:
        matrix, block = split(record["layer"])
        kl = {f"kl{end}": record["kl"][name] for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))}
        kept = {name: record[name] for name in ("model", "method", "bits_per_weight", "relative_error")}
        rows.append(kept | {"matrix": matrix, "block": block} | kl)
    return pd.DataFrame(rows)


def write(out: Path) -> list[Path]:
    """Draw the records of `out`/sensitivity.jsonl into `out`/plots; the paths, none where there are no records."""
    found = read_lines(out / FILE)
    data = frame_of(found)
    if data.empty:
        return []
    methods = list(dict.fromkeys(data["method"]))
    matrices = list(dict.fromkeys(data["matrix"]))
    values = data["kl"].clip(lower=SMALLEST)
    scale = LogNorm(float(values.min()), max(float(values.max()), 2 * float(values.min())))
    with style.style():
        height = 0.24 * len(matrices) + 0.62
        figure, grid = style.figure(height * len(methods) + 0.9, len(methods), 1)
        for (axes,), method in zip(grid, methods, strict=True):
            part = data[data["method"] == method]
            table = part.pivot(index="matrix", columns="block", values="kl").loc[matrices].clip(lower=SMALLEST)
            sns.heatmap(
                table, ax=axes, cmap="magma_r", norm=scale, cbar=False, annot=np.asarray(table), fmt=".0e",
                annot_kws={"size": style.SMALL - 1.5}, xticklabels=True, yticklabels=True,
            )  # fmt: skip
            worst = part.loc[part["kl"].idxmax()]
            total = f"{len(part)} sum to {part['kl'].sum():.3g}"
            title = f"{plot_text(method)}: {total}, largest {worst['matrix']} of block {worst['block']}"
            axes.set_title(title, loc="left", fontsize=style.SMALL)
            axes.set(xlabel="", ylabel="")
        grid[-1][0].set_xlabel("block")
        bar = figure.colorbar(grid[0][0].collections[0], ax=[line[0] for line in grid], shrink=0.8, pad=0.02)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda kl, _: f"{kl:g}"))
        bar.set_label("KL divergence (nats/token)")
        origin = found[0]["provenance"]
        footer = f"{found[0]['model']} · {found[0]['protocol']} · commit {str(origin['commit'])[:12]}"
        style.finish(figure, "One matrix quantized at a time", footer, "DIRTY" if origin["dirty"] else "")
        folder = out / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        paths = style.save(figure, folder / "sensitivity")
    data.to_csv(folder / "sensitivity.csv", index=False, lineterminator="\n")
    return [*paths, folder / "sensitivity.csv"]
