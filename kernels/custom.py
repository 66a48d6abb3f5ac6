"""An operation as a custom operator of torch, `torch.ops.quantbench.<name>`, and the function that calls it.

The operator's schema is read off the signature of the operation's reference. torch.compile sees one opaque node whose
output its fake implementation describes (by default the launcher, which allocates it and here launches nothing),
autograd sees the gradient given.
Outside of both the operator would only cost time: the function then calls the implementation directly. On a device
without Triton the implementation is the reference.
Source: torch.library, PyTorch 2.4 and later ("PyTorch Custom Operators").
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch

from kernels.nested import NestedScale
from kernels.op import Op, available
from kernels.tuning import recorded

__all__ = ["NAMESPACE", "OPERATORS", "Gradient", "Operator", "custom"]

NAMESPACE = "quantbench"
TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    int: "SymInt",
    float: "float",
    bool: "bool",
    str: "str",
    torch.dtype: "ScalarType",
    tuple[int, int]: "SymInt[]",
    int | str: "SymInt",  # a group: 64, or a word of WORDS
}
WORDS = {"channel": 0, "tensor": -1}  # as what they pass through a schema: compiled code may vary numbers, not words
NESTED = ("", "_levels", "_scale", "_offset")  # what a nested scale is passed as, and its group


@dataclass(frozen=True)
class Gradient:
    """How gradients reach the tensors named `of`, which alone may require them.

    `rule(arguments, dy)` maps these names to functions that compute the gradient. Of the tensors in `forgotten`
    nothing but the shape is kept for it: `arguments` holds their sizes.
    """

    of: tuple[str, ...]
    rule: Callable[[Mapping[str, Any], Tensor], Mapping[str, Callable[[], Tensor]]]
    forgotten: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Operator:
    """A custom operator: `call` takes the arguments of `op`, `flat` turns them into those of `overload`."""

    op: Op
    call: Callable[..., Any]
    overload: Any
    flat: Callable[..., list[Any]]


OPERATORS: dict[str, Operator] = {}


def custom(
    op: Op,
    *,
    run: Callable[..., Any] | None = None,
    fake: Callable[..., Any] | None = None,
    gradient: Gradient | None = None,
) -> Callable[..., Any]:
    """Register `op` as `torch.ops.quantbench.<op.name>`; returns the function to call it by, with its signature.

    `run` (default: `op.triton`) is what a device with Triton does. Raises TypeError for a signature that no schema
    can express, naming the parameter.
    """
    signature = _Signature.of(op)
    on_device = run or op.triton

    def implementation(*flat: Any) -> Any:
        arguments = signature.unflatten(flat)
        return signature.returned(_here(arguments.values(), on_device, op.reference)(**arguments))

    def direct(*args: Any, **kwargs: Any) -> Any:
        return _here((*args, *kwargs.values()), on_device, op.reference)(*args, **kwargs)

    declared = torch.library.custom_op(
        f"{NAMESPACE}::{op.name}", implementation, mutates_args=(), schema=signature.schema
    )

    def describe(*flat: Any) -> Any:
        arguments = signature.unflatten(flat)
        return signature.returned(fake(**arguments) if fake else recorded(op.triton, arguments)[0])

    declared.register_fake(describe)
    if gradient is not None:
        _differentiate(declared, op.name, signature, gradient)
    overload = getattr(getattr(torch.ops, NAMESPACE), op.name).default

    def call(*args: Any, **kwargs: Any) -> Any:
        if _plain((*args, *kwargs.values())):
            return direct(*args, **kwargs)
        out = overload(*signature.flatten(args, kwargs))
        return tuple(out) if isinstance(out, list) else out

    call.__name__, call.__doc__ = op.name, op.triton.__doc__
    OPERATORS[op.name] = Operator(op, call, overload, lambda *args, **kwargs: signature.flatten(args, kwargs))
    return call


def _here(values: Any, on_device: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
    """The implementation for where the first tensor of `values` is."""
    first = next(v for v in values if isinstance(v, Tensor))
    return on_device if first.is_cuda or available(first) else reference


def _plain(values: Sequence[Any]) -> bool:
    """Whether nobody but the caller looks on: no compiler, no tracing mode, no gradient, no subclass of tensors."""
    if torch.compiler.is_compiling() or _python_dispatch.is_in_torch_dispatch_mode():
        return False
    grad = torch.is_grad_enabled()
    return not any(
        isinstance(v, Tensor) and (type(v) not in (Tensor, torch.nn.Parameter) or (grad and v.requires_grad))
        for v in values
    )


def _differentiate(declared: Any, name: str, signature: _Signature, gradient: Gradient) -> None:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        needed = dict(zip(signature.names, ctx.needs_input_grad, strict=False))  # torch appends one of its own
        if wrong := [n for n, need in needed.items() if need and n not in gradient.of]:
            raise ValueError(f"{name} has no gradient of {', '.join(wrong)}, only of {', '.join(gradient.of)}")
        kept = [v.shape if n in gradient.forgotten else v for n, v in zip(signature.names, inputs, strict=True)]
        ctx.tensors = [i for i, v in enumerate(kept) if isinstance(v, Tensor)]
        ctx.save_for_backward(*(kept[i] for i in ctx.tensors))
        ctx.others = [None if isinstance(v, Tensor) else v for v in kept]

    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        flat = list(ctx.others)
        for i, tensor in zip(ctx.tensors, ctx.saved_tensors, strict=True):
            flat[i] = tensor
        rules = gradient.rule(signature.unflatten(flat), dy)
        needed = zip(signature.names, ctx.needs_input_grad, strict=True)
        return tuple(rules[n]() if need else None for n, need in needed)

    declared.register_autograd(backward, setup_context=setup)


@dataclass(frozen=True)
class _Signature:
    """The parameters of an operation, and how they are passed through a schema."""

    kinds: Mapping[str, str]  # of the parameters: "plain", "group", "shape" or "nested"
    names: tuple[str, ...]  # of the schema: a nested scale takes several
    schema: str

    @classmethod
    def of(cls, op: Op) -> _Signature:
        hints = typing.get_type_hints(op.reference)
        output = hints.pop("return")
        parts: list[tuple[str, str]] = []
        for name in inspect.signature(op.reference).parameters:
            parts += _pieces(name, hints[name]) or _unsupported(op, name, hints[name])
        if output is Tensor:
            returns = "Tensor"
        elif output == tuple[Tensor, ...]:
            returns = "Tensor[]"
        else:
            inner = typing.get_args(output)
            if typing.get_origin(output) is not tuple or set(inner) != {Tensor}:
                _unsupported(op, "return", output)
            returns = f"({', '.join(['Tensor'] * len(inner))})"
        schema = f"({', '.join(' '.join(part) for part in parts)}) -> {returns}"
        kinds = {name: _kind(hint) for name, hint in hints.items()}
        return cls(kinds, tuple(name for _, name in parts), schema)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The operation's arguments as those of the schema. Raises TypeError for one missing or unknown."""
        given = dict(zip(self.kinds, args, strict=False))
        given.update(kwargs)
        if len(given) != len(args) + len(kwargs) or set(given) != set(self.kinds):
            raise TypeError(f"takes {', '.join(self.kinds)}; got {len(args)} values and {', '.join(kwargs)}")
        flat: list[Any] = []
        for name, kind in self.kinds.items():
            value = given[name]
            if kind == "nested" and isinstance(value, NestedScale):
                flat += [value.codes, value.levels, value.scale, value.offset, value.group]
            elif kind == "nested":
                flat += [value, None, None, None, 0]
            elif kind == "group":
                flat.append(WORDS[value] if isinstance(value, str) else value)
            else:
                flat.append(list(value) if kind == "shape" else value)
        return flat

    def unflatten(self, flat: Sequence[Any]) -> dict[str, Any]:
        """The inverse of `flatten`, by name."""
        rest = iter(flat)
        out: dict[str, Any] = {}
        for name, kind in self.kinds.items():
            value = next(rest)
            if kind == "nested":
                levels, scale, offset, group = (next(rest) for _ in range(4))
                out[name] = value if levels is None else NestedScale(value, levels, scale, offset, group)
            elif kind == "group":
                out[name] = value if value > 0 else next(word for word, number in WORDS.items() if number == value)
            else:
                out[name] = tuple(value) if kind == "shape" else value
        return out

    def returned(self, out: Any) -> Any:
        """The operation's result as the schema's."""
        return list(out) if self.schema.endswith("Tensor[]") else out


def _kind(hint: Any) -> str:
    if _is_nested(hint):
        return "nested"
    return {int | str: "group", tuple[int, int]: "shape"}.get(hint, "plain")


def _is_nested(hint: Any) -> bool:
    return NestedScale in typing.get_args(hint)


def _pieces(name: str, hint: Any) -> list[tuple[str, str]]:
    """Types and names that stand for a parameter in a schema; none when there is no way to pass it."""
    if _is_nested(hint):
        first = "Tensor?" if NoneType in typing.get_args(hint) else "Tensor"
        tensors = zip((first, "Tensor?", "Tensor?", "Tensor?"), NESTED, strict=True)
        return [(kind, name + end) for kind, end in tensors] + [("SymInt", f"{name}_group")]
    if hint in TYPES:
        return [(TYPES[hint], name)]
    inner = [t for t in typing.get_args(hint) if t is not NoneType]
    if len(inner) == 1 and NoneType in typing.get_args(hint) and inner[0] in TYPES:
        return [(f"{TYPES[inner[0]]}?", name)]
    return []


def _unsupported(op: Op, name: str, hint: Any) -> typing.NoReturn:
    raise TypeError(f"{op.name}: {name} is {hint}, which no schema of a custom operator can express")
