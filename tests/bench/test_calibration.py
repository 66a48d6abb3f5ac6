"""The calibration of a setting: gathered once for all that decides it, kept whole, read back to the bit."""

from __future__ import annotations

import copy
import dataclasses
import sys

import pytest
import torch

from bench import baseline, calibration
from bench.baseline import CALIBRATION_FIELDS, setting_of, with_logistic_head
from bench.calibration import calibration_of
from bench.models import cache_folder
from bench.protocol import QUICK
from quant import METHODS
from quant.calibrate import INPUTS, StoredCalibration
from quant.core import STATISTICS

PAIRS = [("tiny-encoder", "alice-labels"), ("tiny-causal", "alice")]
INPUT, GRADIENT = METHODS["gptq-int4-g64"], METHODS["squeezellm-3bit"]
OTHER = {
    "calibration_texts": 9,
    "calibration_windows": 3,
    "calibration_tokens": 16,
    "calibration_gradient_tokens": 40,
    "calibration_corpora": ("alice",),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path))
    baseline._LAST.clear()
    baseline.setting_of.cache_clear()
    yield
    baseline._LAST.clear()
    baseline.setting_of.cache_clear()


@pytest.fixture
def gathered(monkeypatch):
    """Every gathering: what was asked for, and what it found, gathered once more and held in memory."""
    calls = []
    real = calibration.calibrate

    def spy(module, batches, needs, *, folder, **options):
        calls.append((tuple(needs), real(module, batches, needs, **options)))
        return real(module, batches, needs, folder=folder, **options)

    monkeypatch.setattr(calibration, "calibrate", spy)
    return calls


def same(one, other):
    """Whether two calibrations of a model are the same numbers, bit for bit."""
    assert list(one) == list(other)
    for name in one:
        a, b = vars(one[name]), vars(other[name])
        assert a["n_samples"] == b["n_samples"]
        for statistic in STATISTICS:
            x, y = a[statistic], b[statistic]
            if (x is None) != (y is None) or (x is not None and not (x.dtype == y.dtype and torch.equal(x, y))):
                return False
    return True


@pytest.mark.parametrize("pair", PAIRS)
def test_a_calibration_is_gathered_once_and_read_back_as_it_was(gathered, pair):
    setting = setting_of(*pair, QUICK, 0)
    assert INPUT.needs == {"second_moment"}
    assert GRADIENT.needs == {"fisher"}
    first = calibration_of(setting, INPUT)
    assert [needs for needs, _ in gathered] == [INPUTS]
    assert same(first, gathered[0][1])
    again = calibration_of(setting_of(*pair, QUICK, 0), INPUT)
    assert same(first, again)
    calibration_of(setting, METHODS["wanda-50"])  # another method that needs inputs
    assert len(gathered) == 1
    fisher = calibration_of(setting, GRADIENT)
    assert [needs for needs, _ in gathered] == [INPUTS, ("fisher",)]
    assert same(fisher, gathered[1][1])
    both = calibration_of(setting, INPUT, also=GRADIENT.needs)
    assert len(gathered) == 2
    for name in first:
        assert torch.equal(both[name].second_moment, first[name].second_moment)
        assert torch.equal(both[name].fisher, fisher[name].fisher)
        assert both[name].n_samples == first[name].n_samples > 0
    assert calibration_of(setting, METHODS["nf4-g64"]) is None
    assert len(gathered) == 2


@pytest.mark.parametrize("field", CALIBRATION_FIELDS)
@pytest.mark.parametrize("pair", PAIRS)
def test_another_size_of_calibration_is_another_entry(gathered, pair, field):
    for method in (INPUT, GRADIENT):
        calibration_of(setting_of(*pair, QUICK, 0), method)
    changed = setting_of(*pair, dataclasses.replace(QUICK, **{field: OTHER[field]}), 0)
    assert getattr(changed.protocol, field) != getattr(QUICK, field)
    for count, method in ((3, INPUT), (4, GRADIENT)):
        found = calibration_of(changed, method)
        assert len(gathered) == count
        assert same(found, gathered[-1][1])
    assert len(list((cache_folder() / "calibration").iterdir())) == 4


def test_what_decides_nothing_of_it_gathers_nothing(gathered):
    for protocol in (QUICK, dataclasses.replace(QUICK, speed_rounds=QUICK.speed_rounds + 1)):
        for method in (INPUT, GRADIENT):
            calibration_of(setting_of(*PAIRS[0], protocol, 0), method)
    assert len(gathered) == 2


@pytest.mark.parametrize("pair", PAIRS)
def test_a_merged_model_is_calibrated_by_itself(gathered, pair):
    setting = setting_of(*pair, QUICK, 0)
    merged = copy.deepcopy(with_logistic_head(setting))
    with torch.no_grad():
        for p in merged.parameters():
            p.mul_(1.5)
    plain, moved = calibration_of(setting, INPUT), calibration_of(setting, INPUT, merged)
    assert len(gathered) == 2
    assert same(moved, gathered[1][1])
    assert not same(moved, plain)
    assert same(calibration_of(setting, INPUT), plain)
    assert same(calibration_of(setting, INPUT, merged), moved)
    assert len(gathered) == 2


def test_one_that_broke_off_is_not_kept(gathered, monkeypatch):
    setting = setting_of(*PAIRS[1], QUICK, 0)
    with monkeypatch.context() as patch:
        written = []

        def breaks(tensors, file):
            written.append(file)
            file.touch()
            if len(written) == 3:
                raise OSError("no space left on device")

        patch.setattr(sys.modules[StoredCalibration.__module__], "save_file", breaks)
        with pytest.raises(OSError, match="no space left"):
            calibration_of(setting, INPUT)
    assert len(written) == 3
    assert not list((cache_folder() / "calibration").iterdir())
    whole = calibration_of(setting, INPUT)
    assert same(whole, gathered[-1][1])
