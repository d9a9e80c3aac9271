"""A text without meaning whose optimal perplexity is known: a Markov source of order 2."""

import math
from bisect import bisect
from itertools import accumulate
from random import Random

import torch
from torch import Tensor

from recipes.data.module import Split, TextModule

LIKELY = 3
"""Symbols that usually follow a pair of symbols."""

NOISE = 0.04
"""Probability of a symbol at random instead, so that every pair appears whatever the text begins with."""

SIZES: dict[Split, int] = {"train": 200_000, "validation": 10_000, "test": 20_000}


class MarkovSource:
    r"""Symbols of which each depends on the two before it.

    The entropy rate is :math:`-\sum_{ab} \pi_{ab} \sum_c p(c | ab) \ln p(c | ab)`, with the stationary distribution
    :math:`\pi` of pairs.

    Args:
        symbols: number of different symbols.
        seed: of the probabilities.
    """

    def __init__(self, symbols: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = symbols * symbols, symbols
        chosen = torch.rand(shape, generator=generator).topk(min(LIKELY, symbols)).indices
        weights = torch.rand(chosen.shape, generator=generator, dtype=torch.float64) + 0.1
        likely = torch.zeros(shape, dtype=torch.float64).scatter_(1, chosen, weights)
        self.symbols = symbols
        self.probabilities = (1 - NOISE) * likely / likely.sum(1, keepdim=True) + NOISE / symbols
        """Of the next symbol; row ``symbols * a + b`` after ``a``, ``b``; float64."""

    def stationary(self) -> Tensor:
        """Share of each pair in an endless text; float64, shape ``(symbols * symbols,)``."""
        pairs = torch.arange(self.symbols**2)
        following = (pairs % self.symbols)[:, None] * self.symbols + torch.arange(self.symbols)
        step = torch.zeros(len(pairs), len(pairs), dtype=torch.float64).scatter_(1, following, self.probabilities)
        # pi (P - 1) = 0, where one equation says nothing new and gives way to sum(pi) = 1.
        equations = (step - torch.eye(len(pairs), dtype=torch.float64)).T
        equations[-1] = 1
        result = torch.zeros(len(pairs), dtype=torch.float64)
        result[-1] = 1
        return torch.linalg.solve(equations, result)

    def entropy_rate(self) -> float:
        """Nats for each symbol."""
        entropies = -(self.probabilities * self.probabilities.log()).sum(1)
        return float(self.stationary() @ entropies)

    def draw(self, length: int, seed: int) -> Tensor:
        """Return a text that follows symbol 0 twice; int64, shape ``(length,)``."""
        random = Random(seed)
        limits = [list(accumulate(row)) for row in self.probabilities.tolist()]
        text, before, last = [], 0, 0
        for _ in range(length):
            symbol = min(bisect(limits[self.symbols * before + last], random.random()), self.symbols - 1)
            text.append(symbol)
            before, last = last, symbol
        return torch.tensor(text)


class MarkovText(TextModule):
    """A text drawn from a Markov source of order 2, which needs no download.

    Args:
        batch_size: columns of the training text that are read side by side, by all processes together.
        steps: tokens of a column in one batch: how far gradients go back.
        eval_batch_size: columns of the validation and the test text. Each begins with an empty state.
        symbols: number of different symbols.
        seed: of the source and the text.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, batch_size: int = 20, steps: int = 35, eval_batch_size: int = 10, symbols: int = 12, seed: int = 0
    ) -> None:
        super().__init__(batch_size, steps, eval_batch_size)
        if symbols < 2:
            raise ValueError(f"`symbols` must be at least 2, got {symbols}")
        self.vocabulary_size = symbols
        self.seed = seed
        self.source = MarkovSource(symbols, seed)
        self.optimal_perplexity = math.exp(self.source.entropy_rate())
        """Lowest perplexity that any model can have on an endless text."""

    def tokens(self) -> dict[Split, Tensor]:
        """Draw the three parts."""
        return {
            split: self.source.draw(size, 1000 * self.seed + part)
            for part, (split, size) in enumerate(SIZES.items(), start=1)
        }
