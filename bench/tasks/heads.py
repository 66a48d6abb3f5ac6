"""A classifier: the mean over the tokens of an encoder's last states, and a linear head on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Classifier", "fit_logistic", "mean_pool"]


def mean_pool(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean of `states` [m, t, k] over the tokens that `attention_mask` [m, t] marks, [m, k]."""
    weight = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class Classifier(nn.Module):
    """`backbone` (an encoder), mean pooling, `head` [2, k]. With `virtual` tokens before the text, those are left out
    of the mean."""

    def __init__(self, backbone: nn.Module, hidden: int, seed: int, classes: int = 2) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(hidden, classes).to(next(backbone.parameters()).device)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The embedding of every text, [m, k]."""
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return mean_pool(states[:, -input_ids.shape[1] :], attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, [m, classes]."""
        logits: Tensor = self.head(self.embed(input_ids, attention_mask))
        return logits


def fit_logistic(features: Tensor, labels: Tensor, penalty: float = 1e-3, classes: int = 2) -> nn.Linear:
    """The linear head that minimises mean cross-entropy + penalty / 2 * |W|^2 on `features` [n, k], `labels` [n].

    Features are standardised for the search and the scaling is folded back into the head. The optimum is unique up to
    a common shift of the logits, which no figure sees; L-BFGS in float64 finds it without a seed.
    """
    x = features.double()
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)
    x = (x - mean) / spread
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = nn.functional.cross_entropy(x @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    head = nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(weight / spread)
        head.bias.copy_(bias - (weight / spread) @ mean)
    return head
