"""The rate-matched table: known gaps on a Gaussian, the bound of Laplacian weights, records that resume."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from bench.rates import __main__ as command
from bench.rates import sources
from bench.rates.measure import measure, water_filling
from bench.rates.sources import source
from bench.rates.store import run
from bench.reports import rates
from bench.reports.lines import read_lines
from bench.reports.rates import FILE
from quant import METHODS, Calibration, UnsupportedError
from quant.methods.none import Unquantized

GAUSSIAN, LAPLACE = source("gaussian"), source("laplace")

# Rate-matched constants on N(0, 1), from the definitions with a million samples or in closed form: stored bits a
# weight, and 10 log10(MSE 4**bits)
KNOWN = {
    "nf4-g64-dq": (4.127, 4.12),
    "nf4-g64": (4.5, 6.36),
    "kmeans-4bit-tensor": (4.0, 3.86),
    "uniform-int4-float-zero-g64": (4.5, 6.14),
    "fp4-g64-dq": (4.127, 5.33),  # E2M1: 0.011168 with exact scales
}


@pytest.mark.parametrize("method", KNOWN)
def test_gaps_on_a_gaussian_are_the_known_ones(method):
    bits, gap = KNOWN[method]
    found = measure(method, METHODS[method], GAUSSIAN)
    assert found["bits"] == pytest.approx([bits] * 3, abs=1e-3)
    assert found["gap_db"] == pytest.approx([gap] * 3, abs=0.06)  # 262 144 weights: the MSE to 1 %


def test_entropy_coding_closes_the_gap_to_a_quarter_of_a_bit():
    ecsq, lloyd_max = (measure(m, METHODS[m], GAUSSIAN) for m in ("ecsq-4bit", "kmeans-4bit-tensor"))
    assert min(ecsq["gap_db"]) > 1.53 - 0.03
    assert max(ecsq["gap_db"]) < 1.53 + 0.25  # 0.03 bits of 262 144 weights are tables and lanes
    assert np.mean(lloyd_max["gap_db"]) - np.mean(ecsq["gap_db"]) > 2.0
    # levels of equal code length lose what their unequal use gives back: 3.7653 bits instead of 4
    assert lloyd_max["entropy_bits"] == pytest.approx([3.7653] * 3, abs=0.01)
    assert lloyd_max["entropy_gap_db"][0] == pytest.approx(lloyd_max["gap_db"][0] - 6.0206 * (4 - 3.7653), abs=0.06)


def test_nf4_with_ideal_entropy_coding():
    found = measure("nf4-g64-dq", METHODS["nf4-g64-dq"], GAUSSIAN)
    assert found["entropy_bits"] == pytest.approx([4.011] * 3, abs=0.004)
    assert found["entropy_gap_db"] == pytest.approx([3.42] * 3, abs=0.06)


def blahut_arimoto(x: np.ndarray, p: np.ndarray, slope: float, steps: int = 400) -> tuple[float, float]:
    """(rate in bits, distortion) of the source p on the grid x, squared error, at dR/dD = -slope."""
    kernel = np.exp(-slope * (x[:, None] - x[None]) ** 2)
    q = p.copy()
    for _ in range(steps):
        q = q * ((p / (kernel @ q)) @ kernel)
    joint = p[:, None] * kernel * q / (kernel @ q)[:, None]
    distortion = float((joint * (x[:, None] - x[None]) ** 2).sum())
    ratio = np.where(joint > 0, joint / (p[:, None] * (joint.sum(0) + 1e-300)), 1.0)
    return float((joint * np.log2(ratio)).sum()), distortion


@pytest.mark.parametrize(("bits", "slack"), [(2.0, 0.12), (3.0, 0.03)])
def test_the_laplacian_bound_is_just_below_the_rate_distortion_function(bits, slack):
    x = np.linspace(-9, 9, 721)
    p = np.exp(-(2**0.5) * np.abs(x))
    p /= p.sum()
    rate, distortion = blahut_arimoto(x, p, 1 / (2 * LAPLACE.bound(1.0, bits)))
    assert rate == pytest.approx(bits, abs=0.1)
    gap = 10 * math.log10(distortion / LAPLACE.bound(1.0, rate))
    assert -0.01 < gap < slack


def test_the_sources_are_what_they_say():
    for drawn, kurtosis in ((GAUSSIAN, 3.0), (LAPLACE, 6.0)):
        samples = list(drawn.draw())
        assert [tuple(s.shape) for s in samples] == [sources.SHAPE] * sources.SEEDS
        assert not torch.equal(samples[0], samples[1])
        w = torch.cat(samples).double()
        assert float(w.square().mean()) == pytest.approx(1, abs=0.01)
        assert float(w.pow(4).mean()) == pytest.approx(kurtosis, rel=0.05)
    with pytest.raises(ValueError, match="unknown source 'cauchy'; known: gaussian, laplace, model"):
        source("cauchy")


def test_weights_of_no_model_have_no_rows_of_what_needs_one_and_refusals_are_kept():
    calibrated = measure("gptq-int4-g64", METHODS["gptq-int4-g64"], GAUSSIAN)
    assert (calibrated["status"], calibrated["calibration"]) == ("skipped", "second moment")
    rule = measure("prune-50-global", METHODS["prune-50-global"], GAUSSIAN)
    assert (rule["status"], rule["calibration"]) == ("skipped", None)
    assert measure("prune-50", METHODS["prune-50"], GAUSSIAN)["status"] == "ok"
    found = measure("nf4-g64", METHODS["nf4-g64"], GAUSSIAN)
    assert (found["status"], found["calibration"], found["output_gap_db"]) == ("ok", None, [None] * 3)

    class Refusing(Unquantized):
        def _quantize(self, weight, calibration):
            raise UnsupportedError("not today")

    found = measure("refusing", Refusing("float16"), GAUSSIAN)
    assert (found["status"], found["reason"]) == ("unsupported", "not today")


def correlated(n=64, k=128):
    """Weights of a model whose inputs are correlated, a few of them ten times the others."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4 * k, k, generator=generator) @ torch.randn(k, k, generator=generator)
    x[:, ::16] *= 10
    known = Calibration(x.T @ x / len(x), x.abs().mean(0), torch.rand(n, k, generator=generator), len(x))
    weight = torch.randn(n, k, generator=generator)
    return dataclasses.replace(GAUSSIAN, name="toy", draw=lambda: iter([weight]), known=lambda _: [known])


