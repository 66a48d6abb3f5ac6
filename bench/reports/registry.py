"""The table of methods from the registry itself: what each takes, needs and offers, and where it comes from.

One row a method of `quant.methods` and what it must know (its settings differ by name); bits are those stored for a
256 x 256 matrix of N(0, 1), counted; of a rule over a model, the mean of `LAYERS` such matrices of scales from 1 to
1/4. "kernel" says what the Triton kernels do with the stored weight; "merges" whether an adapter on pooled
inputs (QA-LoRA) merges into it exactly, its codes untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import fmean

import torch
from tabulate import tabulate
from torch import Tensor

from bench.reports.page import markdown_long
from quant import FAMILIES, METHODS, Calibration, QuantizedTensor, Quantizer
from quant.engines import ENGINES
from quant.formats import Composed
from quant.peers import PEERS
from quant.pooled import pooled_group

__all__ = ["methods_table", "peers_table"]

N = K = 256
PREPARED = ", x prepared"
LAYERS = 16  # of the model that a rule over a model sees
HEADINGS = ("method", "names", "family", "bits/weight", "calibration", "kernel", "merges", "source")


@dataclass(frozen=True)
class Facts:
    """What one registered name has to say for itself."""

    bits: float
    kernel: str
    merges: bool


def methods_table() -> str:
    """Markdown: every method by family, in the order of registration."""
    groups: dict[tuple[int, type, frozenset[str]], list[str]] = {}
    for name, method in METHODS.items():
        groups.setdefault((FAMILIES.index(method.family), type(method), method.needs), []).append(name)
    rows = [row(names) for _, names in sorted(groups.items(), key=lambda item: item[0][0])]
    return str(tabulate(rows, HEADINGS, "pipe", disable_numparse=True))


def row(names: list[str]) -> list[str]:
    methods = [METHODS[name] for name in names]
    facts = [facts_of(method) for method in methods]
    bits = sorted(f.bits for f in facts)
    kernels = list(dict.fromkeys(f.kernel for f in facts))
    merging = sum(f.merges for f in facts)
    return [
        type(methods[0]).__name__,
        ", ".join(f"`{name}`" for name in names),
        methods[0].family,
        f"{bits[0]:.3g}" if len(bits) == 1 else f"{bits[0]:.3g} to {bits[-1]:.3g}",
        ", ".join(need.replace("_", " ") for need in sorted(methods[0].needs)) or "none",
        " or ".join(kernels),
        "no" if not merging else "yes" if merging == len(names) else "some",
        markdown_long(methods[0].source),
    ]


def facts_of(method: Quantizer) -> Facts:
    weights = layers()
    known = dict.fromkeys(weights, Calibration.neutral(N, K))
    fitted = method.for_layers(weights, known)
    chosen = list(weights) if any(fitted[name] != method for name in weights) else list(weights)[:1]
    stored = [fitted[name].quantize(weights[name], known[name]) for name in chosen]
    return Facts(fmean(s.bits_per_weight for s in stored), kernel_of(stored[0]), merges(stored[0]))


@cache
def layers() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {str(i): torch.randn(N, K, generator=generator) * 4.0 ** (-i / (LAYERS - 1)) for i in range(LAYERS)}


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
