"""Records as rows: one row for every (model, task, order, method) that finished, its seeds together.

Everything the tables and plots show is read through here, tolerant of missing pieces: a block, metric or part that a
record does not have is unknown (None), never an error and never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from bench.reports.stats import Stat, pool, read_stat
from bench.schema import METRICS, Metric

__all__ = ["Record", "Row", "Run", "family_of", "ranking_metric", "scale_of", "unit_of"]

Record = dict[str, Any]
KINDS = ("encoder", "causal")
CAUSAL_MARKS = ("perplexity_", "kl_", "top1_")  # metrics of text models begin so, all others belong to encoders


def dig(record: Any, *path: str) -> Any:
    """The value at `path` of nested tables, None where a step is missing."""
    for step in path:
        if not isinstance(record, dict):
            return None
        record = record.get(step)
    return record


def scale_of(metric: str) -> float:
    """Records hold shares (0 to 1); what is shown in % is 100 times that."""
    return 100.0 if METRICS[metric].unit == "%" else 1.0


def unit_of(metric: str) -> str:
    """The unit of a metric as part of a column name, empty for a plain ratio."""
    return METRICS[metric].unit.replace("%", "percent").replace("/", "_per_")


def metric_kind(metric: str) -> str:
    """The kind of model that a metric of `METRICS` is for."""
    return "causal" if metric.startswith(CAUSAL_MARKS) and metric != "kl_labels" else "encoder"


def ranking_metric(kind: str) -> tuple[str, Metric]:
    """The metric that ranks the tables of this kind of model."""
    return next((name, m) for name, m in METRICS.items() if m.ranks and metric_kind(name) == kind)


def family_of(record: Record) -> str:
    """The method's family; references and unknown ones count as `none`."""
    family = record.get("family")
    return family if isinstance(family, str) and family else "none"


def cell_of(record: Record) -> tuple[str, str, str, str, str]:
    """(model, task, order, method, seed) as text, in that order."""
    model, task, order, method, seed = (str(dig(record, "cell", part) or "") for part in CELL)
    return model, task, order, method, seed or "0"


RATIO = (("value", ""), ("low", "_low"), ("high", "_high"))
CONTROL = "control-"
CELL = ("model", "task", "order", "method", "seed")


@dataclass(frozen=True)
class Row:
    """One (model, task, order, method) with the finished records of its seeds, in the order of the seeds."""

    model: str
    task: str
    order: str
    method: str
    records: tuple[Record, ...]

    @property
    def family(self) -> str:
        return family_of(self.records[0])

    @property
    def seeds(self) -> tuple[str, ...]:
        return tuple(cell_of(r)[4] for r in self.records)

    def stat(self, *path: str) -> Stat:
        """The stat at `path`, pooled over the seeds."""
        return pool([read_stat(dig(r, *path)) for r in self.records])

    def metric(self, name: str) -> Stat:
        """A metric of `accuracy` in the unit in which it is shown."""
        return self.stat("accuracy", name).map(scale_of(name))

    def ratio(self, name: str) -> Stat:
        """The paired ratio of a metric to the unquantized model's, which perplexities have beside their difference."""
        found = [dig(r, "accuracy", name) for r in self.records]
        return pool([read_stat(f and {e: f.get("ratio" + e2) for e, e2 in RATIO}) for f in found])

    def number(self, *path: str) -> float | None:
        """The number at `path`, the mean of the seeds that have it."""
        return self.stat(*path).value

    def table(self, *path: str) -> dict[str, Any]:
        """The table at `path` of the first seed that has one."""
        found = (dig(r, *path) for r in self.records)
        return next((value for value in found if isinstance(value, dict)), {})

    def speedup(self, name: str) -> Stat:
        """How many times faster than the fp32 model: records hold the fp32 model's time over this one's."""
        return self.stat("speed", name)

    @property
    def noisy(self) -> bool:
        """Whether any seed was timed on a busy machine, or with the baseline far from itself."""
        return any(dig(r, "speed", "noisy") is True for r in self.records)

    def disturbed(self, path: str) -> bool:
        """Whether the ratio of this path may be the machine's doing: `noisy`, or it meets the baseline to itself."""
        return self.noisy or any(dig(r, "speed", f"{path}_ratio", "within_noise") is True for r in self.records)

    def items(self, metric: str) -> list[float]:
        """The values of a metric's items, means over the seeds; none unless every seed holds them."""
        held = [dig(r, "accuracy", metric, "items") for r in self.records]
        if not all(isinstance(values, list) and len(values) == len(held[0]) for values in held):
            return []
        return [fmean(values) for values in zip(*held, strict=True)]