def test_a_calibrated_method_is_given_the_calibration_of_the_model():
    """Feedback leaves more error in the weights and less in the outputs than rounding, and Fisher moves the levels."""
    toy = correlated()
    gptq, plain = (measure(m, METHODS[m], toy) for m in ("gptq-int4-g64", "uniform-int4-g64"))
    assert gptq["relative_mse"][0] > 1.05 * plain["relative_mse"][0]
    assert gptq["output_error"][0] < 0.8 * plain["output_error"][0]
    assert plain["output_gap_db"][0] - gptq["output_gap_db"][0] == pytest.approx(
        10 * math.log10(plain["output_error"][0] / gptq["output_error"][0]), rel=1e-6
    )
    assert gptq["output_gap_db"][0] > 0
    weighted, levels = (measure(m, METHODS[m], toy) for m in ("squeezellm-4bit", "kmeans-4bit-row"))
    assert weighted["relative_mse"] != levels["relative_mse"]
    assert weighted["calibration"] == "fisher"


@pytest.mark.parametrize("bits", [0.5, 2.0, 4.0])
def test_reverse_water_filling_spends_the_bits_and_is_shannons_bound_of_equal_components(bits):
    assert water_filling(torch.full((16,), 3.0), bits) == pytest.approx(3.0 / 4**bits, rel=1e-9)
    v = torch.logspace(-6, 1, 40, dtype=torch.float64)
    low, high = 0.0, float(v.max())
    for _ in range(200):  # the level by bisection on the bits that it takes
        level = (low + high) / 2
        spent = float((0.5 * (v / level).log2()).clamp(min=0).mean())
        low, high = (level, high) if spent > bits else (low, level)
    assert water_filling(v, bits) == pytest.approx(float(v.clamp(max=level).mean()), rel=1e-6)


