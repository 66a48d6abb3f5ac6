"""Which bytes are alive while a model runs, by what they are for.

A `TorchDispatchMode` sees every tensor that goes into or comes out of an operation, in the forward pass, the backward
pass and the optimizer, custom autograd functions included. It counts untyped storages, not tensors, so views and tied
weights count once; a finalizer on the storage subtracts it when it is freed. (The same technique as torch's
`torch.distributed._tools.mem_tracker`.) What an operation allocates and frees inside itself is never a tensor, and
is not seen.

    weights      frozen parameters, buffers and every other tensor a module holds: packed codes, scales, dense caches
    adapter      parameters that are trained
    gradients    storages that are, or become, the .grad of a parameter
    optimizer    storages that are, or become, optimizer state
    activations  all the rest: inputs, tensors saved for the backward pass, temporaries

A storage keeps one role for its life: the highest total is found first and its bytes are named by what they turn out
to be, so a gradient counts as one from the moment it is computed, before autograd hands it to the parameter.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quant.linear import QuantizedLinear

__all__ = ["CATEGORIES", "MemoryTracker", "tensors_in"]

CATEGORIES = ("weights", "adapter", "gradients", "optimizer", "activations")
NEVER = 1 << 62


class _Life:
    """A storage from its birth to its death, in ticks (one an event), with its category once that is known."""

    __slots__ = ("born", "category", "derived", "died", "nbytes")

    def __init__(self, nbytes: int, born: int, category: str = "activations") -> None:
        self.nbytes = nbytes
        self.born = born
        self.died = NEVER
        self.category = category
        self.derived = False


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`with MemoryTracker() as tracker:` then `tracker.peak()`; register models and optimizers with `watch_*` before.

    `device` (a device type, such as "cuda") limits the count to storages there; tensors on "meta" have no bytes.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.total = 0
        self.peak_bytes = 0
        self._tick = self._peak_tick = 0
        self._lives: list[_Life] = []
        self._alive: dict[int, _Life] = {}  # by id of the storage object, which torch keeps while the storage lives
        self._finalizers: dict[int, weakref.finalize[Any, Any]] = {}
        self._handles: list[Any] = []

    def watch_model(self, model: nn.Module, trained: Iterable[nn.Parameter] = ()) -> None:
        """Count `model`'s tensors as weights, its trainable parameters and `trained` as adapter, their .grad too."""
        parameters = {id(p): p for p in (*model.parameters(), *trained)}
        adapter = {id(p): p for p in trained} | {i: p for i, p in parameters.items() if p.requires_grad}
        self.watch_tensors(model)
        for parameter in adapter.values():
            self.assign("adapter", parameter)
            self._take_gradient(parameter)
            handle = parameter.register_post_accumulate_grad_hook(self._take_gradient)  # type: ignore[no-untyped-call]
            self._handles.append(handle)

    def watch_tensors(self, model: nn.Module) -> None:
        """Count as weights what `model` holds and has no category yet; again later for caches made meanwhile."""
        for tensor in tensors_in(model):
            life = self._see(tensor)
            if life is not None and life.category == "activations":
                life.category = "weights"

    def watch_caches(self, model: nn.Module) -> None:
        """Mark what quantized layers hold beside the parameters and buffers of `model`; it stays a part of weights."""
        own = {id(t.untyped_storage()) for t in (*model.parameters(), *model.buffers())}
        for layer in (m for m in model.modules() if isinstance(m, QuantizedLinear)):
            for tensor in tensors_in(layer):
                life = self._see(tensor)
                if life is not None and id(tensor.untyped_storage()) not in own:
                    life.derived = True

    def watch_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Count `optimizer`'s state, present and future."""

        def take(current: torch.optim.Optimizer, *_: Any) -> None:
            for tensor in tensors_in(current.state):
                self.assign("optimizer", tensor)

        take(optimizer)
        self._handles.append(optimizer.register_step_post_hook(take))

    def assign(self, category: str, tensor: Tensor) -> None:
        """Give the storage of `tensor` a category; it counts from now on if it was not seen before."""
        if category not in CATEGORIES:
            raise ValueError(f"unknown category {category!r}; known: {', '.join(CATEGORIES)}")
        life = self._see(tensor)
        if life is not None:
            life.category = category

    def live(self) -> dict[str, int]:
        """Bytes alive now, by category."""
        return self._bytes_at(self._tick)

    def peak(self) -> dict[str, int]:
        """Bytes by category at the moment of the highest total; they sum to `peak_bytes`."""
        return self._bytes_at(self._peak_tick)

    def cache_bytes(self) -> int:
        """Bytes of marked caches at the moment of the highest total."""
        lives = (life for life in self._lives if life.derived and life.category == "weights")
        return sum(life.nbytes for life in lives if life.born <= self._peak_tick < life.died)

    def close(self) -> None:
        """Remove the hooks and stop following storages; what was counted stays."""
        for handle in self._handles:
            handle.remove()
        for finalizer in self._finalizers.values():
            finalizer.detach()
        self._handles.clear()
        self._finalizers.clear()
        self._alive.clear()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        self.close()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def _take_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.assign("gradients", parameter.grad)

    def _see(self, tensor: Tensor) -> _Life | None:
        """The life of `tensor`'s storage, entered in the count if new; None for a tensor without counted bytes."""
        if tensor.device.type == "meta" or (self.device is not None and tensor.device.type != self.device):
            return None
        if tensor.layout is not torch.strided:
            return self._see_parts(tensor)
        storage = tensor.untyped_storage()
        key, nbytes = id(storage), storage.nbytes()
        life = self._alive.get(key)
        if life is not None and life.nbytes == nbytes:
            return life
        category = "activations"
        if life is None:
            self._finalizers[key] = weakref.finalize(storage, self._free, key)
        else:  # resized
            category = life.category
            self._end(life)
        self._tick += 1
        life = self._alive[key] = _Life(nbytes, self._tick, category)
        self._lives.append(life)
        self.total += nbytes
        if self.total > self.peak_bytes:
            self.peak_bytes, self._peak_tick = self.total, self._tick
        return life

    def _see_parts(self, tensor: Tensor) -> _Life | None:
        """A sparse tensor's parts are strided tensors; an opaque one (mkldnn) has no storage that could be counted."""
        parts = (tensor._indices(), tensor._values()) if tensor.layout is torch.sparse_coo else ()
        lives = [self._see(part) for part in parts]
        return lives[-1] if lives else None

    def _free(self, key: int) -> None:
        self._finalizers.pop(key, None)
        life = self._alive.pop(key, None)
        if life is not None:
            self._end(life)

    def _end(self, life: _Life) -> None:
        self._tick += 1
        life.died = self._tick
        self.total -= life.nbytes

    def _bytes_at(self, tick: int) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for life in self._lives:
            if life.born <= tick < life.died:
                counts[life.category] += life.nbytes
        return {category: counts[category] for category in CATEGORIES}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor that `value` holds: in modules with all their attributes, containers, and objects of `quant`."""
    yield from _tensors_in(value, set())


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    inner: Iterable[Any] = ()
    if isinstance(value, nn.Module) or type(value).__module__.partition(".")[0] == "quant":
        inner = getattr(value, "__dict__", {}).values()  # an engine's caches are plain objects
    elif isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (list, tuple, set)):
        inner = value
    for item in inner:
        yield from _tensors_in(item, seen)
