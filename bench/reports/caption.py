"""What must be known to read a table or figure: sample sizes, seeds, device, commit, and the QUICK and DIRTY marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.reports.frames import Record, Row, Run, dig, metric_kind
from bench.schema import METRICS

__all__ = ["DISTURBANCES", "INTERVALS", "caption", "footer", "sample_sizes", "watermark"]

INTERVALS = (
    "± reaches to the farther end of the 95 % interval (with fewer than 6 samples: to the farthest sample), a lopsided "
    "one is written [low, high]; "
    "≈ marks a difference whose interval contains 0, or a ratio whose interval contains 1"
)
DISTURBANCES = (
    "† marks a ratio of times that may be the machine's doing, whatever its interval: timed on a busy machine, or not "
    "beyond fp32 against itself"
)


def watermark(run: Run) -> str:
    """`QUICK`, `DIRTY`, both or nothing."""
    return " ".join(mark for mark, on in (("QUICK", run.quick), ("DIRTY", run.dirty)) if on)


def sample_sizes(rows: Iterable[Row], metrics: Sequence[str]) -> str:
    """`accuracy n = 1000 texts; KL, Wikipedia n = 8 windows`: a range where rows differ."""
    rows = list(rows)
    texts = []
    for metric in metrics:
        sizes = sorted({n for row in rows if (n := row.metric(metric).n) is not None})
        if sizes:
            span = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
            unit = "windows" if metric_kind(metric) == "causal" else "texts"
            texts.append(f"{METRICS[metric].heading} n = {span} {unit}")
    return "; ".join(texts)


def caption(run: Run, rows: Sequence[Row], metrics: Sequence[str] = ()) -> str:
    """Watermark, sample sizes, seeds, device and commit of a table."""
    seeds = sorted({seed for row in rows for seed in row.seeds}, key=lambda s: (len(s), s))
    marks = watermark(run)
    parts = [
        f"{marks}: not for publication" if marks else "",
        sample_sizes(rows, metrics),
        f"seed {', '.join(seeds)}" if len(seeds) == 1 else f"seeds {', '.join(seeds)}" if seeds else "",
        machine(run),
        INTERVALS if metrics else "",
    ]
    return ". ".join(part for part in parts if part) + "."


def machine(run: Run) -> str:
    """Device, threads and commit, each named once."""
    devices = run.distinct("provenance", "device") or run.distinct("speed", "device")
    timed, judged = (
        sorted({str(dig(r, "provenance", "threads") or "") for r in run.records if is_timed(r) is times} - {""})
        for times in (True, False)
    )
    threads = [*judged, *(f"{n} for times" for n in timed if timed != judged)]
    commits = [commit[:12] for commit in run.distinct("provenance", "commit")]
    parts = [
        f"device {', '.join(devices)}" if devices else "",
        f"threads {', '.join(threads)}" if threads else "",
        f"commit {', '.join(commits)}" if commits else "",
    ]
    return ", ".join(part for part in parts if part)


def is_timed(record: Record) -> bool:
    """Whether the record is of a cell that was run for its times: those have more threads."""
    return bool(dig(record, "cell", "order") == "speed")


def footer(run: Run, rows: Sequence[Row], metrics: Sequence[str] = ()) -> str:
    """The small line under a figure."""
    return " · ".join(part for part in (sample_sizes(rows, metrics), machine(run)) if part)
