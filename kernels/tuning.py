"""How a jit function is launched: tuned on a GPU, with one fixed configuration in the interpreter.

Triton's tuner asks the driver for its stop-watch, which neither the interpreter nor a machine without a GPU has.
Nothing is decided at import: the tuner is built at the first launch of a compiled kernel. Whether a kernel is
interpreted is read from the jit function itself, which Triton made so according to `triton.knobs.runtime.interpret`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

__all__ = ["OPTIONS", "Kernel", "Launch", "recorded"]

OPTIONS = {"enable_fp_fusion": True}  # said aloud: what Triton assumes when it is not differs between its versions


@dataclass(frozen=True, eq=False)
class Kernel:
    """A jit function and the configurations it may run in.

    `configs[0]` is the fixed one; `slow` replaces it in the interpreter, where few large programs are cheapest.
    `key` names the arguments whose change asks for tuning anew.
    """

    fn: Any
    configs: tuple[triton.Config, ...]
    slow: triton.Config
    key: tuple[str, ...]

    @property
    def interpreted(self) -> bool:
        """Whether Triton interprets this function instead of compiling it."""
        return not isinstance(self.fn, JITFunction)

    @cached_property
    def tuner(self) -> Any:
        """The function under Triton's autotuner; launching it needs a driver."""
        return triton.autotune(configs=list(self.configs), key=list(self.key))(self.fn)


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel with its arguments by name, and the grid as a function of arguments and configuration."""

    kernel: Kernel
    grid: Callable[[Mapping[str, Any]], tuple[int, ...]]
    arguments: Mapping[str, Any]

    def run(self) -> None:
        """Run it, or note it down inside `recorded`.

        Raises ValueError when the tensors are where this kernel cannot run, or not all in one place.
        """
        if (launches := _RECORDING.get()) is not None:
            launches.append(self)
            return
        tensors = {name: value for name, value in self.arguments.items() if isinstance(value, Tensor)}
        devices = {t.device for t in tensors.values()}
        if len(devices) > 1:
            raise ValueError(f"tensors are on several devices: { {n: str(t.device) for n, t in tensors.items()} }")
        if self.kernel.interpreted:
            self.kernel.fn[self.grid](**self.arguments, **self.kernel.slow.kwargs)
            return
        device = devices.pop()
        if device.type != "cuda":
            raise ValueError(
                f"tensors are on {device}: a Triton kernel needs a GPU, or TRITON_INTERPRET=1 in the environment "
                "before the kernels are imported"
            )
        with torch.cuda.device(device):
            self.kernel.tuner[self.grid](**self.arguments, **OPTIONS)


_RECORDING: ContextVar[list[Launch] | None] = ContextVar("recording", default=None)


def recorded(operation: Callable[..., Tensor], arguments: Mapping[str, Any]) -> tuple[Tensor, list[Launch]]:
    """The output of `operation`, allocated and not yet written, and the launches that would write it, in order.

    A test fills the output with NaN before it runs them; the compiler takes them as they are, on any device.
    """
    launches: list[Launch] = []
    token = _RECORDING.set(launches)
    try:
        return operation(**arguments), launches
    finally:
        _RECORDING.reset(token)
