"""What an operation is: one formula, a reference that says what is meant, and a Triton kernel of the same signature.

A kernel module ends in `OPERATIONS`, a tuple of `Op`; `operations()` collects them, so the agreement tests, the compile
check and the micro-benchmark see a new operation with no other edit. Importing this module does not import triton.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import kernels

__all__ = [
    "DECODED",
    "EXACT",
    "MULTIPLIED",
    "Example",
    "Op",
    "Tolerance",
    "available",
    "interpreted",
    "operations",
    "relative_error",
]


HELPERS = (  # modules of jit functions that other modules call or launch, each before those that use it
    "kernels.quantize_tile",
    "kernels.quantize_kernels",
    "kernels.decoding",
    "kernels.partials",
    "kernels.gemv",
    "kernels.small",
    "kernels.dequantize",
    "kernels.launchers",
    "kernels.backward",
    "kernels.lora",
    "kernels.sparse_tile",
    "kernels.sparse_products",
    "kernels.sparse_kept",
    "kernels.sparse_masked",
    "kernels.sparse_coded",
    "kernels.sparse_dequantize",
    "kernels.blocks_tile",
    "kernels.blocks_products",
    "kernels.blocks_dequantize",
)


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the relative norm of the error by the dtype of the output, and the reason for them."""

    bounds: Mapping[torch.dtype, float]
    why: str


DECODED = Tolerance(
    {torch.float32: 2**-23, torch.float16: 2**-11, torch.bfloat16: 2**-8},
    "at most two roundings in float32 and one to the output",
)
MULTIPLIED = Tolerance(
    {torch.float32: 2**-20, torch.float16: 2**-10, torch.bfloat16: 2**-7},
    "weight and output are each rounded once to the dtype of x; float32 sums of a few hundred terms",
)
EXACT = Tolerance(
    {torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0, torch.uint8: 0.0},
    "quantizers round as their reference does, bit by bit",
)


@dataclass(frozen=True)
class Example:
    """One set of keyword arguments of an operation; the label says what is special about it."""

    label: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Op:
    """An operation on plain tensors.

    `reference` and `triton` take the same arguments and return the same tensor, or tuple of tensors; `reference`
    computes in float64 when its `x` or `dy` (or the `dtype` that is asked for) is float64. `examples(dtype, device)`
    are small, of odd shape on purpose; `sized(m, n, k, dtype, device)` is one typical input of a given size, for
    timing. `tolerance` bounds its error.
    """

    name: str
    formula: str
    source: str
    reference: Callable[..., Any]
    triton: Callable[..., Any]
    examples: Callable[[torch.dtype, str], Iterable[Example]]
    sized: Callable[[int, int, int, torch.dtype, str], Example]
    tolerance: Tolerance

    def exact(self, arguments: Mapping[str, Any]) -> Any:
        """What the operation means for these arguments, in float64."""
        raised = dict(arguments)
        for name in ("x", "dy"):
            if name in raised:
                raised[name] = raised[name].double()
        if "dtype" in raised:
            raised["dtype"] = torch.float64
        return self.reference(**raised)

    def disagreement(self, got: Any, arguments: Mapping[str, Any]) -> str | None:
        """None when `got` is this operation's result within its tolerance, else a sentence saying how it is not.

        Of several outputs each is held to the tolerance of its own dtype.
        """
        want = self.exact(arguments)
        if isinstance(want, Tensor):
            return self._difference(self.name, got, want)
        if len(got) != len(want):
            return f"{self.name}: {len(got)} outputs instead of {len(want)}"
        each = (self._difference(f"{self.name}[{i}]", *pair) for i, pair in enumerate(zip(got, want, strict=True)))
        return next((wrong for wrong in each if wrong), None)

    def _difference(self, name: str, got: Tensor, want: Tensor) -> str | None:
        if got.shape != want.shape:
            return f"{name}: shape {list(got.shape)} instead of {list(want.shape)}"
        error, allowed = relative_error(got, want), self.tolerance.bounds[got.dtype]
        if error <= allowed:
            return None
        return f"{name}: relative error {error:.3g} exceeds {allowed:.3g} for {got.dtype} ({self.tolerance.why})"


def relative_error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want| in the Frobenius norm, in float64; NaN where `got` is not a number anywhere."""
    want = want.double()
    size = float(torch.linalg.vector_norm(want))
    error = float(torch.linalg.vector_norm(got.double() - want))
    return error / size if size else error


def available(x: Tensor) -> bool:
    """Whether the Triton kernels can run on the device of `x`: a GPU, or any device under `TRITON_INTERPRET=1`.

    The variable is read when a kernel module is first imported, so it must be set before that.
    """
    if not _has_triton():
        return False
    from triton import knobs

    return x.is_cuda or bool(knobs.runtime.interpret)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def operations() -> Mapping[str, Op]:
    """Every operation by name, in the order of the modules. Raises ValueError when two share a name."""
    found: dict[str, Op] = {}
    for info in pkgutil.iter_modules(kernels.__path__, "kernels."):
        for op in getattr(importlib.import_module(info.name), "OPERATIONS", ()):
            if op.name in found:
                raise ValueError(f"operation {op.name!r} of {info.name} exists already")
            found[op.name] = op
    return found


def interpreted(name: str) -> ModuleType:
    """A second copy of kernel module `name` whose kernels run in Triton's interpreter, on CPU tensors.

    Triton decides between compiler and interpreter when a jit function is defined; executing the module again under
    the other setting gives both in one process. The modules in `HELPERS`, whose jit functions a kernel may call, are
    replaced by their own second copies while `name` is executed.
    """
    from triton import knobs

    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ValueError(f"there is no module {name!r}")
    alias = f"{name}__interpreted"
    if alias in sys.modules:
        return sys.modules[alias]
    module = importlib.util.module_from_spec(spec)
    operations()  # a module that `name` imports must not be executed for the first time under the other setting
    before = HELPERS[: HELPERS.index(name)] if name in HELPERS else HELPERS
    helpers = {helper: interpreted(helper) for helper in before}
    compiled = {helper: importlib.import_module(helper) for helper in helpers}
    setting = knobs.runtime.interpret
    knobs.runtime.interpret = True
    sys.modules[alias] = module  # dataclasses and the interpreter look modules up by name
    sys.modules.update(helpers)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    finally:
        knobs.runtime.interpret = setting
        sys.modules.update(compiled)
    return module
