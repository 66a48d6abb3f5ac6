"""The calibration of a setting's model: statistics over texts of its task's train pool, never the held-out ones.

It is gathered on the model before any adapter (an encoder's head is the logistic regression on its features), once for
a model, a task and its sizes, and kept in the cache folder under a hash of all that decides it. A model whose adapter
was merged is calibrated by itself.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from bench.baseline import CALIBRATION_FIELDS, ROOT, Setting, with_logistic_head
from bench.cache import entry_path
from bench.data import Batch, evenly
from bench.models.fingerprint import digest_of
from quant import Calibration, Quantizer
from quant.calibrate import INPUTS, StoredCalibration, calibrate

__all__ = ["calibration_of"]

SOURCES = ("quant/calibrate.py", "bench/calibration.py")


class Both(Mapping[str, Calibration]):
    """Several calibrations of the same layers, each with other statistics, seen as one; read a layer at a time."""

    def __init__(self, parts: list[Mapping[str, Calibration]]) -> None:
        self.parts = parts

    def __getitem__(self, name: str) -> Calibration:
        found = [part[name] for part in self.parts]
        known: dict[str, Any] = {}
        for one in found:
            known |= {k: v for k, v in vars(one).items() if v is not None and k != "n_samples"}
        return Calibration(**known, n_samples=max(one.n_samples for one in found))

    def __iter__(self) -> Any:
        return iter(self.parts[0])

    def __len__(self) -> int:
        return len(self.parts[0])


def calibration_of(
    setting: Setting, quantizer: Quantizer, merged: nn.Module | None = None, also: frozenset[str] = frozenset()
) -> Mapping[str, Calibration] | None:
    """What `quantizer` needs to know of the layers of `setting`'s model, or of `merged`; None if it needs nothing.

    `also` names further statistics that are wanted.

    Inputs and gradients are gathered apart, so methods that need one do not wait for the other.
    """
    wanted = quantizer.needs | also
    kinds = [kind for kind in (INPUTS, ("fisher",)) if wanted & set(kind)]
    if not kinds:
        return None
    return Both([_gathered(setting, kind, merged) for kind in kinds])


def _gathered(setting: Setting, needs: tuple[str, ...], merged: nn.Module | None) -> Mapping[str, Calibration]:
    task, p = setting.task, setting.protocol
    parts = setting.parts | {
        "needs": list(needs),
        "merged": merged is not None,
        "sizes": [getattr(p, name) for name in CALIBRATION_FIELDS],
        "skip": list(p.skip),
        "calibration_sources": _sources(),
    }
    path = entry_path("calibration", parts)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        module = merged if merged is not None else with_logistic_head(setting)
        batches = [b.to(setting.device) for b in _batches(setting, needs == ("fisher",))]
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        try:
            calibrate(
                module,
                batches,
                needs,
                forward=task.forward,
                loss=task.loss,
                mask=lambda batch: batch.attention_mask,
                skip=p.skip,
                folder=scratch,
            )
            _arrive(scratch, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return StoredCalibration(path)


def _batches(setting: Setting, one_by_one: bool) -> list[Batch]:
    """The texts in batches; or some of them one by one, at even spacing."""
    task, p = setting.task, setting.protocol
    batches = list(task.calibration_batches(setting.model, p, 1 if one_by_one else p.batch))
    if not one_by_one:
        return batches
    mean = sum(b.n_tokens for b in batches) / len(batches)
    return list(evenly(batches, max(1, min(len(batches), round(p.calibration_gradient_tokens / mean)))))


def _arrive(scratch: Path, path: Path) -> None:
    """Rename, unless another process has just made the same."""
    try:
        scratch.rename(path)
    except OSError:
        if not path.exists():
            raise


@lru_cache(maxsize=1)
def _sources() -> str:
    return digest_of(ROOT / source for source in SOURCES)
