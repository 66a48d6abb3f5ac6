"""Memory of one training step, split by what it is for.

Two steps are run: the first creates the optimizer's state, the second is measured from the forward pass to the end of
the optimizer's step. The parameters and the random state are put back afterwards.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure.tracker import CATEGORIES, MemoryTracker, tensors_in
from quant.engines.decode import drop_workspace

__all__ = ["peak_rss", "reset_peak_rss", "train_step_memory"]

STEPS = 2
PROC = Path("/proc/self")


def train_step_memory(
    model: nn.Module,
    loss_fn: Callable[[], Tensor],
    parameters: Sequence[nn.Parameter],
    *,
    make_optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
) -> dict[str, Any]:
    """The record's `training_memory` group (without batch and tokens, which the caller knows).

    `loss_fn()` is the forward pass to a scalar loss; `parameters` are trained. Bytes are those of tensors on the
    parameters' device; `off_device_bytes` are the model's tensors elsewhere (offloaded; on "meta" there are none).
    `cache_bytes`, a part of `weights_bytes`, is what the engines of quantized layers keep beside the stored tensors:
    repacked codes, look-up tables, dense copies.
    On CUDA `cuda_peak_bytes` is the allocator's own figure for the same step, which adds its rounding and the
    workspaces of kernels. `peak_rss_bytes` is the whole process, interpreter and libraries included, on Linux.
    """
    trained = list(parameters)
    if not trained:
        raise ValueError("no parameter to train")
    devices = {p.device for p in trained}
    if len(devices) > 1 or trained[0].device.type == "meta":
        raise ValueError(f"the trained parameters must be on one real device, got {sorted(map(str, devices))}")
    device = trained[0].device
    before = [p.detach().clone() for p in trained]
    drop_workspace()
    tracker = MemoryTracker(device.type)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            optimizer = make_optimizer(trained)
            _step(loss_fn, optimizer)
            _clear_gradients(model, trained)
            tracker.watch_model(model, trained)
            tracker.watch_caches(model)
            tracker.watch_optimizer(optimizer)
            gc.collect()
            reason = reset_peak_rss()
            cuda_floor = _reset_cuda(device)
            with tracker:
                _step(loss_fn, optimizer)
                tracker.watch_tensors(model)
                tracker.watch_caches(model)
            rss, rss_reason = (None, reason) if reason else peak_rss()
            cuda_peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        finally:
            tracker.close()
            _clear_gradients(model, trained)
            with torch.no_grad():
                for parameter, value in zip(trained, before, strict=True):
                    parameter.copy_(value)
    out: dict[str, Any] = {"peak_bytes": tracker.peak_bytes}
    out |= {f"{category}_bytes": n for category, n in tracker.peak().items()}
    assert sum(out[f"{c}_bytes"] for c in CATEGORIES) == tracker.peak_bytes
    out["cache_bytes"] = tracker.cache_bytes()
    out |= {"steps": STEPS, "device": str(device), "off_device_bytes": _off_device(model, device)}
    out["peak_rss_bytes"] = rss
    if rss_reason:
        out["peak_rss_reason"] = rss_reason
    if cuda_peak is not None:
        out |= {"cuda_peak_bytes": cuda_peak, "cuda_before_bytes": cuda_floor}
    return out


def reset_peak_rss() -> str:
    """Set the process's peak resident size back to its present size; "" or the reason why it cannot be."""
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError as error:
        return f"cannot reset the peak in {PROC / 'clear_refs'}: {error.strerror}"
    return ""


def peak_rss() -> tuple[int | None, str]:
    """(bytes, "") of the process's peak resident size since the last reset, or (None, reason)."""
    try:
        status = (PROC / "status").read_text()
    except OSError as error:
        return None, f"cannot read {PROC / 'status'}: {error.strerror}"
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1]), ""
    return None, f"{PROC / 'status'} has no VmHWM"


def _step(loss_fn: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    loss = loss_fn()
    if loss.numel() != 1 or not loss.requires_grad:
        raise ValueError(f"loss_fn must return a scalar that depends on a parameter, got shape {list(loss.shape)}")
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _clear_gradients(model: nn.Module, trained: Sequence[nn.Parameter]) -> None:
    for parameter in (*model.parameters(), *trained):
        parameter.grad = None


def _reset_cuda(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _off_device(model: nn.Module, device: torch.device) -> int:
    away = (t for t in tensors_in(model) if t.device.type not in (device.type, "meta") and t.layout is torch.strided)
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in away}.values())