def test_pruned_weights_that_are_not_quantized_have_a_table_of_their_own(tmp_path):
    run(tmp_path, ["prune-50", "prune-50-int4-g64", "nf4-g64", "gptq-int4-g64"], ["gaussian"], 1)
    main, pruned = rates.tables(read_lines(tmp_path / FILE))
    assert set(main.frame["method"]) == {"prune-50-int4-g64", "nf4-g64"}
    assert (pruned.name, pruned.frame["method"].tolist()) == ("rates-gaussian-pruned", ["prune-50"])


def test_a_method_that_fails_costs_only_its_own_figures():
    class Failing(Unquantized):
        def _quantize(self, weight, calibration):
            raise ZeroDivisionError("division by zero")

    found = measure("failing", Failing("float16"), GAUSSIAN)
    assert (found["status"], found["reason"]) == ("error", "ZeroDivisionError: division by zero")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("rates")
    run(out, ["nf4-g64", "kmeans-4bit-tensor", "fp32"], ["gaussian", "laplace"], 1)
    return out


def test_what_is_on_record_is_not_measured_again(folder, monkeypatch):
    before = (folder / FILE).read_bytes()
    monkeypatch.setattr("bench.rates.store.ProcessPoolExecutor.map", lambda *_: iter(()))
    again = run(folder, ["nf4-g64", "kmeans-4bit-tensor", "fp32"], ["gaussian", "laplace"], 1)
    assert (folder / FILE).read_bytes() == before
    assert again == read_lines(folder / FILE)


def test_records_of_other_methods_stay(folder):
    before = read_lines(folder / FILE)
    run(folder, ["nf4-g64"], ["gaussian"], 1)
    key = lambda record: record["key"]  # noqa: E731
    assert sorted(read_lines(folder / FILE), key=key) == sorted(before, key=key)


def test_tables_are_made_from_the_records_and_ordered_by_the_gap(folder):
    made = rates.tables(read_lines(folder / FILE))
    assert [t.name for t in made] == ["rates-gaussian", "rates-laplace"]
    assert made[0].frame["method"].tolist() == ["kmeans-4bit-tensor", "nf4-g64"]  # fp32 is exact: no gap
    for table in made:
        assert table.frame["gap_db"].is_monotonic_increasing
        assert (table.frame["gap_db_low"] <= table.frame["gap_db"]).all()
    first = next(r for r in read_lines(folder / FILE) if (r["source"], r["method"]) == ("gaussian", "nf4-g64"))
    shown = made[0].frame.set_index("method").loc["nf4-g64"]
    assert shown["gap_db"] == pytest.approx(np.mean(first["gap_db"]))
    assert (shown["gap_db_low"], shown["gap_db_high"]) == (min(first["gap_db"]), max(first["gap_db"]))
    paths = rates.write(folder)
    assert [p.name for p in paths[:3]] == ["rates-gaussian.csv", "rates-gaussian.md", "rates-gaussian.tex"]
    assert "gap (dB)" in paths[1].read_text()


def test_a_line_that_is_no_record_is_named(folder, tmp_path):
    (tmp_path / FILE).write_text(json.dumps(read_lines(folder / FILE)[0]) + "\n{\n")
    with pytest.raises(ValueError, match=r"rates\.jsonl, line 2: no record"):
        read_lines(tmp_path / FILE)


def test_a_pattern_that_matches_nothing_is_an_error(capsys):
    assert command.main(["--methods", "nf5*"]) == 2
    assert "--methods 'nf5*' matches none of" in capsys.readouterr().err
