"""Block-sparse products as custom operators: their routes, fake implementations and gradients, for `kernels.dispatch`.

A product of many rows is the vendor's with a temporary copy of the weight that one launch writes; the gradient of x
takes the same ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kernels.custom import OPERATORS, Gradient, custom
from kernels.op import Op

__all__ = ["register"]

WEIGHT = ("mask", "starts", "values", "levels", "scale", "zero")


def register(ops: Mapping[str, Op], takes_dense: Callable[[Tensor, int, int], bool]) -> None:
    """Enter the operations on block-sparse weights; `takes_dense(x, n, k)` says which products go by a dense copy."""
    decode, product, grad = (ops[f"blocks_{what}"] for what in ("dequantize", "matmul", "grad"))

    def dense(given: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        weight = {name: value for name, value in given.items() if name not in ("x", "dy", "n", "k")}
        w: Tensor = decode.triton(**weight, shape=shape, dtype=dtype)
        return w

    def multiply(x: Tensor, *weight: Any, n: int, **given: Any) -> Tensor:
        named = {**dict(zip(WEIGHT, weight, strict=False)), **given}
        if takes_dense(x, n, x.shape[-1]):
            return torch.nn.functional.linear(x, dense(named, (n, x.shape[-1]), x.dtype))
        y: Tensor = product.triton(x, n=n, **named)
        return y

    def turned(dy: Tensor, *weight: Any, k: int, **given: Any) -> Tensor:
        named = {**dict(zip(WEIGHT, weight, strict=False)), **given}
        if takes_dense(dy, dy.shape[-1], k):
            return dy @ dense(named, (dy.shape[-1], k), dy.dtype)
        dx: Tensor = grad.triton(dy, k=k, **named)
        return dx

    custom(decode, fake=_whole)
    custom(product, run=multiply, fake=_wide, gradient=Gradient(("x",), _of_x, forgotten=("x",)))
    custom(grad, run=turned, fake=_narrow, gradient=Gradient(("dy",), _of_dy, forgotten=("dy",)))


def _of_x(a: Mapping[str, Any], dy: Tensor) -> Mapping[str, Callable[[], Tensor]]:
    weight = {name: value for name, value in a.items() if name not in ("x", "n")}
    return {"x": lambda: OPERATORS["blocks_grad"].call(dy, k=a["x"][-1], **weight)}


def _of_dy(a: Mapping[str, Any], dx: Tensor) -> Mapping[str, Callable[[], Tensor]]:
    weight = {name: value for name, value in a.items() if name not in ("dy", "k")}
    return {"dy": lambda: OPERATORS["blocks_matmul"].call(dx, n=a["dy"][-1], **weight)}


def _wide(x: Tensor, *weight: Any, n: int, **given: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], n)


def _narrow(dy: Tensor, *weight: Any, k: int, **given: Any) -> Tensor:
    return dy.new_empty(*dy.shape[:-1], k)


def _whole(mask: Tensor, *weight: Any, shape: tuple[int, int], dtype: torch.dtype, **given: Any) -> Tensor:
    return mask.new_empty(*shape, dtype=dtype)
