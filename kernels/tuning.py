"""How a jit function is launched: in a configuration from a table on a GPU, in a fixed one in the interpreter.

Nothing is decided at import and nothing is timed unasked: inside `searching` a launch times the configurations of its
kernel first and enters the fastest in the user's table, elsewhere it takes what `kernels.tuned` finds. Whether a kernel
is interpreted is read from the jit function itself, which Triton made so according to `triton.knobs.runtime.interpret`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from kernels import tuned
from kernels.interpreter import interpreting

__all__ = ["OPTIONS", "Kernel", "Launch", "recorded", "searching"]

OPTIONS = {"enable_fp_fusion": True}  # said aloud: what Triton assumes when it is not differs between its versions


@dataclass(frozen=True, eq=False)
class Kernel:
    """A jit function and the configurations it may run in.

    `configs[0]` is taken where nothing was tuned; `slow` is the one for the interpreter, where few large programs are
    cheapest. `key` names the arguments that the best configuration depends on.
    """

    fn: Any
    configs: tuple[triton.Config, ...]
    slow: triton.Config
    key: tuple[str, ...]

    @property
    def interpreted(self) -> bool:
        """Whether Triton interprets this function instead of compiling it."""
        return not isinstance(self.fn, JITFunction)

    def in_ptx(self, dtype: torch.dtype) -> bool:
        """Whether parts of the kernel that are written for NVIDIA's 16-bit arithmetic serve an x of `dtype`."""
        return not self.interpreted and torch.version.hip is None and dtype in (torch.float16, torch.bfloat16)


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
            with interpreting():
                self.kernel.fn[self.grid](**self.arguments, **self.kernel.slow.kwargs)
            return
        device = devices.pop()
        if device.type != "cuda":
            raise ValueError(
                f"tensors are on {device}: a Triton kernel needs a GPU, or TRITON_INTERPRET=1 in the environment "
                "before the kernels are imported"
            )
        with torch.cuda.device(device):
            name = _device_name(device)
            if _SEARCHING.get() and not torch.cuda.is_current_stream_capturing():
                config = tuned.search(self.kernel, self.arguments, name, self._seconds)
            else:
                config = tuned.chosen(self.kernel, self.arguments, name)
            self._start(config)

    def _start(self, config: triton.Config) -> None:
        # a configuration may set options of the compiler itself, which then take the place of the common ones
        options = {**OPTIONS, "num_warps": config.num_warps, "num_stages": config.num_stages, **config.kwargs}
        self.kernel.fn[self.grid](**self.arguments, **options)

    def _seconds(self, config: triton.Config) -> float:
        """Median time of a run in this configuration, with the cache of the GPU cleared before each."""
        return float(triton.testing.do_bench(lambda: self._start(config), return_mode="median")) / 1e3


@cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


_RECORDING: ContextVar[list[Launch] | None] = ContextVar("recording", default=None)
_SEARCHING: ContextVar[bool] = ContextVar("searching", default=False)


@contextmanager
def searching() -> Iterator[None]:
    """Inside, every launch on a GPU times the configurations of its kernel, runs the fastest, and remembers it."""
    token = _SEARCHING.set(True)
    try:
        yield
    finally:
        _SEARCHING.reset(token)


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
