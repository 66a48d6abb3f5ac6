"""`rates-gaussian`, `rates-laplace`, `rates-model`: the gap of each method to the rate-distortion bound; weights pruned
but not quantized, whose kept values alone take 16 bits, have a table of their own behind each (`...-pruned`).

A gap of 6.02 dB is one bit a weight. The order-0 entropy says what an ideal coder of single codes would make of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from bench.measure.stats import stat
from bench.rates.sources import SOURCES
from bench.reports.lines import read_lines
from bench.reports.stats import Stat, read_stat
from bench.reports.table import Column, Table, put

__all__ = ["FILE", "tables", "write"]

FILE = "rates.jsonl"

COLUMNS = (
    Column("method", "method", text=True, keep=9),
    Column("family", "family", text=True, keep=3),
    Column("calibration", "calibration", text=True, keep=4),
    Column("bits/weight", "bits_per_weight", digits=4, keep=9),
    Column("relative MSE", "relative_mse", digits=4, keep=7),
    Column("gap (dB)", "gap_db", keep=9),
    Column("relative output error", "output_error", digits=4, keep=7),
    Column("output gap (dB)", "output_gap_db", keep=9),
    Column("entropy (bits/weight)", "entropy_bits_per_weight", digits=4, keep=6),
    Column("gap at the entropy (dB)", "entropy_gap_db", keep=5),
)
NOTES = (
    "Bits are those stored, per-tensor constants left out; the gap is at these bits, so rows of any width compare.",
    "The entropy is of single codes and masks, all else as stored: what an ideal coder of them would take.",
    "The gap is of the weights alone: error feedback and scaling (GPTQ, SparseGPT, LNQ, AWQ) and whatever a "
    "calibration weights give up weight error for output error, and do not minimize it.",
    "Methods that store the weights exactly, and those that refuse a sample, are left out; so are, of weights that are "
    "of no model, methods that need a calibration and rules over a model.",
)
OUTPUT = (
    "The output error is that in the norm of the second moment H of the layer's inputs, as calibrated: mean e H e^T "
    "over mean w H w^T. Its gap is to what independent Gaussian weights must leave of it at these bits, by reverse "
    "water-filling over the eigenvalues of H. A code that knows nothing of H cannot come near it: compare rows."
)


def tables(found: Sequence[dict[str, Any]]) -> list[Table]:
    """One table a source, ordered by the gap."""
    made = []
    for source in SOURCES:
        kept = [r for r in found if r["source"] == source.name and r["status"] == "ok" and all(r["relative_mse"])]
        if not kept:
            continue
        origin = kept[0]["provenance"]
        marks = "DIRTY: not for publication. " if origin["dirty"] else ""
        caption = f"{marks}{source.said[0].upper()}{source.said[1:]}. Mean, and the range over the samples. "
        caption += f"Commit {str(origin['commit'])[:12]}."
        notes = (*NOTES, OUTPUT) if source.known is not None else NOTES
        for ending, what, wanted in (("", "Methods", False), ("-pruned", "Weights pruned, not quantized,", True)):
            rows = [row(r) for r in kept if unquantized(r["settings"]) is wanted]
            rows.sort(key=lambda r: (r["gap_db"], r["method"]))
            frame = pd.DataFrame(rows)
            if rows:
                title = f"{what} at their measured bits on {source.title}"
                made.append(Table(f"rates-{source.name}{ending}", title, COLUMNS, frame, caption, notes))
    return made


def unquantized(settings: Any) -> bool:
    """Whether the values that a pruning method keeps are not quantized, however deep it is nested."""
    if not isinstance(settings, dict):
        return False
    values = settings.get("values")
    own = isinstance(values, dict) and values.get("quantizer") == "Unquantized"
    return own or any(unquantized(inner) for inner in settings.values())


def row(record: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {name: record[name] for name in ("method", "family", "calibration")}
    for name, key in (("bits", "bits_per_weight"), ("entropy_bits", "entropy_bits_per_weight")):
        out[key] = fmean(record[name])
    for name in ("relative_mse", "gap_db", "entropy_gap_db", "output_error", "output_gap_db"):
        samples = record.get(name) or [None]
        known = None not in samples
        put(out, name, read_stat(stat(samples, statistic="mean")) if known else Stat())
    return out


def write(out: Path) -> list[Path]:
    """Write the tables of the records in `out` to `out`/tables, in every format; the paths, in order."""
    folder = out / "tables"
    written = []
    for made in tables(read_lines(out / FILE)):
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in (("csv", made.csv()), ("md", made.markdown_page()), ("tex", made.latex())):
            path = folder / f"{made.name}.{ending}"
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written
