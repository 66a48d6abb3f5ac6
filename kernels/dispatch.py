"""The one way to the kernels: every operation as a function that also runs under torch.compile, autograd and in graphs.

`OPERATORS[name].call` is the operation of that name. Products choose their route by the number of rows (see
`kernels.routes`); their gradients use the packed weight again. What is said here of an operation is what its schema
cannot tell: the shape of its output, its gradient, its routes; one that needs none of these is registered as it is.
Nothing waits for the device and no shape depends on data, so a call can be captured in a CUDA graph, after a first one
outside of it that compiles and tunes the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels import blocks_dispatch
from kernels.custom import OPERATORS, Gradient, Operator, custom
from kernels.lora import LARGEST_RANK
from kernels.op import Op, operations
from kernels.routes import route
from kernels.sparse_dispatch import register

__all__ = [
    "OPERATORS",
    "Operator",
    "affine_dequantize",
    "affine_grad",
    "affine_lora",
    "affine_matmul",
    "codebook_dequantize",
    "codebook_grad",
    "codebook_lora",
    "codebook_matmul",
    "takes_dense",
]

Run = Callable[..., Tensor]
OPS = operations()


@cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def takes_dense(x: Tensor, n: int, k: int) -> bool:
    """Whether x [..., k or n] is multiplied with a temporary dense copy of a weight [n, k], see `kernels.routes`."""
    return _route(x, n, k) == "dense"


def _route(x: Tensor, n: int, k: int) -> str:
    name = _device_name(x.device.index) if x.is_cuda else x.device.type
    return route(x.numel() // max(1, x.shape[-1]), n, k, name)


def _dense(family: str, codes: Tensor, side: Mapping[str, Any], k: int, dtype: torch.dtype) -> Tensor:
    """A temporary copy [n, k] of the weight."""
    w: Tensor = OPS[f"{family}_dequantize"].triton(codes, shape=(len(codes), k), dtype=dtype, **side)
    return w


def _matmul(family: str) -> Run:
    op = OPS[f"{family}_matmul"]

    def run(x: Tensor, codes: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if _route(x, len(codes), x.shape[-1]) != "dense":
            y: Tensor = op.triton(x, codes, *args, **kwargs)
            return y
        side = _named(op, args, kwargs)
        return torch.nn.functional.linear(x, _dense(family, codes, side, x.shape[-1], x.dtype))

    return run


def _grad(family: str) -> Run:
    op = OPS[f"{family}_grad"]

    def run(dy: Tensor, codes: Tensor, *args: Any, k: int, **kwargs: Any) -> Tensor:
        if _route(dy, len(codes), k) != "dense":
            dx: Tensor = op.triton(dy, codes, *args, k=k, **kwargs)
            return dx
        return dy @ _dense(family, codes, _named(op, args, kwargs), k, dy.dtype)

    return run


def _lora(family: str) -> Run:
    """In one kernel for a few dozen rows; else the product by its own route, and the update added in place."""
    op, product = OPS[f"{family}_lora"], _matmul(family)

    def run(x: Tensor, codes: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = _named(op, args, kwargs)
        inner, b = given.pop("inner"), given.pop("b")
        if b.shape[-1] <= LARGEST_RANK and _route(x, len(codes), x.shape[-1]) == "product":
            fused: Tensor = op.triton(x, codes, inner=inner, b=b, **given)
            return fused
        y = product(x, codes, **given)
        flat = inner.reshape(-1, inner.shape[-1])
        y.view(-1, y.shape[-1]).addmm_(flat.to(y.dtype), b.T.to(y.dtype))
        return y

    return run


def _named(op: Op, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments after x (or dy) and the codes, by name."""
    return dict(zip(_names(op), args, strict=False)) | dict(kwargs)


def _names(op: Op) -> tuple[str, ...]:
    code = op.reference.__code__
    return code.co_varnames[2 : code.co_argcount]


def _wide(x: Tensor, codes: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


def _narrow(dy: Tensor, codes: Tensor, *args: Any, k: int, **kwargs: Any) -> Tensor:
    return dy.new_empty(*dy.shape[:-1], k)


def _whole(codes: Tensor, *args: Any, shape: tuple[int, int], dtype: torch.dtype, **kwargs: Any) -> Tensor:
    return codes.new_empty(*shape, dtype=dtype)


def _of_x(family: str) -> Gradient:
    def rule(a: Mapping[str, Any], dy: Tensor) -> Mapping[str, Callable[[], Tensor]]:
        weight = {name: value for name, value in a.items() if name != "x"}
        return {"x": lambda: OPERATORS[f"{family}_grad"].call(dy, k=a["x"][-1], **weight)}

    return Gradient(("x",), rule, forgotten=("x",))


def _of_dy(family: str) -> Gradient:
    def rule(a: Mapping[str, Any], dx: Tensor) -> Mapping[str, Callable[[], Tensor]]:
        weight = {name: value for name, value in a.items() if name not in ("dy", "k")}
        return {"dy": lambda: OPERATORS[f"{family}_matmul"].call(dx, **weight)}

    return Gradient(("dy",), rule, forgotten=("dy",))


def _of_lora(family: str) -> Gradient:
    def rule(a: Mapping[str, Any], dy: Tensor) -> Mapping[str, Callable[[], Tensor]]:
        weight = {name: value for name, value in a.items() if name not in ("x", "inner", "b")}
        inner, b = a["inner"], a["b"]

        def of_b() -> Tensor:
            flat = inner.reshape(-1, inner.shape[-1])
            db: Tensor = (dy.reshape(-1, dy.shape[-1]).to(inner.dtype).T @ flat).to(b.dtype)
            return db

        return {
            "x": lambda: OPERATORS[f"{family}_grad"].call(dy, k=a["x"][-1], **weight),
            "inner": lambda: (dy.to(b.dtype) @ b).to(inner.dtype),
            "b": of_b,
        }

    return Gradient(("x", "inner", "b"), rule, forgotten=("x",))


def _family(family: str) -> tuple[Callable[..., Tensor], ...]:
    return (
        custom(OPS[f"{family}_dequantize"], fake=_whole),
        custom(OPS[f"{family}_matmul"], run=_matmul(family), fake=_wide, gradient=_of_x(family)),
        custom(OPS[f"{family}_grad"], run=_grad(family), fake=_narrow, gradient=_of_dy(family)),
        custom(OPS[f"{family}_lora"], run=_lora(family), fake=_wide, gradient=_of_lora(family)),
    )


codebook_dequantize, codebook_matmul, codebook_grad, codebook_lora = _family("codebook")
affine_dequantize, affine_matmul, affine_grad, affine_lora = _family("affine")
_family("pairs")
register(OPS, takes_dense)
blocks_dispatch.register(OPS, takes_dense)
for _name, _op in OPS.items():
    if _name not in OPERATORS:
        custom(_op)
