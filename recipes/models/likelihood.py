"""Negative log-likelihood of a whole text, whose exponential is the perplexity."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanNLL(Metric):
    """Mean over all tokens of all batches and processes, however many tokens each batch has; NaN stays NaN."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, total: Tensor, tokens: Tensor) -> None:
        """Add the sum of negative log-likelihoods in nats of a number of tokens."""
        self.total += total
        self.tokens += tokens

    def compute(self) -> Tensor:
        """Return nats for each token, float64 scalar."""
        return self.total / self.tokens
