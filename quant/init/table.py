"""The initialisations by name."""

from __future__ import annotations

from quant.init.base import Init
from quant.init.eora import EoRA
from quant.init.loftq import LoftQ
from quant.init.lq import LQ
from quant.init.plain import Plain
from quant.init.qpissa import QPiSSA

__all__ = ["INITS"]

INITS: dict[str, Init] = {"plain": Plain(), "loftq": LoftQ(), "qpissa": QPiSSA(), "eora": EoRA(), "lq": LQ()}
