"""How a weight is stored; how the stored values are chosen is in `quant.methods`."""

from quant.formats.affine import Affine, Integers, SignedAffine
from quant.formats.bitmask import BitMask
from quant.formats.codebook import Codebook, FixedCodebook
from quant.formats.composed import Composed, Scaled
from quant.formats.dense import Dense
from quant.formats.e4m3 import E4M3
from quant.formats.e8m0 import E8M0
from quant.formats.n_of_m import NofM
from quant.formats.reshaped import Reshaped
from quant.formats.rotated import Rotated
from quant.formats.rounded import RoundedInputs
from quant.formats.rows import KeptRows
from quant.formats.shifted import Shifted
from quant.formats.vectors import Vectors
from quant.formats.with_outliers import WithOutliers

__all__ = [
    "E4M3",
    "E8M0",
    "Affine",
    "BitMask",
    "Codebook",
    "Composed",
    "Dense",
    "FixedCodebook",
    "Integers",
    "KeptRows",
    "NofM",
    "Reshaped",
    "Rotated",
    "RoundedInputs",
    "Scaled",
    "Shifted",
    "SignedAffine",
    "Vectors",
    "WithOutliers",
]
