"""What there is to choose from: methods, models, tasks, orders, experiments; the one place that asks the registries."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from bench.errors import UsageError
from bench.experiment import Names, builtin
from bench.schema import ORDERS, REFERENCES

__all__ = ["KINDS", "data_fingerprint", "known_names", "listing", "model_fingerprint", "model_kind"]

KINDS = ("methods", "models", "tasks", "orders", "experiments")
FOLDER = "A model folder is what save_pretrained writes: config.json, *.safetensors and the tokenizer's files"


def known_names() -> Names:
    """The names that an experiment may use."""
    from bench.models import SOURCES
    from bench.tasks import TASKS
    from quant import METHODS
    from quant.peers import CONTROLS, PEERS

    models = tuple(f"{source.name}:" if source.takes else source.name for source in SOURCES.values())
    return Names((*METHODS, *PEERS, *CONTROLS), models, {name: task.kind for name, task in TASKS.items()})


@lru_cache(maxsize=64)
def model_fingerprint(spec: str) -> str:
    """The fingerprint of a model's files; UsageError with the remedy when it cannot be had."""
    from bench.models import ModelError, fingerprint

    try:
        return fingerprint(spec)
    except (ModelError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        known = text if isinstance(error, ModelError) else f"model {spec!r}: {text}"
        raise UsageError(f"{known}. {FOLDER}" if spec.startswith("path:") else known) from None


@lru_cache(maxsize=64)
def data_fingerprint(task: str) -> str:
    """The fingerprints of the texts that a task reads, in one line; UsageError when they cannot be had."""
    from bench.models import ModelError
    from bench.tasks import TASKS

    try:
        return " ".join(f"{name}={digest[:16]}" for name, digest in TASKS[task].fingerprints().items())
    except (ModelError, OSError, ValueError) as error:
        raise UsageError(f"task {task!r}: {error}") from None


@lru_cache(maxsize=64)
def model_kind(spec: str) -> str:
    """ "encoder" or "causal", read from the configuration of a "path:DIR" or "hf:NAME" checkpoint.

    UsageError with the remedy when its files are damaged or no tokenizer is among them: known before anything runs.
    """
    from bench.models.folder import kind_of, offline

    source, _, argument = spec.partition(":")
    if source not in ("path", "hf") or not argument:
        raise UsageError(f"model {spec!r}: write path:DIR for a folder or hf:NAME for a model of the hub")
    if source == "path":
        model_fingerprint(spec)
    from transformers import AutoConfig, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": source == "path", "trust_remote_code": False}
    reads = "configuration"
    with offline(source == "path"):
        try:
            config = AutoConfig.from_pretrained(argument, **options)
            reads = "tokenizer"
            tokenizer = AutoTokenizer.from_pretrained(argument, **options)
        except Exception as error:  # tokenizers and the hub client raise many unrelated kinds
            said = " ".join(str(error).split())[:300]
            raise UsageError(f"model {spec!r}: its {reads} cannot be read from {argument}: {said}. {FOLDER}") from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one when files are missing
        raise UsageError(f"model {spec!r}: {argument} holds no tokenizer. {FOLDER}")
    return kind_of(config)


def listing(kind: str) -> list[dict[str, Any]]:
    """Rows of `bench list KIND`; the first column is the name."""
    if kind == "orders":
        return [{"order": o, "reference": o in REFERENCES, "idea": idea} for o, idea in ORDERS.items()]
    if kind == "experiments":
        return [{"experiment": name, "idea": _first_comment(path)} for name, path in builtin().items()]
    if kind == "models":
        from bench.models import SOURCES

        return [{"model": f"{s.name}:{s.takes}" if s.takes else s.name, "idea": s.idea} for s in SOURCES.values()]
    if kind == "tasks":
        from bench.tasks import TASKS

        return [{"task": t.name, "kind": t.kind, "texts": ", ".join(t.corpora), "idea": t.idea} for t in TASKS.values()]
    return [_method_row(name) for name in known_names().methods]


def _method_row(name: str) -> dict[str, Any]:
    """Bits are those stored for a 256 x 256 matrix, counted."""
    import torch

    from quant import Calibration
    from quant.peers import find_method

    method = find_method(name)
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    known = {"": Calibration.neutral(*weight.shape)}
    bits = round(method.for_layers({"": weight}, known)[""].quantize(weight, known[""]).bits_per_weight, 3)
    return {
        "method": name,
        "family": method.family,
        "bits": bits,
        "calibration": ", ".join(sorted(method.needs)),
        "idea": method.idea,
        "settings": method.settings(),
        "source": method.source,
    }


def _first_comment(path: Any) -> str:
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""
