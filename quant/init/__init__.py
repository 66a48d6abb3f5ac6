"""Starts of an adapter that know the quantizer: `INITS` by name, and a model that is quantized and adapted with one."""

from quant.init.base import Init, Start
from quant.init.eora import EoRA
from quant.init.loftq import LoftQ
from quant.init.lq import LQ
from quant.init.model import quantize_with_lora
from quant.init.plain import Plain
from quant.init.qpissa import QPiSSA
from quant.init.sequence import start_in_sequence
from quant.init.table import INITS

__all__ = [
    "INITS",
    "LQ",
    "EoRA",
    "Init",
    "LoftQ",
    "Plain",
    "QPiSSA",
    "Start",
    "quantize_with_lora",
    "start_in_sequence",
]
