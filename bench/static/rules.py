"""Rules that every kernel keeps, whatever the baseline says, and the exemptions from them, each with its reason.

spills     no register is spilled
shared     shared memory is within the chip's limit
division   a quantizer has no inexact division: its codes are to be equal to the reference's bit for bit
contract   and no multiply-add that rounds once, for the same reason
matrix     a product of 16 and more rows uses the matrix unit, except in float32, which NVIDIA's cannot multiply exactly
wide       a tensor that holds an eighth or more of a launch's bytes is read and written 16 bytes a lane; NVIDIA only,
           since AMD's code does not tell tensors apart and its warps are twice as wide: the baseline alone watches them
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass

from bench.static.figures import Figures
from kernels.aot import TARGETS

__all__ = ["EXEMPTIONS", "MATRIX", "QUANTIZERS", "Exemption", "broken", "broken_rules"]

MATRIX = tuple(
    f"*/{kernel}/*"
    for kernel in ("_small", "_matmul", "_grad", "_lora", "_sparse_small", "_kept_small", "_blocks_small")
)  # they promise it
QUANTIZERS = ("*_quantize/*", "w8a8_matmul/_round/*")


@dataclass(frozen=True)
class Exemption:
    """A rule that cases matching `pattern` need not keep; `wide load codes_ptr` names the access that is excused."""

    rule: str
    pattern: str
    reason: str


COPIED = (
    "the compiler for sm_90 copies what goes straight into matrix operands in 4 or 8 bytes a lane, sectors whole still"
)
EIGHT = "eight warps share the 2048 bytes of codes of a step: 8 a lane are all there are"
PAIRED = "codes and places of four weights are read into the thread that puts them together: 4 and 2 bytes a lane"
EIGHTS = "eight codes and their places go through a thread together: 4 bytes of codes a lane, and 1 of places at a time"
ACROSS = "places of 3 bits lie across words: their bytes are gathered one by one"
EIGHTH = "a lane reads the bytes of the mask whose eight columns each it takes: 2 of them, or 1 in float32"
ANYWHERE = "the codes that a byte of the mask keeps begin anywhere: their bytes are gathered one by one"
PLACED = "each kept value lies where the bits before it say: they are gathered one by one"
EXEMPTIONS = (
    Exemption("wide load codes_ptr", "*-w3/*", "3-bit codes lie across words: their bytes are gathered one by one"),
    Exemption(
        "wide load codes_ptr",
        "*_dequantize/*",
        "decoding is bound by its stores: a lane reads the codes of the 16-byte words that it writes",
    ),
    Exemption("wide load codes_ptr", "affine_matmul/_small/*", COPIED),
    Exemption("wide load codes_ptr", "codebook_matmul/_small/*-rows/*", COPIED),
    Exemption(
        "wide load codes_ptr", "*-fp32/*", "float32 is bound by its multiplications, and wider tiles would spill"
    ),
    Exemption("wide load codes_ptr", "affine_lora/_lora/*", COPIED),
    Exemption("wide load codes_ptr", "affine_grad/_grad/*-w8/*", COPIED),
    Exemption("wide load codes_ptr", "codebook_lora/_lora/*/c2", EIGHT),
    Exemption("wide load codes_ptr", "pairs_lora/_lora/*/c2", EIGHT),
    Exemption(
        "wide load codes_ptr", "pairs_grad/_grad/*", "four warps share the 1024 bytes of codes of a step: 8 a lane"
    ),
    Exemption("wide load values_ptr", "two_of_four_matmul/*-w4/*", PAIRED),
    Exemption("wide load indices_ptr", "two_of_four_matmul/*-w4/*", PAIRED),
    Exemption("wide load values_ptr", "bitmask_matmul/*", PLACED),
    Exemption("wide load values_ptr", "bitmask_dequantize/*", PLACED),
    Exemption("wide load values_ptr", "bitmask_coded_matmul/*", ANYWHERE),
    Exemption("wide load indices_ptr", "bitmask_coded_matmul/*", EIGHTH),
    Exemption("wide load values_ptr", "n_of_m_matmul/*/m*-bf16-*/*", EIGHTS),
    Exemption("wide load indices_ptr", "n_of_m_matmul/*", ACROSS),
    Exemption(
        "wide load values_ptr", "blocks_*-w3/*", "3-bit codes lie across words: their bytes are gathered one by one"
    ),
    Exemption("wide load levels_ptr", "blocks_*-rows/*", "of a table for each block every code looks up its own level"),
    Exemption(
        "wide store out_ptr", "blocks_matmul/_add_up/*", "a lane adds four values of two parts: 8 bytes of bfloat16"
    ),
    Exemption(
        "wide store codes_ptr",
        "*_quantize/*",
        "packing leaves a byte of codes a lane, a third or less of what is moved",
    ),
    Exemption("contract", "w8a8_matmul/_round/*", "its one multiply-add is by zero, which is exact in either way"),
)


def broken(case: str, target: str, figures: Figures) -> Iterator[str]:
    """Sentences, one for each rule that this case breaks on this target without being exempt."""
    for rule, sentence in broken_rules(case, target, figures):
        if not any(rule == e.rule and fnmatch.fnmatchcase(case, e.pattern) for e in EXEMPTIONS):
            yield sentence


def broken_rules(case: str, target: str, figures: Figures) -> Iterator[tuple[str, str]]:
    """Every rule that is broken, exempt or not, and a sentence that says how."""
    limit = TARGETS[target].shared_limit
    if figures["spills"]:
        yield "spills", f"{figures['spills']} spills: use smaller tiles or more warps"
    if figures["shared"] > limit:
        yield "shared", f"shared memory {figures['shared']} exceeds {limit} bytes: use smaller tiles or fewer stages"
    if any(fnmatch.fnmatchcase(case, pattern) for pattern in QUANTIZERS):
        if figures["inexact_divisions"]:
            yield "division", f"{figures['inexact_divisions']} inexact divisions in a quantizer: use tl.div_rn"
        if figures["fused"]:
            yield "contract", f"{figures['fused']} fused multiply-adds in a quantizer: use enable_fp_fusion=False"
    exact = "-fp32" in case and TARGETS[target].gpu.backend == "cuda"
    if any(fnmatch.fnmatchcase(case, pattern) for pattern in MATRIX) and not figures["matrix"] and not exact:
        yield "matrix", "no matrix instructions in a product"
    if TARGETS[target].gpu.backend == "cuda":
        for access, bits in figures["widths"].items():
            if access.split()[1] in figures["large"] and bits < 128:
                yield f"wide {access}", f"{access} of {bits // 8} bytes a lane instead of 16"
