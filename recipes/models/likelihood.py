"""Negative log-likelihood of a whole data set; the exponential of that of a text is the perplexity."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanNLL(Metric):
    """Mean over all samples of all batches and processes, however many each batch has; NaN stays NaN."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, total: Tensor, samples: Tensor) -> None:
        """Add the sum of negative log-likelihoods in nats of a number of samples."""
        self.total += total
        self.samples += samples

    def compute(self) -> Tensor:
        """Return nats for each sample, float64 scalar."""
        return self.total / self.samples
