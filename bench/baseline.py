"""What every order of one (model, task, seed) shares: the training run, and the baseline that all are compared with.

The baseline is the LoRA on the unquantized weights. Its adapter and its outputs are computed once and kept in the
cache folder, so that cells of any process pair with the very same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from torch import Tensor, nn

from bench.cache import Entry, cached
from bench.data import Batch
from bench.measure.training import train_step_memory
from bench.models import Model, fingerprint, load
from bench.models.fingerprint import digest_of
from bench.protocol import Protocol
from bench.tasks import Outputs, Rates, Task, find
from bench.tasks.classification import Classification
from bench.tasks.heads import fit_logistic
from bench.train import Schedule, optimizer_of, train

__all__ = ["Setting", "baseline_adapter", "baseline_outputs", "fit", "setting_of", "with_logistic_head"]

SPEED_FIELDS = ("speed_batch", "prefill_tokens", "train_batch", "train_tokens", "speed_rounds", "speed_seconds")
CALIBRATION_FIELDS = (
    "calibration_texts",
    "calibration_windows",
    "calibration_tokens",
    "calibration_gradient_tokens",
    "calibration_corpora",
)
ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "bench/adapted.py",
    "bench/baseline.py",
    "bench/judge.py",
    "bench/train.py",
    "bench/models/*.py",
    "bench/data/*.py",
    "bench/tasks/*.py",
    "bench/measure/t*.py",
    "quant/lora.py",
    "quant/lora_config.py",
    "quant/modules.py",
)


@dataclass(frozen=True, eq=False)
class Setting:
    """One model, one task, one seed, one protocol; all runs on the device that the model is on."""

    model: Model
    task: Task
    protocol: Protocol
    seed: int

    @property
    def device(self) -> torch.device:
        return next(self.model.module.parameters()).device

    @property
    def rates(self) -> Rates:
        return self.task.rates(self.protocol)

    @property
    def schedule_steps(self) -> int:
        return self.task.steps(self.protocol)

    @cached_property
    def parts(self) -> dict[str, Any]:
        """All that decides the baseline's adapter and outputs, as JSON values."""
        settings = {k: v for k, v in self.protocol.settings().items() if k not in SPEED_FIELDS + CALIBRATION_FIELDS}
        return {
            "model": fingerprint(self.model.spec),
            "task": self.task.name,
            "corpora": self.task.fingerprints(),
            "protocol": settings,
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "processor": _processor(self.device),
            "versions": [torch.__version__, transformers.__version__, safetensors.__version__],
            "sources": _sources(),
        }


@lru_cache(maxsize=1)
def _sources() -> str:
    return digest_of(p for pattern in SOURCES for p in ROOT.glob(pattern))


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.version.cuda}, {torch.cuda.get_device_name(device)}"
    return torch.backends.cpu.get_cpu_capability()


@lru_cache(maxsize=1)
def _model(spec: str, device: str) -> Model:
    loaded = load(spec)
    return replace(loaded, module=loaded.module.to(device))


@lru_cache(maxsize=4)
def setting_of(model: str, task: str, protocol: Protocol, seed: int, device: str = "cpu") -> Setting:
    """The setting of these names, its model on `device`; the model of the last one stays loaded.

    Raises ValueError when model and task do not fit.
    """
    found = find(task)
    loaded = _model(model, device)
    found.check(loaded)
    return Setting(loaded, found, protocol, seed)


def with_logistic_head(setting: Setting) -> nn.Module:
    """The model before any adapter; the head of an encoder is the logistic regression on its features."""
    module = setting.task.wrap(setting.model, setting.seed)
    if isinstance(setting.task, Classification):
        loader, _ = setting.task.train_texts(setting.model, setting.protocol).by_length(setting.protocol.batch)
        with torch.inference_mode():
            there = [b.to(setting.device) for b in loader]
            rows = [(module.embed(b.input_ids, b.attention_mask), b.labels) for b in there]  # type: ignore[operator]
        features, labels = (torch.cat(column).cpu().clone() for column in zip(*rows, strict=True))
        module.head = fit_logistic(features, labels).to(setting.device)
    return module


def fit(
    setting: Setting,
    module: nn.Module,
    lr: float,
    measured: nn.Module | None = None,
    loss: Callable[[nn.Module, Batch], Tensor] | None = None,
    shares: Mapping[nn.Parameter, float] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train `module` in place on the task; the record's `training` and `training_memory` groups.

    `loss` is what is trained on (default: the task's); `shares` are the parts of `lr` that parameters train at, all of
    it by default.

    The memory is that of one step of `measured` (default: `module`) on the largest batch of a pass, before the
    training. `measured` may share parameters with `module`: they are put back.
    """
    measured = module if measured is None else measured
    task, p = setting.task, setting.protocol
    schedule = Schedule(setting.schedule_steps, lr, p.weight_decay, p.warmup)
    parameters = [q for q in measured.parameters() if q.requires_grad]
    largest = max(task.batches(setting.model, p, setting.seed), key=lambda b: b.input_ids.numel()).to(setting.device)
    measured.train()
    memory = train_step_memory(
        measured,
        lambda: task.loss(measured, largest),
        parameters,
        make_optimizer=lambda ps: optimizer_of(ps, schedule, shares),
    )
    memory |= {"batch": largest.input_ids.shape[0], "tokens": largest.input_ids.numel()}
    batches = task.batches(setting.model, p, setting.seed)
    trained = train(module, loss or task.loss, batches, schedule, setting.seed, shares)
    measured.eval()
    module.eval()
    return trained.record(), memory


def baseline_adapter(setting: Setting, make: Callable[[], Entry]) -> Entry:
    """The trained tensors of the baseline by name, and {"training", "training_memory"}; trained once by `make`."""
    return _remembered("adapters", setting, make)


def baseline_outputs(setting: Setting, make: Callable[[], Outputs]) -> Outputs:
    """The baseline's outputs, kept ones included; computed once by `make`."""
    return _remembered("baselines", setting, lambda: (dict(make()), {}))[0]


_LAST: dict[str, tuple[Setting, Entry]] = {}


def _remembered(kind: str, setting: Setting, make: Callable[[], Entry]) -> Entry:
    """The entry of the cache folder, kept in this process for the setting that was used last."""
    known = _LAST.get(kind)
    if known is None or known[0] is not setting:
        known = (setting, cached(kind, setting.parts, make))
        _LAST[kind] = known
    return known[1]
