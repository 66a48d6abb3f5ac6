"""What a model says of the held-out texts of its setting, beside the LoRA on the unquantized weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bench.adapted import with_baseline
from bench.baseline import Setting, baseline_outputs
from bench.tasks import Outputs
from bench.tasks.classification import Classification

__all__ = ["judged", "said", "without_items"]


def judged(
    setting: Setting,
    module: nn.Module,
    kin: bool,
    embedder: nn.Module | None = None,
    outputs: Outputs | None = None,
) -> dict[str, Any]:
    """The metrics of `module`; `kin`: it stands in for the baseline, so a distance to it has a meaning.

    Of `embedder`, where given and judged by the task, it is the embeddings that are compared with the un-tuned model's.
    `outputs` are what `said` gave for this module, if it was asked already.
    """
    base = _base(setting)
    task, model, p = setting.task, setting.model, setting.protocol
    found: dict[str, Tensor] = dict(said(setting, module, kin) if outputs is None else outputs)
    if embedder is not None and _judges_embeddings(setting):
        found["embeddings"] = task.embeddings(embedder, model, p)  # type: ignore[attr-defined]
    return task.figures(found, base, p, kin)


def said(setting: Setting, module: nn.Module, kin: bool, keep: bool = False) -> Outputs:
    """The outputs of `module` beside the baseline's if `kin`; with `keep`, what others need to be compared with it."""
    return setting.task.outputs(module, setting.model, setting.protocol, _base(setting) if kin else None, keep=keep)


def _base(setting: Setting) -> Outputs:
    return baseline_outputs(setting, lambda: _baseline(setting))


def _baseline(setting: Setting) -> Outputs:
    """Outputs of the LoRA on the unquantized weights, and the embeddings of the un-tuned model."""
    task, model, p = setting.task, setting.model, setting.protocol
    module, _ = with_baseline(task.wrap(model, setting.seed), setting)
    outputs = dict(task.outputs(module, model, p, None, keep=True))
    if _judges_embeddings(setting):
        outputs["embeddings"] = task.embeddings(task.wrap(model, setting.seed), model, p)  # type: ignore[attr-defined]
    return outputs


def _judges_embeddings(setting: Setting) -> bool:
    return isinstance(setting.task, Classification) and setting.task.cosine


def without_items(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """`metrics` without the values of single items, which only rankings need."""
    return {name: {k: v for k, v in figure.items() if k != "items"} for name, figure in metrics.items()}
