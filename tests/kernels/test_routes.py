"""Routes of products: which is taken for how many rows, from what table, and that all compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import dispatch, routes
from kernels.op import Op, operations
from kernels.routes import DEFAULT, Bounds, bounds_of, remember, route, taking
from tests.kernels.test_dispatch import PRODUCTS, arguments_of


def test_the_route_follows_the_rows_and_the_measured_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTBENCH_CONFIGURATIONS", str(tmp_path / "none yet"))
    routes._measured.cache_clear()
    taken = [route(m, 8192, 8192, "NVIDIA H200") for m in (1, 2, 255, 256, 4096)]
    assert taken == ["gemv", "product", "product", "dense", "dense"]
    assert bounds_of(8192, 8192, "NVIDIA H200") == (DEFAULT, "predicted")
    written = remember("NVIDIA H200", {"medium": Bounds(gemv=2, dense=64)})
    assert written.parent == tmp_path / "none yet"
    assert bounds_of(8192, 8192, "NVIDIA H200") == (Bounds(gemv=2, dense=64), "measured")
    assert [route(m, 8192, 8192, "NVIDIA H200") for m in (2, 3, 63, 64)] == ["gemv", "product", "product", "dense"]
    assert route(64, 28672, 8192, "NVIDIA H200") == route(64, 8192, 8192, "NVIDIA A100") == "product"
    with taking("dense"):
        assert route(1, 8, 8, "NVIDIA H200") == "dense"
    assert route(1, 8, 8, "NVIDIA H200") == "gemv"
    with pytest.raises(ValueError, match="unknown route 'fast'; known: gemv, product, dense"), taking("fast"):
        pass
    with pytest.raises(ValueError, match="0 <= gemv < dense"):
        Bounds(gemv=64, dense=64)
    written.write_text("{")
    routes._measured.cache_clear()
    assert route(64, 8192, 8192, "NVIDIA H200") == "product"
    routes._measured.cache_clear()


@pytest.mark.parametrize("way", routes.ROUTES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_route_computes_the_same(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The routes of a GPU, with the references in the kernels' place; each calls what it should."""
    called: list[str] = []
    known: dict[str, Op] = {}
    for other, op in operations().items():

        class Stand:
            reference = staticmethod(op.reference)

            @staticmethod
            def triton(*args: Any, _op: Op = op, **kwargs: Any) -> Tensor:
                called.append(_op.name)
                return _op.reference(*args, **kwargs)

        known[other] = Stand  # type: ignore[assignment]
    monkeypatch.setattr(dispatch, "OPS", known)
    family, what = name.split("_")
    make = {"matmul": dispatch._matmul, "grad": dispatch._grad, "lora": dispatch._lora}[what]
    arguments = arguments_of(name, "w3-channel-33x67x131")
    with taking(way):
        got = make(family)(**arguments)
    assert operations()[name].disagreement(got, arguments) is None
    fused = {"gemv": [f"{family}_matmul"], "product": [name], "dense": [f"{family}_dequantize"]}
    assert called == (fused[way] if what == "lora" or way == "dense" else [name])


def test_a_rank_too_large_for_the_kernel_takes_the_product_and_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = arguments_of("codebook_lora", "w4-g64-5x67x131")
    draw = torch.Generator().manual_seed(3)
    arguments |= {"inner": torch.randn(5, 65, generator=draw), "b": torch.randn(67, 65, generator=draw)}
    op = operations()["codebook_matmul"]
    stand = type("Stand", (), {"triton": staticmethod(op.reference), "reference": staticmethod(op.reference)})
    monkeypatch.setattr(dispatch, "OPS", {**operations(), "codebook_matmul": stand})
    with taking("product"):
        got = dispatch._lora("codebook")(**arguments)
    assert operations()["codebook_lora"].disagreement(got, arguments) is None
