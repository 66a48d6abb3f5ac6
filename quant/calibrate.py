"""What calibrated methods know about a model: statistics of the inputs and of the gradients of its linear layers.

The texts go through the model as it is, once for every run of layers whose statistics fit in `budget` bytes; the
forward pass stops behind the last layer of the run. With a folder each run is written before the next begins and is
read back a layer at a time, so memory stays bounded for models of any size. Layers that read the same tensor (query,
key and value of an attention block) share one second moment.
Sources: second moments: Frantar et al. 2022 (GPTQ), arXiv 2210.17323; magnitudes: Lin et al. 2023 (AWQ), arXiv
2306.00978; diagonal Fisher information: Kim et al. 2023 (SqueezeLLM), arXiv 2306.07629.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quant.core import STATISTICS, Calibration
from quant.modules import DEFAULT_SKIP, linears, share

__all__ = ["StoredCalibration", "calibrate"]

T = TypeVar("T")
INDEX = "calibration.json"
INPUTS = ("second_moment", "magnitude")


class _EnoughError(Exception):
    """Raised behind the last layer of a run, to end the forward pass."""


@dataclass(eq=False)
class _Sums:
    """Sums over the rows that one tensor brought to the layers `names`."""

    names: list[str]
    k: int
    n_samples: int = 0
    second_moment: Tensor | None = None
    magnitude: Tensor | None = None

    def add(self, x: Tensor, needs: frozenset[str]) -> None:
        """Add the rows of `x` [m, k]."""
        x = x.float()
        self.n_samples += len(x)
        if "second_moment" in needs:
            if self.second_moment is None:
                self.second_moment = x.new_zeros(self.k, self.k)
            self.second_moment.addmm_(x.T, x)
        if "magnitude" in needs:
            total = x.abs().sum(0)
            self.magnitude = total if self.magnitude is None else self.magnitude + total

    def means(self) -> dict[str, Tensor]:
        """The statistics by name."""
        named = {name: getattr(self, name) for name in INPUTS}
        return {name: (t / max(1, self.n_samples)).cpu() for name, t in named.items() if t is not None}


class StoredCalibration(Mapping[str, Calibration]):
    """The calibration that `calibrate` wrote to a folder; each look-up reads one layer's files."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        try:
            self.index: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no index of a calibration ({error}); gather it again") from None

    def __getitem__(self, name: str) -> Calibration:
        entry = self.index[name]
        tensors: dict[str, Tensor] = {}
        for file in entry["files"]:
            tensors |= load_file(self.folder / file)
        return Calibration(**tensors, n_samples=entry["n_samples"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)


@dataclass(eq=False)
class _Store:
    """Where finished statistics go: a folder, or this process' memory."""

    folder: Path | None
    index: dict[str, dict[str, Any]] = field(default_factory=dict)
    held: dict[str, Calibration] = field(default_factory=dict)
    files: int = 0

    def put(self, names: Iterable[str], tensors: dict[str, Tensor], n_samples: int) -> None:
        """Keep what the layers `names` share."""
        names = list(names)
        file = f"{self.files}.safetensors"
        self.files += 1
        if self.folder is not None:
            save_file({name: t.contiguous() for name, t in tensors.items()}, self.folder / file)
        for name in names:
            entry = self.index.setdefault(name, {"files": [], "n_samples": 0})
            entry["files"].append(file)
            entry["n_samples"] = max(entry["n_samples"], n_samples)
            if self.folder is None:
                old = self.held.get(name, Calibration())
                known = {s: getattr(old, s) for s in STATISTICS} | tensors
                self.held[name] = Calibration(**known, n_samples=entry["n_samples"])

    def done(self) -> Mapping[str, Calibration]:
        """The calibration; the index is written last, so a folder that has one is whole."""
        if self.folder is None:
            return self.held
        part = self.folder / f"{INDEX}.part"
        part.write_text(json.dumps(self.index, indent=1), encoding="utf-8")
        os.replace(part, self.folder / INDEX)
        return StoredCalibration(self.folder)


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    needs: Iterable[str] = INPUTS,
    *,
    forward: Callable[[nn.Module, Any], object] = lambda model, batch: model(batch),
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    mask: Callable[[Any], Tensor | None] = lambda batch: None,
    skip: tuple[str, ...] = DEFAULT_SKIP,
    folder: str | Path | None = None,
    budget: int = 1 << 30,
) -> Mapping[str, Calibration]:
    """The calibration of every linear layer that `quant.linears(model, skip)` names, over all `batches`.

    `needs` are names of `STATISTICS`. `forward` runs the model on a batch; `mask` gives the [m, t] that is true (or 1)
    for tokens that count, by default all. "fisher" needs `loss` (a mean in any unit) and squares the gradient of each
    batch: one text a batch is its definition. `batches` are gone through several times. Statistics beyond `budget`
    bytes are gathered in several passes; with `folder` (made if absent) no more than that is ever held of
    second moments, or of sums of squared gradients; magnitudes and the gradients of one batch come on top.

    Raises ValueError for an unknown statistic, no batch, no layer, or "fisher" without a loss.
    """
    wanted = frozenset(needs)
    if unknown := wanted - set(STATISTICS):
        raise ValueError(f"unknown statistics {sorted(unknown)}; known: {', '.join(STATISTICS)}")
    if "fisher" in wanted and loss is None:
        raise ValueError("the statistic 'fisher' needs loss=..., a function of the model and a batch")
    batches = list(batches)
    if not batches:
        raise ValueError("there is no batch to calibrate with")
    copied = share(model).eval().requires_grad_(False)
    layers = linears(copied, skip)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer to calibrate outside skip={skip}")
    place = None if folder is None else Path(folder)
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    store = _Store(place)
    if inputs := wanted & set(INPUTS):
        groups = _groups(layers, lambda: forward(copied, batches[0]))
        for run in _runs(groups, lambda g: 4 * g.k * (g.k if "second_moment" in inputs else 1), budget):
            _fill(run, layers, batches, lambda batch: forward(copied, batch), mask, frozenset(inputs))
            for group in run:
                store.put(group.names, group.means(), group.n_samples)
                group.second_moment = group.magnitude = None
    if "fisher" in wanted and loss is not None:
        for names in _runs(list(layers), lambda name: 4 * layers[name].weight.numel(), budget):
            for name, fisher in _fisher(copied, {n: layers[n] for n in names}, batches, loss).items():
                store.put([name], {"fisher": fisher}, 0)
    return store.done()


