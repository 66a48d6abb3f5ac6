"""Quantizers compiled for GPUs that are not here: IEEE divisions, each operation rounded by itself, nothing spilled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton

from kernels.aot import TARGETS, compile_launch
from kernels.op import operations
from kernels.tuning import Launch, recorded

pytestmark = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1: interpreted kernels cannot be compiled"
)
ONE_PASS = [(kind, bits, 64) for kind in ("codebook", None, "integer", "float") for bits in (2, 3, 4, 8)]
TWO_PASSES = [("codebook", 4, "tensor"), (None, 5, 17), ("integer", 3, 17), ("float", 4, "tensor")]
ELSEWHERE = [("codebook", 4, 64), ("integer", 4, 64), ("float", 3, 64), ("float", 4, "tensor")]
CASES = [("sm_90", *case) for case in ONE_PASS + TWO_PASSES] + [
    (target, *case) for target in ("sm_80", "gfx942") for case in ELSEWHERE
]


def launches(kind: str | None, bits: int, group: int | str, dtype: torch.dtype = torch.bfloat16) -> list[Launch]:
    weight = torch.empty(256, 1024, dtype=dtype)
    given: dict[str, Any] = {"weight": weight, "bits": bits, "group": group, "stored": torch.float16}
    if kind == "codebook":
        name, own = "codebook_quantize", {"levels": torch.linspace(-1, 1, 1 << bits)}
    else:
        name, own = "affine_quantize", {"zero": kind}
    return recorded(operations()[name].triton, {**given, **own})[1]


@pytest.mark.parametrize(("target", "kind", "bits", "group"), CASES)
def test_it_rounds_as_the_reference_does(target: str, kind: str | None, bits: int, group: int | str) -> None:
    for launch in launches(kind, bits, group):
        built = compile_launch(launch, target)
        assert built.inexact_divisions == 0
        assert built.fused == 0
        assert built.spills == 0
        assert built.shared <= TARGETS[target].shared_limit


def test_contraction_would_be_seen() -> None:
    (launch,) = launches("float", 4, 64)
    for config in launch.kernel.configs:
        assert config.kwargs["enable_fp_fusion"] is False
    contracted = triton.Config({"enable_fp_fusion": True}, num_warps=4)
    assert compile_launch(launch, "sm_90", contracted).fused > 0


def test_weights_are_loaded_in_wide_words_and_read_once_in_one_pass() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        found = launches("codebook", 4, 64, dtype)
        assert len(found) == 1
        assert compile_launch(found[0], "sm_90").widths["load weight_ptr"] == 128
