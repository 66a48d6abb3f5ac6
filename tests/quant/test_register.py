"""The tables of methods and formats: what may enter them, and that settings are frozen."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from quant import FORMATS, METHODS, QuantizedTensor, Quantizer, register
from quant.formats import E8M0, Affine, Codebook, Dense, FixedCodebook, Integers, Reshaped
from quant.methods.double import DynamicMap
from quant.methods.nf4 import NF
from quant.methods.none import Unquantized
from quant.methods.uniform import Uniform


@dataclasses.dataclass(frozen=True)
class Nameless(Quantizer):
    kind: str = "uniform"

    @property
    def family(self) -> str:
        return self.kind

    def _quantize(self, weight: Tensor, calibration: Any) -> QuantizedTensor:
        return Unquantized().quantize(weight)


@dataclasses.dataclass(frozen=True)
class Named(Nameless):
    source = "here"


def test_register_refuses_what_would_not_show():
    cases: list[tuple[str, Quantizer, str]] = [
        ("Upper-case", Named(), "lower-case words joined by hyphens"),
        ("", Named(), "lower-case words"),
        ("a--b", Named(), "lower-case words"),
        ("uniform-int4-g64", Uniform(3), "already registered with other settings"),
        ("a-new-name", Nameless(), "names no source"),
        ("a-new-name", Named("colourful"), "unknown family 'colourful'; known: none, uniform"),
    ]
    for name, quantizer, text in cases:
        with pytest.raises(ValueError, match=text):
            register(name, quantizer)
    assert "a-new-name" not in METHODS


def test_registering_again_with_equal_settings_is_no_error():
    assert register("uniform-int4-g64", Uniform(4, 64)) == METHODS["uniform-int4-g64"]


def test_a_format_name_is_given_once():
    with pytest.raises(ValueError, match="format 'dense' is already Dense"):
        type("Other", (QuantizedTensor,), {}, format="dense")
    assert FORMATS["dense"] is Dense


def test_settings_are_frozen_and_nested_quantizers_are_settings():
    method = NF(scale=DynamicMap(128))
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.bits = 3
    assert method.settings() == {
        "quantizer": "NF",
        "bits": 4,
        "group": 64,
        "scale": {"quantizer": "DynamicMap", "group": 128},
        "against": "original",
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.quantize(torch.ones(2, 64)).bits = 3


def test_formats_of_this_package_are_registered_by_their_names():
    for cls in (Dense, Integers, Affine, Codebook, FixedCodebook, Reshaped, E8M0):
        assert FORMATS[cls.format] is cls
