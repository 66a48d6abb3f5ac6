"""`python -m bench.learning_rates`: is each learning rate of the protocol a good one, by texts that are judged nowhere?

The train pool is split once more, as pools are: training reads its first 70 %, the rate is judged on the last 30 %, and
no test text is read. Each rate of a way of adapting is tried at `FACTORS` times the protocol's, one seed, on the
unquantized model. What is compared is the validation loss a text (encoders) or a window (causal models), in nats.

Measured runs are appended to `learning-rates.jsonl` and not repeated under the same protocol; the table beside it is
written from them. About half an hour for all on two cores; `--only minilm/lora` chooses.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.adapt import adapt
from bench.baseline import CALIBRATION_FIELDS, SPEED_FIELDS, Setting
from bench.data import CORPORA
from bench.data.base import Corpus, Split, block_split
from bench.data.base import register as register_corpus
from bench.measure.stats import stat
from bench.models import load
from bench.protocol import Protocol
from bench.provenance import provenance
from bench.tasks import Outputs, Task
from bench.tasks.classification import Classification
from bench.tasks.language import Language
from quant import METHODS

__all__ = ["FACTORS", "WAYS", "main", "measure", "table", "task_of"]

FACTORS = (1.0, 0.5, 2.0, 0.25, 4.0)
SIZES = {"sentence_test": 512, "review_tokens": 24 * 96}  # more than the suite judges: close rates differ by little
SUFFIX = "-tuning"

# (model, way of adapting, the field of the protocol that is its rate)
WAYS = (
    ("minilm", "lora", "lora_lr"),
    ("minilm", "full", "full_lr"),
    ("minilm", "features", "head_lr"),
    ("minilm", "prompt", "prompt_lr"),
    ("smollm2", "lora", "lm_lora_lr"),
    ("smollm2", "full", "lm_full_lr"),
    ("smollm2", "features", "lm_head_lr"),
    ("smollm2", "prompt", "lm_prompt_lr"),
)

Run = dict[str, Any]


def pool(name: str) -> str:
    """The corpus whose texts are the train pool of the corpus `name`, split once more; it is entered in `CORPORA`."""
    if name + SUFFIX not in CORPORA:
        whole = CORPORA[name]

        def examples(split: Split) -> tuple[Any, ...]:
            return block_split(whole.examples("train"), split)

        recipe = f"{whole.recipe}; the train pool of it, split again"
        register_corpus(Corpus(name + SUFFIX, f"the train pool of {name}", examples, whole.content, recipe))
    return name + SUFFIX


def task_of(kind: str) -> Task:
    """The suite's task for models of `kind`, on the train pool alone."""
    if kind == "encoder":
        corpus = pool("rotten-tomatoes")
        return Classification(corpus, "sentiment, on the train pool", (corpus,), "sentence")
    corpus = pool("imdb")
    judged = (("reviews", corpus, "review_tokens"),)
    return Language(corpus, "next token, on the train pool", (corpus,), judged)


def losses(outputs: Outputs) -> list[float]:
    """The validation loss of every text or window, in nats."""
    if "logits" in outputs:
        each = nn.functional.cross_entropy(outputs["logits"].double(), outputs["labels"], reduction="none")
        return [round(x, 6) for x in each.tolist()]
    return [round(x, 6) for x in outputs["reviews.nll"].tolist()]


def at_rate(protocol: Protocol, field: str, factor: float) -> Protocol:
    """The protocol with the rate `field` at `factor` times its value, judged on more texts."""
    changed: dict[str, Any] = {field: getattr(protocol, field) * factor, **SIZES}
    return dataclasses.replace(protocol, **changed)


