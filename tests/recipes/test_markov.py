import math

import pytest
import torch
from torch.testing import assert_close

from recipes.data import markov
from recipes.data.markov import MarkovSource, MarkovText


def test_the_entropy_rate_of_independent_symbols_is_that_of_one():
    source = MarkovSource(3, seed=0)
    source.probabilities = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).expand(9, 3)
    assert source.entropy_rate() == pytest.approx(1.5 * math.log(2), rel=1e-12)


def test_the_entropy_rate_of_a_first_order_source_has_a_closed_form():
    # Two symbols that stay with probability 0.9 and 0.6: 0 in 4 of 5 places.
    source = MarkovSource(2, seed=0)
    source.probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)

    def entropy(p):
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    assert source.entropy_rate() == pytest.approx(0.8 * entropy(0.9) + 0.2 * entropy(0.6), rel=1e-12)


def test_the_stationary_distribution_is_what_many_steps_lead_to():
    source = MarkovSource(5, seed=1)
    share = torch.full((25,), 1 / 25, dtype=torch.float64)
    for _ in range(500):
        pairs = (share[:, None] * source.probabilities).view(5, 5, 5)  # before, last, next
        share = pairs.sum(0).flatten()
    assert_close(source.stationary(), share, rtol=1e-9, atol=1e-12)


def test_a_text_has_the_probabilities_and_the_entropy_of_its_source():
    source = MarkovSource(4, seed=0)
    text = source.draw(60_000, seed=3).tolist()
    counts = torch.zeros(16, 4, dtype=torch.float64)
    total = 0.0
    for before, last, symbol in zip([0, 0, *text], [0, *text], text, strict=False):
        counts[4 * before + last, symbol] += 1
        total -= math.log(source.probabilities[4 * before + last, symbol])
    # Standard error of a share: at most 0.5 / sqrt(1000) where a pair was seen 1000 times; of the mean about 0.004.
    often = counts.sum(1) > 1000
    assert often.sum() > 8
    assert_close((counts / counts.sum(1, keepdim=True))[often], source.probabilities[often], rtol=0, atol=0.05)
    assert total / len(text) == pytest.approx(source.entropy_rate(), abs=0.015)


def test_the_seed_decides_and_the_parts_differ(monkeypatch):
    monkeypatch.setattr(markov, "SIZES", dict.fromkeys(markov.SIZES, 50))
    parts = [MarkovText(seed=seed).tokens() for seed in (0, 0, 1)]
    assert all(torch.equal(parts[0][split], parts[1][split]) for split in markov.SIZES)
    assert not torch.equal(parts[0]["train"], parts[2]["train"])
    assert not torch.equal(parts[0]["train"], parts[0]["validation"])


def test_the_optimum_is_far_below_that_of_guessing():
    assert 3 < MarkovText().optimal_perplexity < 4
    with pytest.raises(ValueError, match="`symbols` must be at least 2, got 1"):
        MarkovText(symbols=1)
