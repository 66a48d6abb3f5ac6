"""Sparse products as custom operators: their routes, fake implementations and gradients, for `kernels.dispatch`.

A product of many rows, and every gradient of x, dx = dy @ w, is the vendor's with a temporary copy of the weight that
one launch writes: the sums of a gradient run down the columns of w, which no sparse format here stores together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kernels.custom import OPERATORS, Gradient, custom
from kernels.op import Op

__all__ = ["register"]

DECODED_BY = {
    "two_of_four_matmul": "n_of_m_dequantize",
    "n_of_m_matmul": "n_of_m_dequantize",
    "bitmask_matmul": "bitmask_dequantize",
    "bitmask_coded_matmul": "bitmask_dequantize",
}


def register(ops: Mapping[str, Op], takes_dense: Callable[[Tensor, int, int], bool]) -> None:
    """Enter the sparse operations of `ops`; `takes_dense(x, n, k)` says which products go by a dense copy."""
    for name in dict.fromkeys(DECODED_BY.values()):
        custom(ops[name], fake=_whole)
    for name in DECODED_BY:
        gradient = Gradient(("x",), _rule(name), forgotten=("x",))
        custom(ops[name], run=_product(ops[name], takes_dense), fake=_wide, gradient=gradient)


def _product(op: Op, takes_dense: Callable[[Tensor, int, int], bool]) -> Callable[..., Tensor]:
    code = op.reference.__code__
    names = code.co_varnames[: code.co_argcount]

    def run(*args: Any, **kwargs: Any) -> Tensor:
        given = dict(zip(names, args, strict=False)) | kwargs
        x = given.pop("x")
        if not takes_dense(x, _by_row(given).shape[0], x.shape[-1]):
            y: Tensor = op.triton(x, **given)
            return y
        return torch.nn.functional.linear(x, _dense(op.name, given, x.shape[-1], x.dtype))

    return run


def _rule(name: str) -> Callable[[Mapping[str, Any], Tensor], Mapping[str, Callable[[], Tensor]]]:
    def rule(a: Mapping[str, Any], dy: Tensor) -> Mapping[str, Callable[[], Tensor]]:
        weight = {key: value for key, value in a.items() if key != "x"}
        return {"x": lambda: dy @ _dense(name, weight, a["x"][-1], dy.dtype)}

    return rule


def _dense(name: str, weight: Mapping[str, Any], k: int, dtype: torch.dtype) -> Tensor:
    """A temporary copy of the weight of product `name`."""
    given = {"levels": None, "scale": None, "zero": None, **weight}
    n = _by_row(given).shape[0]
    if name == "two_of_four_matmul":
        given |= {"of": 4, "bits": 4 if given["scale"] is not None else 0, "rows": 0}
    elif name == "bitmask_matmul":
        given |= {"kept": given["values"].shape[1], "bits": 0, "group": "tensor"}
    elif "codes" in given:
        given["values"] = given.pop("codes")
    w: Tensor = OPERATORS[DECODED_BY[name]].call(shape=(n, k), dtype=dtype, **given)
    return w


def _wide(x: Tensor, **weight: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], _by_row(weight).shape[0])


def _whole(*, shape: tuple[int, int], dtype: torch.dtype, **weight: Any) -> Tensor:
    return _by_row(weight).new_empty(*shape, dtype=dtype)


def _by_row(weight: Mapping[str, Any]) -> Tensor:
    """The places or the mask."""
    stored: Tensor = weight["mask" if "mask" in weight else "indices"]
    return stored