def seen_by(field: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the figure of a way of adapting with the rate `field` may depend on: not the rates of others, for one.

    A setting that `settings`, an older protocol's, do not have is taken as it is by default.
    """
    known = {**Protocol().settings(), **settings}
    unread = {name for name in known if name.endswith("_lr")} - {field} | {*SPEED_FIELDS, *CALIBRATION_FIELDS}
    return {name: value for name, value in known.items() if name not in unread}


def current(runs: Sequence[Run], model: str, order: str, field: str) -> list[Run]:
    """The runs of a way of adapting that differ from the protocol of now in the rate alone, by rate."""
    now = seen_by(field, at_rate(Protocol(), field, 1.0).settings())
    mine = [r for r in runs if (r["model"], r["order"]) == (model, order)]
    found = [r for r in mine if seen_by(field, r["protocol"]) == now | {field: r["rate"]}]
    return sorted(found, key=lambda r: r["rate"])


def measure(model: str, order: str, field: str, factor: float, protocol: Protocol) -> Run:
    """One training at `factor` times the protocol's rate, and its validation losses."""
    tried = at_rate(protocol, field, factor)
    rate = getattr(tried, field)
    loaded = load(model)
    task = task_of(loaded.kind)
    setting = Setting(loaded, task, tried, seed=0)
    origin = provenance("cpu", torch.get_num_threads())
    del origin["argv"]
    run = {"model": model, "order": order, "field": field, "factor": factor, "rate": rate}
    run |= {"protocol": tried.settings(), "provenance": origin}
    try:
        adapted = adapt(order, setting, METHODS["fp32"])
    except ArithmeticError as error:  # it diverged, which is an answer
        return run | {"items": None, "reason": str(error)}
    return run | {"items": losses(task.outputs(adapted.module, loaded, tried, None))}


def told(run: Run, best: Run) -> str:
    """What a rate's difference to the best one is: `best`, `≈` within the paired 95 % interval, or worse."""
    if run is best:
        return "best"
    if run["items"] is None:
        return "diverged"
    change = stat([a - b for a, b in zip(run["items"], best["items"], strict=True)], statistic="mean")
    mark = " ≈" if change["low"] <= 0 <= change["high"] else ""
    return f"{change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]{mark}"


def table(runs: Sequence[Run]) -> str:
    """Markdown: validation loss at every rate, its difference to the best rate, and which is the protocol's."""
    head = ("model", "way", "rate", "the protocol's", "validation loss (nats)", "n", "difference to the best rate")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for model, order, field in WAYS:
        tried = current(runs, model, order, field)
        ended = [r for r in tried if r["items"] is not None]
        if not ended:
            continue
        best = min(ended, key=lambda r: sum(r["items"]))
        for r in tried:
            n = "" if r["items"] is None else len(r["items"])
            loss = "" if r["items"] is None else f"{sum(r['items']) / len(r['items']):.4f}"
            mine = "yes" if r["rate"] == getattr(Protocol(), field) else ""
            lines.append(f"| {model} | {order} | {r['rate']:.3g} | {mine} | {loss} | {n} | {told(r, best)} |")
    return "\n".join(lines)


def page(runs: Sequence[Run]) -> str:
    said = (
        "Learning rates tried on a split of the train pool: its first 70 % trained on, its last 30 % judged; no "
        "test text was read. Unquantized models. `≈`: the paired 95 % interval of the difference over these texts "
        "contains 0; it does not hold the chance of a training, of which there is one for each rate."
    )
    return f"# Learning rates\n\n{said}\n\n{table(runs)}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing and write the table; 2 for a pattern that matches nothing."""
    parser = argparse.ArgumentParser("bench.learning_rates", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/local/learning-rates"), help="a folder")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="such as 'minilm/*' or '*/lora'")
    parser.add_argument("--factors", default="", metavar="LIST", help="such as 0.5,1,2")
    options = parser.parse_args(argv)
    chosen = [way for way in WAYS if fnmatchcase(f"{way[0]}/{way[1]}", options.only)]
    if not chosen:
        print(
            f"error: --only {options.only!r} matches none of {', '.join(f'{m}/{o}' for m, o, _ in WAYS)}",
            file=sys.stderr,
        )
        return 2
    factors = [float(x) for x in options.factors.split(",")] if options.factors else FACTORS
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "learning-rates.jsonl"
    runs = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    protocol = Protocol()
    for model, order, field in chosen:
        for factor in factors:
            tried = seen_by(field, at_rate(protocol, field, factor).settings())
            if any((r["model"], r["order"], seen_by(field, r["protocol"])) == (model, order, tried) for r in runs):
                continue
            run = measure(model, order, field, factor, protocol)
            runs.append(run)
            with open(file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(run) + "\n")
            print(f"{model}/{order} {run['rate']:.3g}: {_mean(run)}", flush=True)
    (options.out / "learning-rates.md").write_text(page(runs), encoding="utf-8")
    return 0


def _mean(run: Run) -> str:
    return "diverged" if run["items"] is None else f"{sum(run['items']) / len(run['items']):.4f}"


if __name__ == "__main__":
    sys.exit(main())
