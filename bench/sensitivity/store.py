"""The records of `sensitivity.jsonl`: one line a matrix, written as it is measured, so that a run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bench.baseline import Setting, setting_of
from bench.calibration import calibration_of
from bench.key import file_hashes, key_of, source_hash, sources_of
from bench.measure.stats import stat
from bench.models import fingerprint
from bench.protocol import Protocol
from bench.provenance import provenance, versions
from bench.reports.lines import mend, read_lines
from bench.reports.sensitivity import FILE
from bench.sensitivity import measure
from bench.tasks.language import Language
from quant import METHODS, linears

__all__ = ["run"]

TASK, TEXT = "reviews", "wiki"
WINDOWS = 4


def run(out: Path, model: str, methods: Sequence[str], every: int, told: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure every matrix of every `every`-th block of `model` under each of `methods`; what is on record is kept."""
    setting = setting_of(model, TASK, Protocol(), 0)
    assert isinstance(setting.task, Language)
    module = setting.model.module
    layers = linears(module, setting.protocol.skip)
    chosen = measure.spread(list(layers), every)
    known = {record["key"]: record for record in read_lines(out / FILE)}
    wanted = [(method, name, _key(method, model, name)) for method in methods for name in chosen]
    if all(key in known for _, _, key in wanted):
        return [known[key] for _, _, key in wanted]
    windows = setting.task.windows(setting.model, setting.protocol, TEXT)
    text = [windows[i] for i in range(min(WINDOWS, len(windows)))]
    base = measure.log_probs(module, text)
    origin = provenance("cpu", torch.get_num_threads())
    mend(out / FILE)
    for method in methods:
        todo = [(name, key) for m, name, key in wanted if m == method and key not in known]
        fitted = _fitted(setting, method) if todo else {}
        for name, key in todo:
            quantizer, calibration = fitted[name]
            weight = layers[name].weight.detach()
            stored = quantizer.quantize(weight, calibration[name] if calibration else None)
            decoded = stored.decode()
            found = measure.divergences(module, layers, name, decoded, text, base)
            record = {
                "schema": 1,
                "key": key,
                "model": model,
                "method": method,
                "family": quantizer.family,
                "layer": name,
                "bits_per_weight": stored.bits_per_weight,
                "relative_error": float((decoded - weight).norm() / weight.norm()),
                "kl": stat(found, statistic="mean"),
                "items": found,
                "protocol": f"KL(unquantized || one matrix quantized), nats/token/{TEXT}, {len(text)} x {len(text[0])}",
                "settings": METHODS[method].settings(),
                "provenance": origin,
            }
            with (out / FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
            known[key] = record
            told(f"{method}: {name}, KL {record['kl']['value']:.3g}")
    return [known[key] for _, _, key in wanted]


def _fitted(setting: Setting, method: str) -> dict[str, tuple[Any, Any]]:
    """The quantizer of each layer as it is in the whole model, and the calibration."""
    quantizer = METHODS[method]
    layers = linears(setting.model.module, setting.protocol.skip)
    known = calibration_of(setting, quantizer)
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    return {name: (q, known) for name, q in quantizer.for_layers(weights, known).items()}


def _key(method: str, model: str, layer: str) -> str:
    own = Path(measure.__file__).read_text(encoding="utf-8") + Path(__file__).read_text(encoding="utf-8")
    files = {p: h for p, h in sources_of(METHODS[method], file_hashes()).items() if not p.startswith("bench/")}
    parts = [method, METHODS[method].settings(), layer, source_hash(files), own, _model(model), versions()]
    return key_of({"parts": parts})


@lru_cache
def _model(spec: str) -> str:
    return fingerprint(spec)
