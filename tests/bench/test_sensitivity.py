"""One matrix at a time: the divergence is that of the definition, the model is left as it was, a run resumes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from bench.models import load
from bench.reports import sensitivity as report
from bench.reports import style
from bench.reports.layers import split
from bench.reports.lines import read_lines
from bench.sensitivity import __main__ as command
from bench.sensitivity import store
from bench.sensitivity.measure import divergences, log_probs, quantized_weight, spread
from quant import METHODS, linears


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return load("tiny-causal").module


@pytest.fixture(scope="module")
def text() -> list[torch.Tensor]:
    ids = torch.randint(2, 258, (3, 24), generator=torch.Generator().manual_seed(0))
    return list(ids)


def test_the_divergence_is_that_of_the_definition(module, text):
    layers = linears(module)
    name = next(n for n in layers if n.endswith("down_proj"))
    decoded = METHODS["uniform-int2-g64"].quantize(layers[name].weight.detach()).decode()
    base = log_probs(module, text)
    got = divergences(module, layers, name, decoded, text, base)
    assert len(got) == 3
    with quantized_weight(layers[name], decoded), torch.inference_mode():
        for ids, p, value in zip(text, base, got, strict=True):
            q = module(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
            want = nn.functional.kl_div(q, p.double(), reduction="batchmean", log_target=True)
            assert value == pytest.approx(float(want), rel=1e-4)  # float32 logits
    assert min(got) > 0


def test_the_weight_is_put_back_also_after_an_error(module, text):
    layers = linears(module)
    name = next(iter(layers))
    before = layers[name].weight
    same = divergences(module, layers, name, before.detach().clone(), text, log_probs(module, text))
    assert max(same) < 1e-9
    with pytest.raises(RuntimeError), quantized_weight(layers[name], torch.zeros(1, 1)):
        log_probs(module, text)
    assert layers[name].weight is before


def test_every_so_many_blocks_are_chosen_in_the_order_of_the_model():
    names = [f"model.layers.{i}.{m}" for i in range(7) for m in ("self_attn.q_proj", "mlp.up_proj")]
    assert {split(n)[1] for n in spread(names, 3)} == {0, 3, 6}
    assert spread(names, 1) == names
    assert len(spread(names, 3)) == 6


@pytest.mark.assets
def test_a_run_resumes_and_draws_its_records(tmp_path, monkeypatch):
    said: list[str] = []
    first = store.run(tmp_path, "tiny-causal", ["nf4-g64"], 2, said.append)
    assert len(first) == len(said) == 7
    path = tmp_path / report.FILE
    whole = path.read_text()
    path.write_text(whole[: whole.rfind('"key"')])  # the last record was being written
    assert len(read_lines(path)) == 6
    assert store.run(tmp_path, "tiny-causal", ["nf4-g64"], 2, said.append) == first
    assert len(said) == 8
    assert read_lines(path) == first
    data = report.frame_of(first)
    assert set(data["block"]) == {0}
    assert data["kl"].tolist() == pytest.approx([r["kl"]["value"] for r in first])
    assert (data["kl_low"] <= data["kl"]).all()
    assert [p.name for p in report.write(tmp_path)] == ["sensitivity.png", "sensitivity.svg", "sensitivity.csv"]


def test_titles_end_before_the_bar_whose_marks_are_numbers(tmp_path, monkeypatch):
    names = [f"model.layers.{b}.mlp.{m}_proj" for b in range(6) for m in ("up", "down")]
    one = {"model": "smollm2", "bits_per_weight": 4.0, "relative_error": 0.1, "protocol": "p"}
    one |= {"provenance": {"commit": "c" * 40, "dirty": False}}
    found = [
        one | {"method": method, "layer": name, "kl": dict.fromkeys(("value", "low", "high"), 3e-5 * 3**i)}
        for method in ("uniform-int3-asym-g64", "nf4-g64-dq")
        for i, name in enumerate(names)
    ]
    (tmp_path / report.FILE).write_text("".join(json.dumps(r) + "\n" for r in found))
    drawn = []
    whole = style.save
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.append(figure) or whole(figure, path))
    report.write(tmp_path)
    (figure,) = drawn
    *panels, bar = figure.axes
    left = bar.get_window_extent().x0
    for panel in panels:
        assert panel._left_title.get_window_extent().x1 < left
    marks = [text.get_text() for text in bar.get_yticklabels()]
    assert len(marks) > 1
    assert [float(mark) > 0 for mark in marks] == [True] * len(marks)


def test_nothing_found_draws_nothing(tmp_path):
    assert report.write(tmp_path) == []


def test_wrong_options_are_refused(capsys):
    assert command.main(["--methods", "nf5*"]) == 2
    assert command.main(["--every", "0"]) == 2
    assert "matches no method" in capsys.readouterr().err
