"""What a cell of the grid is, and what the record of one looks like.

A *cell* is one (model, task, order, method, seed). Its *record* is one JSON line. Units are in the names: `_bytes`
(integers), `_s` (seconds), `_db`, `_ratio` (to the fp32 model in the same run). A measured figure that varies is a
*stat*: {"value", "low", "high", "n"} with a 95 % interval, plus, where it is compared with the unquantized model,
{"delta", "delta_low", "delta_high", "p_value"} (paired on the same items). Unknown is null with a reason, never 0.

    schema, suite, quick            version of this layout; name of the experiment; true for smoke runs
    cell                            {model, task, order, method, seed}
    key, key_parts                  16 hex digits; what they are made of, by name (see `bench.records`)
    status, reason                  one of STATUSES; why, when not ok
    started_utc, wall_s, provenance commit, dirty, versions, device, cpu, threads, argv
    workers                         how many judged cells could run at a time (absent of speed cells: they run alone)
    family, settings, label         of the method (`quant.FAMILIES`, `Quantizer.settings()`)
    memory          parts_bytes{part: int}, model_bytes (their sum), quantized_bytes, n_quantized_weights,
                    bits_per_weight, constants_bytes, bits_per_weight_model, entropy_bits_per_weight,
                    file_bytes, file_header_bytes, trainable_parameters
    training_memory peak_bytes = weights_bytes + adapter_bytes + gradients_bytes + optimizer_bytes + activations_bytes,
                    cache_bytes (of weights_bytes, what engines derive and keep), peak_rss_bytes, steps, batch, tokens
    speed           device, threads, implementation{path: layers}, quantize_s, forward_b1_s, forward_b1_ratio,
                    prefill_s, prefill_ratio, prefill_tokens_per_s, train_step_s, train_step_ratio: all stats;
                    {forward_b1, prefill}_bf16_{s, ratio, ratio_bf16}: with bfloat16 activations, the ratios to the
                    model in fp32 and to the model in bfloat16, and implementation_bf16
    accuracy        {metric: stat + {"protocol", "higher_is_better"}}; metrics in METRICS; those that rank and the
                    losses also hold the value of every "items", in the order of the texts (of a perplexity: the mean
                    loss of every window, nats)
    weights         relative_error, sqnr_db, gap_db, layers{name: {relative_error, sqnr_db}},
                    histogram{layer, edges, weight_density, error_edges, error_density, levels}
    training        trainable_parameters, steps, tokens, train_s, first_loss, last_loss; of `lora` also trained_utc and
                    trained_commit, since its adapter may have been trained by an earlier run. Of new adapters on
                    quantized bases also objective ("task", "kl"), lr (the peak rate) and start{metric: stat,
                    relative_error}: before the first step
    merge_audit     {way: {relative_error, layers{name: error}, metrics{metric: stat}}} of a trained adapter merged in
                    the ways of `bench.merge_audit`; differences are to the unmerged model
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["METRICS", "ORDERS", "SCHEMA", "STATUSES", "Cell", "Metric"]

SCHEMA = 1
STATUSES = ("ok", "unsupported", "skipped", "oom", "timeout", "failed", "interrupted")

# How a model is adapted. The first five are references on the unquantized weights; the others take a method.
ORDERS = {
    "untouched": "the pretrained model as it is (an encoder gets a trained linear head on frozen features)",
    "features": "feature extraction: frozen backbone, trained head",
    "prompt": "prompt tuning: trained virtual tokens before the input",
    "full": "full fine-tuning: every weight trained",
    "lora": "LoRA on the unquantized weights: the baseline of every difference",
    "beneath": "quantize beneath: the adapter of `lora`, its base quantized under it",
    "qlora": "QLoRA: the base quantized first, a new adapter trained on it",
    "loftq": "LoftQ: base and adapter fitted to the weight in turn, then trained as in `qlora`",
    "qpissa": "QPiSSA: the adapter starts as the principal part of the weight, the base holds the rest",
    "eora": "EoRA: the adapter starts as what corrects the quantized base where the inputs are large",
    "lq": "LQ-LoRA: as LoftQ, rows and columns weighed by what they matter to the loss",
    "chained": "as `eora`, layer after layer: each adapter also makes good what the layers before it lost",
    "qa-lora": "QA-LoRA: an adapter on sums over groups of inputs, which merges into the zero points",
    "distill": "QLoRA trained on the logits of `lora` in place of the labels",
    "gradual": "LoRA while the base is pruned, more and more, to the share that the method prunes",
    "merge": "merge then quantize: the adapter of `lora` merged into the base, the sum quantized",
    "speed": "no adaptation is judged: times and training memory of the method on this model",
}
REFERENCES = ("untouched", "features", "prompt", "full", "lora")


@dataclass(frozen=True, order=True)
class Cell:
    """One cell of the grid; `str(cell)` is the name that `bench show` takes."""

    model: str
    task: str
    order: str
    method: str
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"unknown order {self.order!r}; known: {', '.join(ORDERS)}")

    def __str__(self) -> str:
        return f"{self.model}/{self.task}/{self.order}/{self.method}/{self.seed}"

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its heading, its unit, and which direction is better."""

    heading: str
    unit: str
    higher_is_better: bool
    ranks: bool = False  # the table of its kind of model is ranked by it


METRICS = {
    "accuracy": Metric("accuracy", "%", True),
    "loss": Metric("test loss", "nats", False),
    "cosine_distance": Metric("embedding cosine distance", "", False, ranks=True),
    "kl_labels": Metric("KL of the labels", "nats", False),
    "label_agreement": Metric("label agreement", "%", True),
    "perplexity_reviews": Metric("perplexity, reviews", "", False),
    "perplexity_wiki": Metric("perplexity, Wikipedia", "", False),
    "kl_reviews": Metric("KL, reviews", "nats/token", False),
    "kl_wiki": Metric("KL, Wikipedia", "nats/token", False, ranks=True),
    "top1_reviews": Metric("top-1 agreement, reviews", "%", True),
    "top1_wiki": Metric("top-1 agreement, Wikipedia", "%", True),
    "perplexity_alice": Metric("perplexity, Alice", "", False),
    "kl_alice": Metric("KL, Alice", "nats/token", False),
    "top1_alice": Metric("top-1 agreement, Alice", "%", True),
}