def _runs(items: list[T], size: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Runs of consecutive `items` whose sizes sum to no more than `budget`; a larger one stands alone."""
    run: list[T] = []
    used = 0
    for item in items:
        if run and used + size(item) > budget:
            yield run
            run, used = [], 0
        run.append(item)
        used += size(item)
    if run:
        yield run


def _hooked(layers: Mapping[str, nn.Linear], hook: Callable[[str, Tensor], None], run: Callable[[], object]) -> None:
    """Call `run`, and `hook(name, x)` before each of `layers` in it; `_EnoughError` ends it."""
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: hook(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad(), suppress(_EnoughError):
            run()
    finally:
        for handle in handles:
            handle.remove()


def _groups(layers: Mapping[str, nn.Linear], run: Callable[[], object]) -> list[_Sums]:
    """The layers in the order in which `run` calls them, those that read the same tensor together."""
    out: list[_Sums] = []
    last: list[Tensor] = []

    def see(name: str, x: Tensor) -> None:
        if any(name in group.names for group in out):
            return
        if last and last[0] is x:
            out[-1].names.append(name)
        else:
            out.append(_Sums([name], x.shape[-1]))
        last[:] = [x]

    _hooked(layers, see, run)
    seen = {name for group in out for name in group.names}
    if left := [name for name in layers if name not in seen]:
        raise ValueError(f"the model never calls its layers {', '.join(left[:4])}: name them in skip")
    return out


def _fill(
    run: list[_Sums],
    layers: Mapping[str, nn.Linear],
    batches: list[Any],
    forward: Callable[[Any], object],
    mask: Callable[[Any], Tensor | None],
    needs: frozenset[str],
) -> None:
    """Sum what `batches` bring to the first layer of each group of `run`."""
    leaders = {group.names[0]: group for group in run}
    final = run[-1].names[0]
    for batch in batches:
        counted = mask(batch)

        def add(name: str, x: Tensor, counted: Tensor | None = counted) -> None:
            fits = counted is not None and counted.shape == x.shape[:-1]
            rows = x[counted.bool()] if fits and counted is not None else x.reshape(-1, x.shape[-1])
            leaders[name].add(rows, needs)
            if name == final:
                raise _EnoughError

        _hooked({name: layers[name] for name in leaders}, add, lambda batch=batch: forward(batch))  # type: ignore[misc]


def _fisher(
    model: nn.Module, layers: Mapping[str, nn.Linear], batches: list[Any], loss: Callable[[nn.Module, Any], Tensor]
) -> dict[str, Tensor]:
    """The mean over `batches` of the squared gradient of each weight, bfloat16: three digits of a weighting suffice."""
    sums = {name: torch.zeros_like(layer.weight, dtype=torch.float32) for name, layer in layers.items()}
    weights = {name: layer.weight.requires_grad_() for name, layer in layers.items()}
    try:
        for batch in batches:
            found = torch.autograd.grad(loss(model, batch), list(weights.values()))
            for total, grad in zip(sums.values(), found, strict=True):
                total.addcmul_(grad.float(), grad.float())
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    return {name: (total / len(batches)).to(torch.bfloat16).cpu() for name, total in sums.items()}