class Run:
    """The records of one report; of several records of one cell the last finished one counts, else the last."""

    def __init__(self, records: Iterable[Record]) -> None:
        last: dict[tuple[str, ...], Record] = {}
        for record in records:
            cell = cell_of(record)
            if cell not in last or record.get("status") == "ok" or last[cell].get("status") != "ok":
                last[cell] = record
        self.records: list[Record] = [last[cell] for cell in sorted(last)]

    @cached_property
    def rows(self) -> list[Row]:
        """Finished rows, without those that serve only to judge a difference."""
        return [r for r in self._finished if not r.method.startswith(CONTROL)]

    @cached_property
    def controls(self) -> list[Row]:
        """Rows of copies of methods and of methods that stand beside a peer only."""
        return [r for r in self._finished if r.method.startswith(CONTROL)]

    @cached_property
    def _finished(self) -> list[Row]:
        groups: dict[tuple[str, str, str, str], list[Record]] = {}
        for record in self.records:
            if record.get("status") == "ok":
                groups.setdefault(cell_of(record)[:4], []).append(record)
        return [Row(*cell, tuple(group)) for cell, group in groups.items()]

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Kind of each model, from the metrics its records hold; a model without any has no kind."""
        votes: dict[str, Counter[str]] = {}
        for record in self.records:
            metrics = dig(record, "accuracy")
            names = [m for m in metrics if m in METRICS] if isinstance(metrics, dict) else []
            votes.setdefault(cell_of(record)[0], Counter()).update(metric_kind(m) for m in names)
        return {model: vote.most_common(1)[0][0] for model, vote in votes.items() if vote}

    @cached_property
    def texts(self) -> list[str]:
        """Texts on which causal models were judged, in the order of `METRICS`: "wiki", "reviews" ..."""
        held = {m for r in self.rows for m in METRICS if r.stat("accuracy", m).value is not None}
        return [m.removeprefix("perplexity_") for m in METRICS if m.startswith("perplexity_") and m in held]

    @property
    def text(self) -> str:
        """The text that ranks: that of the declared ranking metric, or the first there is."""
        declared = ranking_metric("causal")[0].removeprefix("kl_")
        return declared if declared in self.texts else next(iter(self.texts), declared)

    @property
    def adapted(self) -> str:
        """The text that adapters are judged on: reviews, or the first there is."""
        return "reviews" if "reviews" in self.texts else next(iter(self.texts), "reviews")

    def domain(self, name: str) -> str:
        """Whether the text of a causal metric is of the kind that calibrations and adapters are gathered on.

        Nothing is said where calibrations are of other texts than adapters are.
        """
        text = name.rpartition("_")[2]
        elsewhere = any(dig(record, "key_parts", "protocol", "calibration_corpora") for record in self.records)
        if metric_kind(name) != "causal" or len(self.texts) < 2 or elsewhere:
            return ""
        return ", in domain" if text == self.adapted else ", out of domain"

    def ranking(self, kind: str) -> tuple[str, Metric]:
        """The metric that ranks the tables of this kind of model in this run."""
        name = ranking_metric(kind)[0]
        return (f"kl_{self.text}", METRICS[f"kl_{self.text}"]) if kind == "causal" else (name, METRICS[name])

    def select(self, *orders: str, kind: str | None = None) -> list[Row]:
        """Rows of these orders, of models of this kind."""
        return [r for r in self.rows if r.order in orders and (kind is None or self.kinds.get(r.model) == kind)]

    def find(self, row: Row, *orders: str, method: str | None = None) -> Row | None:
        """The first row of the same model and method in `orders`, the same task before any other."""
        wanted = [r for r in self.rows if r.model == row.model and r.method == (method or row.method)]
        for order in orders:
            here = [r for r in wanted if r.order == order]
            same = [r for r in here if r.task == row.task]
            if same or here:
                return (same or here)[0]
        return None

    def first(self, row: Row, path: Sequence[str], *orders: str) -> Row:
        """`row` itself if it has something at `path`, else the first of `orders` on its task that does, else `row`."""
        for order in (row.order, *orders):
            found = self.find(row, order)
            if found is not None and found.task == row.task and found.stat(*path).value is not None:
                return found
        return row

    @property
    def quick(self) -> bool:
        return any(r.get("quick") for r in self.records)

    @property
    def dirty(self) -> bool:
        return any(dig(r, "provenance", "dirty") for r in self.records)

    def distinct(self, *path: str) -> list[str]:
        """The different values at `path`, as sorted text."""
        values = (dig(r, *path) for r in self.records)
        return sorted({str(v) for v in values if v is not None and not isinstance(v, dict | list)})
