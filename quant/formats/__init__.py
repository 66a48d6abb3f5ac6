"""How a weight is stored; how the stored values are chosen is in `quant.methods`."""

from quant.formats.affine import Affine, Integers, SignedAffine
from quant.formats.bitmask import BitMask
from quant.formats.codebook import Codebook, FixedCodebook
from quant.formats.composed import Composed, Scaled
from quant.formats.dense import Dense
from quant.formats.e8m0 import E8M0
from quant.formats.n_of_m import NofM
from quant.formats.reshaped import Reshaped
from quant.formats.rounded import RoundedInputs
from quant.formats.rows import KeptRows
from quant.formats.shifted import Shifted

__all__ = [
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
    "RoundedInputs",
    "Scaled",
    "Shifted",
    "SignedAffine",
]
