"""The table of methods from the registry itself: what each takes, needs and offers, and where it comes from.

One row a method of `quant.methods` (its settings differ by name); bits are those stored for a 256 x 256 matrix of
N(0, 1), counted. "kernel" says what the Triton kernels do with the stored weight; "merges" whether an adapter on pooled
inputs (QA-LoRA) merges into it exactly, its codes untouched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tabulate import tabulate

from bench.reports.escape import markdown_text
from quant import FAMILIES, METHODS, Calibration, QuantizedTensor, Quantizer
from quant.engines import ENGINES
from quant.formats import Composed
from quant.peers import PEERS
from quant.pooled import pooled_group

__all__ = ["methods_table", "peers_table"]

N = K = 256
PREPARED = ", x prepared"
NAMES = 4  # so many names of one method are written out
HEADINGS = ("method", "names", "family", "bits/weight", "calibration", "kernel", "merges", "source")


@dataclass(frozen=True)
class Facts:
    """What one registered name has to say for itself."""

    bits: float
    kernel: str
    merges: bool


def methods_table() -> str:
    """Markdown: every method by family, in the order of registration."""
    groups: dict[tuple[int, type], list[str]] = {}
    for name, method in METHODS.items():
        groups.setdefault((FAMILIES.index(method.family), type(method)), []).append(name)
    rows = [row(names) for _, names in sorted(groups.items(), key=lambda item: item[0][0])]
    return str(tabulate(rows, HEADINGS, "pipe", disable_numparse=True))


def row(names: list[str]) -> list[str]:
    methods = [METHODS[name] for name in names]
    facts = [facts_of(method) for method in methods]
    bits = sorted(f.bits for f in facts)
    needs = sorted(set().union(*(m.needs for m in methods)))
    kernels = list(dict.fromkeys(f.kernel for f in facts))
    merging = sum(f.merges for f in facts)
    more = len(names) - NAMES
    return [
        type(methods[0]).__name__,
        ", ".join(f"`{name}`" for name in names[:NAMES]) + (f" and {more} more" if more > 0 else ""),
        methods[0].family,
        f"{bits[0]:.3g}" if len(bits) == 1 else f"{bits[0]:.3g} to {bits[-1]:.3g}",
        ", ".join(need.replace("_", " ") for need in needs) or "none",
        " or ".join(kernels),
        "no" if not merging else "yes" if merging == len(names) else "some",
        markdown_text(methods[0].source),
    ]


def facts_of(method: Quantizer) -> Facts:
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(0))
    known = {"": Calibration.neutral(N, K)}
    stored = method.for_layers({"": weight}, known)[""].quantize(weight, known[""])
    return Facts(stored.bits_per_weight, kernel_of(stored), merges(stored))


def kernel_of(stored: QuantizedTensor) -> str:
    """What runs on a GPU: fused kernels, those of the weight inside, or a product with the decoded weight."""
    device = torch.device("cuda")
    if isinstance(stored, Composed):
        inner = kernel_of(stored.inner)
        return inner if inner.endswith(PREPARED) else inner + PREPARED
    return "none" if ENGINES["triton"].refuses(stored, torch.bfloat16, device) else "fused"


def merges(stored: QuantizedTensor) -> bool:
    """Whether there are zero points that take an adapter on pooled inputs."""
    try:
        pooled_group(stored)
    except (TypeError, ValueError):
        return False
    return True


def peers_table() -> str:
    """Markdown: the installed libraries' methods, and what each is held against."""
    rows = [
        [f"`{name}`", f"{p.package} {p.settings()['version']}", f"`{p.ours}`", bits_of(p)] for name, p in PEERS.items()
    ]
    return str(tabulate(rows, ("peer", "library", "ours", "bits/weight"), "pipe", disable_numparse=True))


def bits_of(peer: Quantizer) -> str:
    stored = peer.quantize(torch.randn(N, K, generator=torch.Generator().manual_seed(0)))
    return f"{stored.bits_per_weight:.3g}"
