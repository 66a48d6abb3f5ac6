"""x @ w.T for many rows by torch's own semi-structured product: a weight with at most two of every four non-zero.

Nothing here is a kernel of this package. torch hands the product to cuSPARSELt or CUTLASS, which use the sparse matrix
unit of NVIDIA GPUs from compute capability 8.0 on; figures of it are to carry `LABEL`. Elsewhere it is refused, with
the reason, and nothing else is computed in its stead.
Source: `torch.sparse.to_sparse_semi_structured`; Mishra et al. 2021, arXiv 2104.08378.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LABEL", "SemiStructured", "refusal", "semi_structured", "semi_structured_matmul"]

LABEL = "torch semi-structured"
DTYPES = (torch.float16, torch.bfloat16)
STEPS = {"cusparselt": (16, 16), "cutlass": (32, 64)}  # n and k must be multiples of these


@dataclass(frozen=True, eq=False)
class SemiStructured:
    """A weight [n, k] as torch compressed it for `backend`, "cusparselt" or "cutlass"."""

    weight: Tensor
    backend: str

    @property
    def label(self) -> str:
        """What a table is to call products with it."""
        return f"{LABEL} ({self.backend})"


def semi_structured(weight: Tensor) -> SemiStructured:
    """Compress `weight` [n, k], float16 or bfloat16, on a GPU. It waits for the device.

    Raises ValueError with the reason where torch cannot, and for a weight that has more than two of four non-zero.
    """
    if (reason := refusal(weight)) is not None:
        raise ValueError(reason)
    full = torch.count_nonzero(weight.reshape(-1, 4), dim=1) > 2
    if bool(full.any()):
        row, cell = divmod(int(full.nonzero()[0]), weight.shape[1] // 4)
        values = weight[row, 4 * cell : 4 * cell + 4].tolist()
        raise ValueError(f"more than two of four weights are not zero: {values} at [{row}, {4 * cell}]; prune it first")
    backend = _backend(weight.device)
    kind = {
        "cusparselt": torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
        "cutlass": torch.sparse.SparseSemiStructuredTensorCUTLASS,
    }[backend]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor", UserWarning)
        return SemiStructured(kind.from_dense(weight.detach().contiguous()), backend)


def semi_structured_matmul(x: Tensor, weight: SemiStructured) -> Tensor:
    """x [..., k] @ w.T -> [..., n]; x has the weight's dtype. Raises TypeError for another one."""
    if x.dtype != weight.weight.dtype:
        raise TypeError(f"x must be {weight.weight.dtype} like the weight, got {x.dtype}")
    n, k = weight.weight.shape
    y: Tensor = torch.nn.functional.linear(x.reshape(-1, k).contiguous(), weight.weight)
    return y.reshape(*x.shape[:-1], n)


def refusal(weight: Tensor) -> str | None:
    """Why torch cannot take `weight` [n, k] here, or None. Values are not looked at."""
    if not weight.is_cuda or torch.version.hip is not None:
        where = "an AMD GPU" if weight.is_cuda else f"{weight.device}"
        return f"the weight is on {where}: {LABEL} products need an NVIDIA GPU; use two_of_four_matmul"
    if weight.ndim != 2:
        return f"the weight must be [n, k], got {list(weight.shape)}"
    if weight.dtype not in DTYPES:
        return f"the weight must be float16 or bfloat16 for {LABEL} products, got {weight.dtype}"
    if (backend := _backend(weight.device)) == "":
        name = torch.cuda.get_device_name(weight.device)
        return f"torch has no semi-structured product for {name}: cuSPARSELt is missing, and CUTLASS is for 8.x alone"
    down, across = STEPS[backend]
    n, k = weight.shape
    if not n or not k or n % down or k % across:
        return f"{backend} needs n and k to be multiples of {down} and {across}, got {[n, k]}"
    return None


def _backend(device: torch.device) -> str:
    """The library that torch would use on a GPU, "" where there is none."""
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8 and torch.backends.cusparselt.is_available():
        return "cusparselt"
    return "cutlass" if major == 8 else ""
