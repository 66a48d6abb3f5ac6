"""`peers`: other libraries' quantizers, each beside the method of this suite at the same settings, on the same weights.

The difference is paired over the items that both were judged on; `≈` marks one whose interval contains 0. Where it does
not, a note says what is known to differ, and how far copies of our method with other roundings stray from it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.measure.stats import stat
from bench.reports.caption import caption
from bench.reports.frames import Row, Run
from bench.reports.stats import Stat, estimate_text, number_or_none
from bench.reports.table import Column, Table, put, table
from bench.reports.tables.methods import key_of

KINDS = ("encoder", "causal")


def named(row: Row) -> list[str]:
    """The method that a peer's record says it is held against, then those beside it; none for other records."""
    if not row.method.startswith("peer-"):
        return []
    settings = row.table("settings")
    return [str(name) for name in (settings.get("ours"), *(settings.get("beside") or ())) if name]


def partner(run: Run, row: Row, method: str) -> Row | None:
    """The row of `method`, or of the control of that name, on the peer's model and task."""
    same = (r for r in (*run.select("beneath"), *run.controls) if (r.model, r.task) == (row.model, row.task))
    return next((r for r in same if r.method == method and r.order == "beneath"), None)


def packed_bits(row: Row) -> float | None:
    """Bits a weight with each code in as many bits as it needs, all else as stored; unknown without their width."""
    stored, width = row.number("memory", "bits_per_weight"), number_or_none(row.table("settings").get("code_bits"))
    codes, weights = row.number("memory", "parts_bytes", "codes"), row.number("memory", "n_quantized_weights")
    if stored is None or width is None or codes is None or not weights:
        return None
    return stored - 8 * codes / weights + width


def difference(ours: Row, theirs: Row, metric: str) -> Stat:
    """Ours less theirs, the mean over the items of both with its interval; unknown without items."""
    a, b = ours.items(metric), theirs.items(metric)
    if not a or len(a) != len(b):
        return Stat()
    found = stat([x - y for x, y in zip(a, b, strict=True)], statistic="mean")
    return Stat(found["value"], found["low"], found["high"], len(a))


def fill(run: Run, row: Row, ours: Row, kind: str) -> dict[str, Any]:
    """One peer of one model and task."""
    metric = run.ranking(kind)[0]
    settings = row.table("settings")
    out: dict[str, Any] = {
        "model": row.model,
        "task": row.task,
        "peer": row.method,
        "library": f"{settings.get('package')} {settings.get('version')}",
        "ours": ours.method,
        "alike": ours.method == named(row)[0],
        "peer_bits_per_weight": row.number("memory", "bits_per_weight"),
        "peer_bits_if_packed": packed_bits(row),
        "ours_bits_per_weight": ours.number("memory", "bits_per_weight"),
        "peer_relative_error": row.number("weights", "relative_error"),
        "ours_relative_error": ours.number("weights", "relative_error"),
    }
    put(out, f"peer_{key_of(metric)}", row.metric(metric))
    put(out, f"ours_{key_of(metric)}", ours.metric(metric))
    put(out, "difference", difference(ours, row, metric))
    out["settings"] = "the same" if out["alike"] else "other"
    out["why"] = reason(run, row, ours, out, metric) if out["alike"] else ""
    return out


def reason(run: Run, row: Row, ours: Row, pair: dict[str, Any], metric: str) -> str:
    """What is known of a difference between equals whose interval excludes 0, empty for any other."""
    low, high = pair["difference_low"], pair["difference_high"]
    if low is None or high is None or low <= 0 <= high:
        return ""
    known = [str(row.table("settings").get("differs") or "")]
    theirs, own = pair["peer_relative_error"], pair["ours_relative_error"]
    if theirs and own is not None:
        known.append(f"our relative error is {100 * (own / theirs - 1):+.2f} % from its")
    copies = [r for r in run.controls if (r.model, r.task) == (row.model, row.task) and of(r) == ours.method]
    strayed = [d for r in copies if (d := difference(r, ours, metric).value) is not None]
    if strayed:
        amount = f"{100 * float(copies[0].table('settings').get('amount') or 0.0):.2g}"
        by = ", ".join(estimate_text(Stat(d), 2, signed=True) for d in strayed)
        known.append(f"copies of {ours.method} with scales moved at random by {amount} % differ from it by {by}")
        if abs(pair["difference"]) <= max(map(abs, strayed)):
            known.append("at least one of them strays as far as this difference")
    return "; ".join(text for text in known if text)


def of(row: Row) -> str:
    """The method that a control is a copy of, empty for other rows."""
    return str(row.table("settings").get("of") or "")


@table("peers")
def peers(run: Run) -> list[Table]:
    """One table for each kind of model that a peer was judged on."""
    made = []
    for kind in KINDS:
        metric, shown = run.ranking(kind)
        pairs = [
            (row, ours)
            for row in run.select("beneath", kind=kind)
            for method in named(row)
            if (ours := partner(run, row, method)) is not None
        ]
        if not pairs:
            continue
        frame = pd.DataFrame([fill(run, row, ours, kind) for row, ours in pairs])
        order, ascending = ["model", "task", "peer", "alike"], [True, True, True, False]
        frame = frame.sort_values(order, ascending=ascending, kind="stable", ignore_index=True)
        unit = f" ({shown.unit})" if shown.unit else ""
        columns = (
            *(Column(n, n, text=True, keep=6) for n in ("model", "task") if frame[n].nunique() > 1),
            Column("peer", "peer", text=True, keep=9),
            Column("library", "library", text=True, keep=4),
            Column("ours", "ours", text=True, keep=9),
            Column("settings", "settings", text=True, keep=5),
            Column("bits, peer", "peer_bits_per_weight", digits=4, keep=8),
            Column("bits, peer, if packed", "peer_bits_if_packed", digits=4, keep=5),
            Column("bits, ours", "ours_bits_per_weight", digits=4, keep=8),
            Column("relative error, peer", "peer_relative_error", digits=4, keep=7),
            Column("relative error, ours", "ours_relative_error", digits=4, keep=7),
            Column(f"{shown.heading}, peer{unit}", f"peer_{key_of(metric)}", keep=6),
            Column(f"{shown.heading}, ours{unit}", f"ours_{key_of(metric)}", keep=6),
            Column(f"ours less peer{unit}", "difference", signed=True, keep=7),
        )
        title = f"Other libraries beside this suite, {kind} models"
        judged = [row for pair in pairs for row in pair]
        made.append(Table(f"peers-{kind}", title, columns, frame, caption(run, judged, [metric]), notes(frame)))
    return made


def notes(frame: pd.DataFrame) -> tuple[str, ...]:
    """How to read the table, then what is known of each difference between equals whose interval excludes 0."""
    why = [f"{row['peer']} and {row['ours']}: {row['why']}." for row in frame.to_dict("records") if row["why"]]
    return (
        "Bits are counted from the tensors that each library stores on this device, without per-tensor constants.",
        "If packed: computed, not stored: what the library would take with each code in as many bits as it needs.",
        "Settings: the same width, groups and kind of zero point; or other ones that a reader may ask for beside them.",
        "Below: what is known of each difference at the same settings whose interval excludes 0.",
        "ours less peer: mean over the same items, negative where ours is nearer to the unquantized model. Its "
        "interval is over items: it does not hold the draw of roundings, by which quantizers of equal error differ.",
        *why,
    )
