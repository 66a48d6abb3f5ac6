"""Rates are tried on texts that are judged nowhere, each way of adapting has its own, and a run is not repeated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import learning_rates
from bench.data import CORPORA
from bench.learning_rates import WAYS, at_rate, losses, main, measure, pool, seen_by, table, task_of
from bench.protocol import Protocol
from bench.tasks import find


@pytest.mark.parametrize("corpus", ["rotten-tomatoes", "imdb"])
def test_neither_part_of_the_pool_holds_a_text_that_is_judged(corpus: str) -> None:
    train, held = ({e.text for e in CORPORA[pool(corpus)].examples(split)} for split in ("train", "test"))
    judged, trained_on = ({e.text for e in CORPORA[corpus].examples(split)} for split in ("test", "train"))
    assert train
    assert held
    assert not train & held
    assert not (train | held) & judged
    assert train | held == trained_on


def test_every_way_moves_its_own_rate_and_every_rate_has_its_way() -> None:
    protocol = Protocol()
    assert sorted(field for _, _, field in WAYS) == sorted(
        f.name for f in dataclasses.fields(Protocol) if f.name.endswith("_lr")
    )
    for model, order, field in WAYS:
        task = task_of("encoder" if model == "minilm" else "causal")
        doubled: dict[str, Any] = {field: 2 * getattr(protocol, field)}
        before, after = (
            dataclasses.asdict(task.rates(p)) for p in (protocol, dataclasses.replace(protocol, **doubled))
        )
        assert [name for name in before if before[name] != after[name]] == [{"features": "head"}.get(order, order)]


def test_losses_are_those_of_the_held_out_texts() -> None:
    logits, labels = torch.tensor([[0.0, 0.0], [2.0, -1.0]]), torch.tensor([0, 1])
    assert losses({"logits": logits, "labels": labels}) == pytest.approx([0.693147, 3.048587])
    assert losses({"reviews.nll": torch.tensor([1.5])}) == [1.5]


def made(factor: float, items: list[float] | None) -> learning_rates.Run:
    tried = at_rate(Protocol(), "lora_lr", factor)
    own = {"rate": tried.lora_lr, "protocol": tried.settings(), "items": items}
    return {"model": "minilm", "order": "lora", "field": "lora_lr", "factor": factor, **own}


def test_the_table_marks_the_best_rate_what_is_as_good_and_what_diverged() -> None:
    texts = [0.4 + 0.02 * i for i in range(20)]
    near = [x + 0.01 * (-1) ** i + 0.001 for i, x in enumerate(texts)]
    worse = [x + 0.1 + 0.001 * i for i, x in enumerate(texts)]
    rows = table([made(4.0, None), made(2.0, worse), made(1.0, near), made(0.5, texts)]).splitlines()[2:]
    assert [row.split(" | ")[2] for row in rows] == ["0.002", "0.004", "0.008", "0.016"]
    assert [row.split(" | ")[3] for row in rows] == ["", "yes", "", ""]
    said = [row.rstrip(" |").split(" | ")[-1] for row in rows]
    assert said[0] == "best"
    assert said[1].endswith("≈")
    assert said[2].startswith("+0.1")
    assert not said[2].endswith("≈")
    assert said[3] == "diverged"


def test_a_rate_that_diverges_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def fail(order: str, setting: Any, quantizer: Any) -> Any:
        tried.append(setting.rates.full)
        raise ArithmeticError("the loss of training step 3 is nan")

    class Model:
        kind = "encoder"

    monkeypatch.setattr(learning_rates, "adapt", fail)
    monkeypatch.setattr(learning_rates, "load", lambda name: Model())
    run = measure("minilm", "full", "full_lr", 4.0, Protocol())
    assert tried == [4 * Protocol().full_lr]
    assert (run["items"], run["rate"]) == (None, tried[0])
    assert set(run["provenance"]) >= {"commit", "versions", "cpu", "threads"}


def test_what_is_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float]] = []

    def measured(model: str, order: str, field: str, factor: float, protocol: Protocol) -> learning_rates.Run:
        asked.append((f"{model}/{order}", factor))
        tried = at_rate(protocol, field, factor)
        own = {"field": field, "rate": getattr(tried, field), "protocol": tried.settings()}
        return made(factor, [0.5] * 6) | {"model": model, "order": order, **own}

    monkeypatch.setattr(learning_rates, "measure", measured)
    arguments = ["--out", str(tmp_path), "--only", "*/lora", "--factors", "0.5,1"]
    for _ in range(2):
        assert main(arguments) == 0
        assert asked == [(f"{m}/lora", f) for m in ("minilm", "smollm2") for f in (0.5, 1.0)]
    assert len([json.loads(line) for line in (tmp_path / "learning-rates.jsonl").read_text().splitlines()]) == 4
    assert "smollm2 | lora" in (tmp_path / "learning-rates.md").read_text(encoding="utf-8")
    assert main(["--out", str(tmp_path), "--only", "nothing"]) == 2
    monkeypatch.setattr(learning_rates, "Protocol", lambda: Protocol(full_lr=1.0))  # as if another rate had changed
    assert main(arguments) == 0
    assert len(asked) == 4
    rows = (tmp_path / "learning-rates.md").read_text(encoding="utf-8").count("| lora |")
    assert rows == 4
    monkeypatch.setattr(learning_rates, "Protocol", lambda: Protocol(speed_rounds=7, full_lr=1.0))  # nor times
    assert main(arguments) == 0
    assert len(asked) == 4
    monkeypatch.setattr(learning_rates, "Protocol", lambda: Protocol(rank=4))  # as if the suite had
    assert main(arguments) == 0
    assert len(asked) == 8
    assert (tmp_path / "learning-rates.md").read_text(encoding="utf-8").count("| lora |") == rows  # of now alone


def test_a_setting_that_came_later_is_taken_as_it_is_by_default() -> None:
    settings = Protocol().settings()
    old = {name: value for name, value in settings.items() if name != "cosine_texts"}
    assert seen_by("lora_lr", old) == seen_by("lora_lr", settings)
    assert seen_by("lora_lr", settings | {"lora_lr": 1.0}) != seen_by("lora_lr", settings)


def test_the_suites_tasks_do_not_know_of_the_split() -> None:
    assert find("rotten-tomatoes").corpora == ("rotten-tomatoes",)
    assert find("reviews").corpora == ("imdb", "wikipedia")
